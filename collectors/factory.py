"""Collectors: seeded, single-process or multi-process, always ``[environments, time]``."""

from collections.abc import Callable

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import BaseCollector, Collector
from torchrl.envs import EnvBase, ExplorationType

from collectors.envs import derive_seed
from collectors.noise import NoiseStream
from collectors.workers import WorkerEnv, start_workers


def make_collector(
    env_fn: Callable[[], EnvBase],
    policy: TensorDictModuleBase | None,
    *,
    frames_per_batch: int,
    seed: int,
    total_frames: int = -1,
    random_frames: int = 0,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    exploration_type: ExplorationType = ExplorationType.RANDOM,
) -> BaseCollector:
    """Build a TorchRL collector whose rollouts have the shape ``[environments, time]``.

    The same seed gives the same rollouts and different seeds give different ones, simulators and
    exploration noise alike: the noise comes from a random stream of the collector's own, so that
    collecting neither reads nor moves the global one. Give each rank its own seed, for example
    ``derive_seed(seed, rank)``.

    The collector acts with ``policy`` itself, not with a copy, so changes made in place (as
    optimisers do) are seen at the next step. Worker processes share the memory of a CPU policy;
    call ``collector.update_policy_weights_()`` after an update when the policy is on a GPU.
    :class:`collectors.OnPolicyStream` does so before each rollout.

    Args:
        env_fn: builds a batched environment, for example ``partial(make_env, "Hopper-v5",
            num_envs=16)``. Called once in this process or once in each worker. The seed it sets,
            if any, is replaced.
        policy: writes the action (and, for on-policy methods, the chain). Must already be on
            ``device``. ``None`` acts at random.
        frames_per_batch: environment steps in a rollout, over all environments and workers.
        seed: non-negative integer.
        total_frames: environment steps in total, a multiple of ``frames_per_batch``; -1: endless.
        random_frames: the first this many environment steps, a multiple of ``frames_per_batch``,
            act uniformly at random within the bounds of the actions instead of with ``policy``.
            Whatever else the policy writes is zero in their rows.
        num_workers: 0 collects in this process. ``n > 0`` starts ``n`` processes with one batched
            environment each. Scripts then need ``if __name__ == "__main__":``, and ``env_fn`` must
            work in a fresh process: name an id of your own ``"module:Id-v0"``. On a machine with
            few cores one process with more environments is faster.
        device: where the policy runs and the rollouts are stored.
        exploration_type: RANDOM samples from the policy.

    Returns:
        A collector that yields TensorDicts ``[E, T]`` with ``E`` the number of environments over
        all workers and ``T = frames_per_batch / E``. Call ``shutdown()`` when done.

    Raises:
        ValueError: a frame count that cannot be met, a policy on another device, or another
            argument out of range.

    Example:
        >>> from functools import partial
        >>> from collectors import make_env
        >>> env_fn = partial(make_env, "Pendulum-v1", num_envs=2)
        >>> collector = make_collector(env_fn, None, frames_per_batch=10, seed=0)
        >>> next(iter(collector)).shape
        torch.Size([2, 5])
        >>> collector.shutdown()
    """
    _check_counts(frames_per_batch, total_frames, random_frames, num_workers)
    device = _with_index(torch.device(device))
    _check_policy_device(policy, device)
    env = env_fn()
    try:
        _check_divisible(frames_per_batch, env, num_workers)
    except ValueError:
        env.close()
        raise
    if num_workers:
        env.close()
        return start_workers(
            [WorkerEnv(env_fn, seed, worker) for worker in range(num_workers)],
            policy,
            frames_per_batch=frames_per_batch,
            total_frames=total_frames,
            init_random_frames=random_frames,
            policy_device=device,
            storing_device=device,
            exploration_type=exploration_type,
        )
    env.set_seed(derive_seed(seed))
    stream = NoiseStream(derive_seed(seed, 0, 1), device)
    on_cpu = device.type == "cpu"
    return Collector(
        env,
        policy,
        frames_per_batch=frames_per_batch,
        total_frames=total_frames,
        init_random_frames=random_frames,
        policy_device=None if on_cpu else device,
        storing_device=None if on_cpu else device,
        exploration_type=exploration_type,
        auto_register_policy_transforms=False,
        pre_collect_hook=stream.enter,
        post_collect_hook=stream.leave,
    )


def _check_counts(
    frames_per_batch: int, total_frames: int, random_frames: int, num_workers: int
) -> None:
    if frames_per_batch < 1:
        raise ValueError(f"frames_per_batch must be at least 1, got {frames_per_batch}.")
    if num_workers < 0:
        raise ValueError(
            f"num_workers must be 0 (collect in this process) or more, got {num_workers}."
        )
    if total_frames != -1 and (total_frames < 1 or total_frames % frames_per_batch):
        above = max(1, -(-total_frames // frames_per_batch)) * frames_per_batch
        raise ValueError(
            f"total_frames must be -1 (endless) or a multiple of frames_per_batch="
            f"{frames_per_batch}, got {total_frames}; try {above}."
        )
    if random_frames < 0 or random_frames % frames_per_batch:
        above = max(0, -(-random_frames // frames_per_batch)) * frames_per_batch
        raise ValueError(
            f"random_frames must be 0 or a multiple of frames_per_batch={frames_per_batch}, got "
            f"{random_frames}; try {above}."
        )


def _check_divisible(frames_per_batch: int, env: EnvBase, num_workers: int) -> None:
    """Raise ValueError unless every environment makes the same whole number of steps."""
    if env.batch_dims != 1:
        raise ValueError(
            f"env_fn must build an environment with one batch dimension, got the batch size "
            f"{tuple(env.batch_size)}; collectors.make_env does."
        )
    workers = max(num_workers, 1)
    environments = env.batch_size[0] * workers
    if frames_per_batch % environments:
        above = -(-frames_per_batch // environments) * environments
        raise ValueError(
            f"frames_per_batch must be a multiple of the number of environments, {environments} "
            f"({env.batch_size[0]} per process, {workers} process(es)), got {frames_per_batch}; "
            f"try {above}."
        )


def _with_index(device: torch.device) -> torch.device:
    # TorchRL compares devices by equality, and cuda != cuda:0: it would copy the policy.
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _check_policy_device(policy: TensorDictModuleBase | None, device: torch.device) -> None:
    """Raise ValueError when the policy is elsewhere: TorchRL would act with a stale copy of it."""
    if policy is None:
        return
    for name, tensor in (*policy.named_parameters(), *policy.named_buffers()):
        if tensor.device != device:
            raise ValueError(
                f"policy: {name} is on {tensor.device}, but device={device} was asked for; move "
                f"the policy first (policy.to({str(device)!r})) or pass device="
                f"{str(tensor.device)!r}."
            )
