"""The environments of a run, and what the networks read of their observations."""

from tensordict import NestedKey
from torchrl.envs import EnvBase

from collectors import make_env
from collectors.environments.gymnasium_env import gymnasium_env
from collectors.environments.spaces import is_image
from diffpolicy.errors import ArgumentError
from diffpolicy.trainers.config import OnPolicyConfig, RunConfig
from diffpolicy.trainers.off_policy_config import OffPolicyConfig


def spec_env(config: RunConfig) -> EnvBase:
    """One environment, to read its specs.

    Raises:
        ArgumentError: for an environment that does not exist or is not supported.
    """
    try:
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


def reward_bound(config: OffPolicyConfig) -> float | None:
    """The largest absolute reward that is trained on, None if the task does not have a known one.

    Rewards of the DeepMind Control Suite are in [0, 1] (arXiv 1801.00690).
    """
    return config.reward_scale if config.env.startswith("dmc:") else None


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
