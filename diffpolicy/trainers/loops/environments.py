"""The environments of a run, and what the networks read of their observations."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
from tensordict import NestedKey
from torchrl.envs import EnvBase

from collectors import RandomStream, UnsupportedStateError, make_env
from collectors.environments.gymnasium_env import gymnasium_env
from collectors.environments.observed import observed_entries
from collectors.environments.simulator_env import simulator_env
from collectors.state.simulators import simulator_state
from diffpolicy.errors import ArgumentError
from diffpolicy.names import shown
from diffpolicy.trainers.config.off_policy import OffPolicyConfig
from diffpolicy.trainers.config.on_policy import OnPolicyConfig
from diffpolicy.trainers.config.run import RunConfig


def spec_env(config: RunConfig) -> EnvBase:
    """One environment, to read its specs.

    Raises:
        ArgumentError: for an environment that does not exist or is not supported.
    """
    _check_instance(config)
    try:
        # Constructors may draw from global generators, which belong to the caller.
        with RandomStream(config.seed):
            return _env(config, 1, keep_batch=True)
    except ArgumentError as error:
        renamed = {"name": "env", "source": "env_source"}.get(error.argument)
        if renamed is None:
            raise
        raise ArgumentError(renamed, error.value, error.problem) from error


def training_env(config: OnPolicyConfig | OffPolicyConfig, num_envs: int) -> EnvBase:
    """The environments that one rank, or one of its workers, trains on."""
    return _env(config, num_envs, reward_scale=config.reward_scale, gamma=config.gamma)


def evaluation_env(config: RunConfig) -> EnvBase:
    """The environments of evaluations, one for each episode if their number can be chosen."""
    return _env(config, config.eval_episodes, keep_batch=True)


def _env(config: RunConfig, num_envs: int, **options: Any) -> EnvBase:
    return make_env(
        config.env,
        num_envs=num_envs,
        max_episode_steps=config.max_episode_steps,
        observation_keys=config.observation_keys,
        wrappers=config.env_wrapper or (),
        frame_stack=config.frame_stack,
        action_chunk=config.action_chunk,
        source=config.env_source,
        **options,
        **(config.env_kwargs or {}),
    )


def _check_instance(config: RunConfig) -> None:
    """Raise ArgumentError where one environment that has been built would have to be copied."""
    if not isinstance(config.env, (gym.Env, EnvBase)):
        return
    size = config.env.batch_size.numel() if isinstance(config.env, EnvBase) else 1
    needed = {"num_envs": size, "eval_env": "training", "collector": "local", "ranks": 1}
    wrong = [
        f"{name} is {getattr(config, name)!r} and must be {value!r}"
        for name, value in needed.items()
        if getattr(config, name) != value
    ]
    if wrong:
        raise ArgumentError(
            "env",
            config.env_name,
            "is one environment that has been built, and this run needs copies "
            f"({'; '.join(wrong)}); give a factory instead, for example "
            "lambda: gymnasium.make(...).",
        )


def observation_keys(env: EnvBase, config: RunConfig) -> list[NestedKey]:
    """The observation entries that the networks read, in the order of their concatenation.

    These are the entries of ``--observation-keys``, by default all.

    Raises:
        ArgumentError: if one of them is an image and there is no encoder, or the other way round.
    """
    entries = observed_entries(env, config.observation_keys)
    image = next((entry for entry in entries if entry.is_image), None)
    encoder = getattr(config, "encoder", None)
    if image is not None and encoder is None:
        others = [entry.name for entry in entries if not entry.is_image]
        choice = f", or read other entries ({' '.join(f'--observation-keys {n}' for n in others)})"
        raise ArgumentError(
            "env",
            config.env_name,
            f"observes {image.name}, an image of the shape {image.shape}, which needs an encoder: "
            f"add --encoder cnn (or module:Class){choice if others else ''}.",
        )
    if image is None and encoder is not None:
        names = ", ".join(f"{entry.name} {entry.shape}" for entry in entries)
        problem = f"is for images, but {config.env_name} observes {names}; leave it out."
        raise ArgumentError("encoder", shown(encoder), problem)
    return [entry.key for entry in entries]


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
    entries = observed_entries(env, config.observation_keys)
    sizes = [f"{entry.name} ({', '.join(map(str, entry.shape))})" for entry in entries]
    space = env.action_spec_unbatched.space
    low, high = space.low, space.high
    bounds = f"[{low.min():g}, {high.max():g}]"
    if (low != low[0]).any() or (high != high[0]).any():
        bounds = f"bounds of their own inside of {bounds}"
    interface = f"reads {', '.join(sizes)}; drives {low.shape[-1]} action(s) in {bounds}"
    reasons = [*_never_exact(config), *_unsaved(env)]
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


def _unsaved(env: EnvBase) -> list[str]:
    """Why the state of an environment cannot be saved."""
    own = gymnasium_env(env)
    if own is None:
        kind = "those of EnvPool" if simulator_env(env) is not None else "TorchRL environments"
        return [f"a resumed run starts new episodes, because {kind} cannot be saved"]
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
