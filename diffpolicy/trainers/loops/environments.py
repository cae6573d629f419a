"""The environments of a run, and what the networks read of their observations."""

from dataclasses import dataclass

from tensordict import NestedKey
from torchrl.envs import EnvBase

from collectors import GymnasiumEnv, RandomStream, UnsupportedStateError, make_env
from collectors.environments.gymnasium_env import gymnasium_env
from collectors.environments.spaces import is_image
from collectors.state.simulators import simulator_state
from diffpolicy.errors import ArgumentError
from diffpolicy.trainers.config.off_policy import OffPolicyConfig
from diffpolicy.trainers.config.on_policy import OnPolicyConfig
from diffpolicy.trainers.config.run import RunConfig


def spec_env(config: RunConfig) -> EnvBase:
    """One environment, to read its specs.

    Raises:
        ArgumentError: for an environment that does not exist or is not supported.
    """
    try:
        # Constructors may draw from global generators, which belong to the caller.
        with RandomStream(config.seed):
            return make_env(
                config.env,
                max_episode_steps=config.max_episode_steps,
                observation_keys=config.observation_keys,
            )
    except ArgumentError as error:
        if error.argument != "name":
            raise
        raise ArgumentError("env", error.value, error.problem) from error


def training_env(config: OnPolicyConfig | OffPolicyConfig, num_envs: int) -> EnvBase:
    """The environments that one rank, or one of its workers, trains on."""
    return make_env(
        config.env,
        num_envs=num_envs,
        reward_scale=config.reward_scale,
        max_episode_steps=config.max_episode_steps,
        observation_keys=config.observation_keys,
    )


def evaluation_env(config: RunConfig) -> EnvBase:
    """The environments of evaluations, one for each episode."""
    return make_env(
        config.env,
        num_envs=config.eval_episodes,
        max_episode_steps=config.max_episode_steps,
        observation_keys=config.observation_keys,
    )


def reward_bound(env: str, reward_scale: float) -> float | None:
    """The largest absolute reward that is trained on, None if the task does not have a known one.

    Rewards of the DeepMind Control Suite are in [0, 1] (arXiv 1801.00690).
    """
    return reward_scale if env.startswith("dmc:") else None


def observation_keys(env: EnvBase, config: RunConfig) -> list[NestedKey]:
    """The observation entries that the networks read, in the order of their concatenation.

    These are the entries of ``--observation-keys``, by default all.

    Raises:
        ArgumentError: if one of them is an image.
    """
    own = gymnasium_env(env)
    assert own is not None
    image = next((entry for entry in own.entries if is_image(entry.space)), None)
    if image is not None:
        others = [entry.name for entry in own.entries if not is_image(entry.space)]
        choice = f"read other entries (observation_keys: {', '.join(others)})" if others else ""
        raise ArgumentError(
            "env",
            config.env,
            f"observes {image.name}, an image of the shape {image.shape}, which these networks do "
            f"not read; {choice or 'let the environment make vectors of it'}.",
        )
    return [entry.key for entry in own.entries]


@dataclass(frozen=True)
class Notes:
    """What a run says about itself before it begins.

    Attributes:
        interface: what the networks read and what they drive.
        inexact: what will not be done exactly, empty if everything is.
    """

    interface: str
    inexact: str


def run_notes(env: EnvBase, config: OnPolicyConfig | OffPolicyConfig) -> Notes:
    """Describe a run on environments such as ``env``, which is reset.

    Args:
        env: from :func:`spec_env`.
        config: the run's configuration.
    """
    own = gymnasium_env(env)
    assert own is not None
    sizes = [f"{entry.name} ({', '.join(map(str, entry.shape))})" for entry in own.entries]
    low, high = own.actions.low, own.actions.high
    bounds = f"[{low.min():g}, {high.max():g}]"
    if (low != low[0]).any() or (high != high[0]).any():
        bounds = f"bounds of their own inside of {bounds}"
    interface = f"reads {', '.join(sizes)}; drives {len(low)} action(s) in {bounds}"
    reasons = [*_never_exact(config), *_unsaved(own)]
    told = f"not exact: {'; '.join(reasons)}" if reasons else ""
    return Notes(interface, told)


def _never_exact(config: OnPolicyConfig | OffPolicyConfig) -> list[str]:
    """What the options of a run leave open."""
    reasons = []
    if config.collector != "local":
        reasons.append(f"with --collector {config.collector} a resumed run starts new episodes")
    if config.refill_frames and config.replay_checkpoints == "never":
        reasons.append(
            "with --checkpoint-replay never a resumed run first fills its replay buffer again"
        )
    if config.gpus and not config.deterministic:
        reasons.append("without --deterministic a GPU gives other rounding errors in every run")
    return reasons


def _unsaved(own: GymnasiumEnv) -> list[str]:
    """Why the state of an environment cannot be saved."""
    try:
        with RandomStream(0):
            own.reset()
        simulator_state(own.envs)
    except UnsupportedStateError as error:
        return [f"a resumed run starts new episodes, because {str(error).rstrip('.')}"]
    except Exception:
        # An environment that cannot be reset ends the run at its first evaluation, which says why.
        return []
    return []
