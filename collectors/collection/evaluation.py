"""Evaluation on separate environments, and statistics of finished episodes."""

from dataclasses import dataclass

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type

from collectors.environments.spaces import EPISODE_REWARD_KEY, STEP_COUNT_KEY
from collectors.errors import NonFiniteError, UnfinishedEpisodeError
from collectors.randomness import RandomStream
from collectors.seeding import derive_seed


@dataclass(frozen=True)
class EpisodeStats:
    """Sums over the episodes that ended in a rollout, ready to be added up over ranks.

    Attributes:
        count: number of episodes that ended.
        return_sum: sum of their returns (unscaled rewards).
        length_sum: sum of their lengths in environment steps.
    """

    count: int
    return_sum: float
    length_sum: int

    def __add__(self, other: "EpisodeStats") -> "EpisodeStats":
        """Sums over the episodes of both."""
        return EpisodeStats(
            self.count + other.count,
            self.return_sum + other.return_sum,
            self.length_sum + other.length_sum,
        )


def episode_stats(rollout: TensorDictBase) -> EpisodeStats:
    """Sum the returns (unscaled rewards) and lengths of the episodes that ended in a rollout.

    Args:
        rollout: ``[*B]`` rows of an environment from :func:`collectors.make_env`.

    Returns:
        Counts and sums; the mean return is ``return_sum / count`` when ``count > 0``.
    """
    done = rollout["next", "done"]
    returns, lengths = rollout["next", EPISODE_REWARD_KEY], rollout["next", STEP_COUNT_KEY]
    if not done.any():
        return EpisodeStats(0, 0.0, 0)
    return EpisodeStats(
        int(done.sum()), float(returns[done].double().sum()), int(lengths[done].sum())
    )


@torch.no_grad()
def evaluate(
    policy: TensorDictModuleBase,
    env: EnvBase,
    episodes: int,
    *,
    seed: int,
    exploration_type: ExplorationType = ExplorationType.DETERMINISTIC,
    max_steps: int = 100_000,
) -> tuple[list[float], list[int]]:
    """Run ``episodes`` episodes from fixed seeds and return their returns and lengths.

    In each round every copy in the batched environment runs exactly one episode, so long episodes
    count as much as short ones. The same seed gives the same initial states and the same noise,
    also where the environment draws from the global generators of NumPy, Python or torch. The
    policy acts in eval mode without gradients; its mode and the global generators are as before
    afterwards.

    Args:
        policy: writes ``action``.
        env: an environment from :func:`collectors.make_env`, not the one used for training.
            With ``num_envs == episodes`` one round is enough.
        episodes: number of episodes.
        seed: non-negative integer.
        exploration_type: DETERMINISTIC (default) or RANDOM.
        max_steps: steps after which an episode that does not end is an error.

    Returns:
        ``(returns, lengths)``, each a list of ``episodes`` entries: sums of unscaled rewards, and
        environment steps.

    Raises:
        ValueError: ``episodes < 1``, or an environment without episode statistics.
        NonFiniteError: an observation is NaN or infinite.
        UnfinishedEpisodeError: an episode did not end within ``max_steps``.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be an integer of at least 1, got {episodes}.")
    missing = {EPISODE_REWARD_KEY, STEP_COUNT_KEY} - set(env.observation_spec.keys())
    if missing or env.batch_dims != 1:
        raise ValueError(
            f"env must have one batch dimension and write {EPISODE_REWARD_KEY!r} and "
            f"{STEP_COUNT_KEY!r}, got the batch size {tuple(env.batch_size)} and no "
            f"{sorted(missing)}; build it with collectors.make_env."
        )
    returns: list[float] = []
    lengths: list[int] = []
    devices = _cuda_devices(policy)
    modes = {module: module.training for module in policy.modules()}
    policy.eval()
    try:
        for round_index in range(-(-episodes // env.batch_size[0])):
            round_seed = derive_seed(seed, round_index)
            with RandomStream(round_seed, devices), set_exploration_type(exploration_type):
                env.set_seed(round_seed)
                round_returns, round_lengths = _one_episode_each(policy, env, max_steps)
            returns += round_returns
            lengths += round_lengths
    finally:
        for module, mode in modes.items():
            module.training = mode
    return returns[:episodes], lengths[:episodes]


def _one_episode_each(
    policy: TensorDictModuleBase, env: EnvBase, max_steps: int
) -> tuple[list[float], list[int]]:
    """Return and length of the first episode of every copy, in the order of the copies."""
    shape = (*env.batch_size, 1)
    returns = torch.zeros(shape, device=env.device)
    lengths = torch.zeros(shape, dtype=torch.int64, device=env.device)
    running = torch.ones(shape, dtype=torch.bool, device=env.device)
    policy_device = next(policy.parameters(), returns).device
    carrier = env.reset()
    _check_observations(env, carrier, running)
    for _ in range(max_steps):
        stepped, carrier = env.step_and_maybe_reset(
            policy(carrier.to(policy_device)).to(returns.device)
        )
        _check_observations(env, stepped["next"], running)
        ended = stepped["next", "done"] & running
        returns = torch.where(ended, stepped["next", EPISODE_REWARD_KEY], returns)
        lengths = torch.where(ended, stepped["next", STEP_COUNT_KEY], lengths)
        running = running & ~ended
        if not running.any():
            return returns.squeeze(-1).tolist(), lengths.squeeze(-1).tolist()
    raise UnfinishedEpisodeError(
        f"evaluate: {int(running.sum())} episode(s) did not end within max_steps={max_steps}; give "
        "make_env a max_episode_steps."
    )


def _check_observations(env: EnvBase, tensordict: TensorDictBase, running: torch.Tensor) -> None:
    """Raise NonFiniteError for NaN or infinity in the observations of the ``running`` copies."""
    for key, spec in env.observation_spec.items(True, True):
        if key == EPISODE_REWARD_KEY or not spec.dtype.is_floating_point:
            continue
        finite = tensordict[key].reshape(len(running), -1).isfinite().all(-1, keepdim=True)
        bad = ~finite & running
        if bad.any():
            raise NonFiniteError(
                f"observation {key!r} is not finite in {int(bad.sum())} of {len(running)} "
                f"environments at step {int(tensordict[STEP_COUNT_KEY][bad][0])} of an episode."
            )


def _cuda_devices(policy: TensorDictModuleBase) -> list[torch.device]:
    tensors = (*policy.parameters(), *policy.buffers())
    return list({tensor.device for tensor in tensors if tensor.is_cuda})
