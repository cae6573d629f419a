"""The environments of a run, and what the networks read of their observations."""

from tensordict import NestedKey
from torchrl.envs import EnvBase

from collectors import make_env
from collectors.envs import EPISODE_REWARD_KEY, STEP_COUNT_KEY
from diffpolicy.trainers.config.off_policy import OffPolicyConfig
from diffpolicy.trainers.config.on_policy import OnPolicyConfig
from diffpolicy.trainers.config.run import RunConfig

# What make_env adds to the observations of an environment.
_BOOKKEEPING = (EPISODE_REWARD_KEY, STEP_COUNT_KEY)


def spec_env(config: RunConfig) -> EnvBase:
    """One environment, to read its specs.

    Raises:
        ValueError: for an environment that does not exist or is not supported, naming the flag.
    """
    try:
        return make_env(config.env, max_episode_steps=config.max_episode_steps)
    except ValueError as error:
        raise ValueError(str(error).replace("name=", "--env ", 1)) from error


def training_env(config: OnPolicyConfig | OffPolicyConfig, num_envs: int) -> EnvBase:
    """The environments that one rank, or one of its workers, trains on."""
    return make_env(
        config.env,
        num_envs=num_envs,
        reward_scale=config.reward_scale,
        max_episode_steps=config.max_episode_steps,
    )


def evaluation_env(config: RunConfig) -> EnvBase:
    """The environments of evaluations, one for each episode."""
    return make_env(
        config.env,
        num_envs=config.eval_episodes,
        max_episode_steps=config.max_episode_steps,
    )


def reward_bound(env: str, reward_scale: float) -> float | None:
    """The largest absolute reward that is trained on, None if the task does not have a known one.

    Rewards of the DeepMind Control Suite are in [0, 1] (arXiv 1801.00690).
    """
    return reward_scale if env.startswith("dmc:") else None


def observation_keys(env: EnvBase, config: RunConfig) -> list[NestedKey]:
    """The observation entries that the networks read, in the order of their concatenation.

    These are the entries of ``--observation-keys``, by default all vectors of floating-point
    numbers. Entries of dictionaries inside of dictionaries are named with dots.

    Raises:
        ValueError: if there are none, or one that was asked for is not among them.
    """
    spec = env.observation_spec_unbatched
    entries = {
        key if isinstance(key, str) else ".".join(key): key
        for key in spec.keys(True, True)
        if key not in _BOOKKEEPING
    }
    vectors = {
        name: key
        for name, key in entries.items()
        if spec[key].dtype.is_floating_point and len(spec[key].shape) == 1
    }
    if not vectors:
        found = ", ".join(f"{name} {tuple(spec[key].shape)}" for name, key in entries.items())
        raise ValueError(
            f"--env {config.env} must observe vectors of floating-point numbers, but its "
            f"observations are {found}."
        )
    if config.observation_keys is None:
        return list(vectors.values())
    for name in config.observation_keys:
        if name not in vectors:
            raise ValueError(
                f"--observation-keys {name} is not a vector of floating-point numbers that --env "
                f"{config.env} observes; choose from {', '.join(vectors)}."
            )
    return [vectors[name] for name in config.observation_keys]
