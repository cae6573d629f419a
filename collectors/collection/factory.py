"""Collectors: seeded, single-process or multi-process, always ``[environments, time]``."""

import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Literal, get_args

import torch
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import BaseCollector, Collector
from torchrl.envs import EnvBase, ExplorationType

from collectors.collection.frame_counts import check_whole_rollouts
from collectors.collection.process_workers import ProcessWorkers
from collectors.collection.ray_workers import RayWorkers, check_ray
from collectors.collection.workers import WorkerCollector, WorkerEnv, WorkerGroup
from collectors.environments.own_memory import with_own_memory
from collectors.randomness import RandomStream
from collectors.seeding import derive_seed

Backend = Literal["local", "process", "ray"]


def make_collector(
    env_fn: Callable[[], EnvBase],
    policy: TensorDictModuleBase | None,
    *,
    frames_per_batch: int,
    seed: int,
    total_frames: int = -1,
    random_frames: int = 0,
    backend: Backend = "local",
    num_workers: int = 0,
    restarts: int = 0,
    on_restart: Callable[[str], None] = warnings.warn,
    device: torch.device | str = "cpu",
    compile_policy: bool = False,
    exploration_type: ExplorationType = ExplorationType.RANDOM,
) -> BaseCollector:
    """Build a TorchRL collector whose rollouts have the shape ``[environments, time]``.

    The same seed gives the same rollouts and different seeds give different ones, simulators and
    exploration noise alike. The noise, and whatever an environment draws from the global generators
    of NumPy, Python or torch, comes from generators of the collector's own
    (:class:`collectors.RandomStream`), so that collecting neither reads nor moves the global ones.
    Give each rank its own seed, for example ``derive_seed(seed, rank)``.

    A local collector acts with ``policy`` itself, not with a copy, so changes made in place (as
    optimisers do) are seen at the next step. With workers, call
    ``collector.update_policy_weights_()`` after changes: the next rollout acts with them.
    :class:`collectors.OnPolicyStream` and :class:`collectors.OffPolicyStream` do so before each
    rollout.

    A worker that raises or dies, even by ``kill -9``, ends the rollout within seconds by a
    :class:`collectors.WorkerError` that holds its traceback or exit code. The other workers end
    too, unless ``restarts`` allows to start all of them anew. Workers end with this process and
    ignore SIGINT, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2, so that Ctrl-C leaves the decision to it
    (those of Ray take SIGTERM).

    Ray: without a cluster, one is started on this machine and ends with this process. To use
    others, start a cluster on them (``ray start``), install this package on all of them, and set
    ``RAY_ADDRESS`` (``auto`` finds the cluster of this machine) or call ``ray.init`` before. Each
    worker takes one CPU and no GPU, and acts on its CPU. What workers print goes to Ray's logs.

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
        backend: ``"local"`` collects in this process, ``"process"`` in worker processes of this
            machine, ``"ray"`` in those of a Ray cluster (needs ``pip install 'diffpolicy[ray]'``).
        num_workers: number of workers, with one batched environment each; 0 for ``"local"``.
            Scripts then need ``if __name__ == "__main__":``, and ``env_fn`` and ``policy`` must
            work in a fresh process: name an id of your own ``"module:Id-v0"``. On a machine with
            few cores one process with more environments is faster.
        restarts: how often workers that fail are started anew, with new seeds and new episodes.
            The rollout is then collected again.
        on_restart: called with one line that says why workers are started anew.
        device: where the policy runs and the rollouts are stored. Environments stay where they
            are: those of Gymnasium on the CPU, those of TorchRL on their device.
        compile_policy: act with ``torch.compile(policy)``; with CUDA graphs if that is on a GPU.
        exploration_type: RANDOM samples from the policy.

    Returns:
        A collector that yields TensorDicts ``[E, T]`` with ``E`` the number of environments over
        all workers and ``T = frames_per_batch / E``. Call ``shutdown()`` when done.

    Raises:
        ValueError: a frame count that cannot be met, a policy on another device, a package that is
            missing, or another argument out of range.
        WorkerError: workers cannot be started; also raised while collecting.

    Example:
        >>> from functools import partial
        >>> from collectors import make_env
        >>> env_fn = partial(make_env, "Pendulum-v1", num_envs=2)
        >>> collector = make_collector(env_fn, None, frames_per_batch=10, seed=0)
        >>> next(iter(collector)).shape
        torch.Size([2, 5])
        >>> collector.shutdown()
    """
    _check_counts(frames_per_batch, total_frames, random_frames)
    _check_workers(backend, num_workers, restarts)
    device = _with_index(torch.device(device))
    _check_policy_device(policy, device)
    on_cpu = device.type == "cpu"
    acting = policy
    options: dict[str, Any] = {
        "exploration_type": exploration_type,
        "frames_per_batch": frames_per_batch,
    }
    if compile_policy and policy is not None:
        if on_cpu or backend == "ray":
            acting = torch.compile(policy)
        else:
            # TorchRL copies what the policy writes: the next replay of a CUDA graph overwrites it.
            options["compile_policy"] = {"mode": "reduce-overhead"}
    # Environments may draw from global generators, in their constructors, too.
    with RandomStream(derive_seed(seed, 0, 2)):
        env = env_fn()
        try:
            _check_divisible(frames_per_batch, env, num_workers)
        except ValueError:
            _close(env)
            raise
        if not num_workers:
            options |= {"total_frames": total_frames, "init_random_frames": random_frames}
            return _local(env, acting, seed, device, **options)
        _close(env)
    return WorkerCollector(
        partial(_start, backend, env_fn, acting, seed, num_workers, device, options),
        acting,
        frames_per_batch=frames_per_batch,
        total_frames=total_frames,
        random_frames=random_frames,
        restarts=restarts,
        on_restart=on_restart,
    )


def _close(env: EnvBase) -> None:
    # It was only looked at: workers that cannot close theirs say so themselves.
    with suppress(Exception):
        env.close()


def _local(
    env: EnvBase,
    policy: TensorDictModuleBase | None,
    seed: int,
    device: torch.device,
    **options: Any,
) -> Collector:
    env.set_seed(derive_seed(seed))
    on_cpu = device.type == "cpu" and env.device in (None, device)
    devices = {place for place in (device, env.device) if place is not None and place.type != "cpu"}
    stream = RandomStream(derive_seed(seed, 0, 1), list(devices))
    return Collector(
        with_own_memory(env),
        policy,
        env_device=None if on_cpu else env.device or torch.device("cpu"),
        policy_device=None if on_cpu else device,
        storing_device=None if on_cpu else device,
        auto_register_policy_transforms=False,
        pre_collect_hook=stream.enter,
        post_collect_hook=stream.leave,
        **(_new_memory(policy, options["init_random_frames"]) if on_cpu else {}),
        **options,
    )


def _new_memory(policy: TensorDictModuleBase | None, random_frames: int) -> dict[str, bool]:
    """Arguments that have every rollout stacked into memory of its own.

    By default TorchRL stacks it into a buffer, which it has first to make from the specs, and then
    copies that.
    """
    written = [] if policy is None else list(policy.out_keys)
    if random_frames and len(written) > 1:
        # The buffer holds zeros where random steps lack what the policy writes.
        return {}
    return {"use_buffers": False, "return_same_td": True}


def _start(
    backend: Backend,
    env_fn: Callable[[], EnvBase],
    policy: TensorDictModuleBase | None,
    seed: int,
    num_workers: int,
    device: torch.device,
    options: dict[str, Any],
    attempt: int,
    random_frames: int,
) -> WorkerGroup:
    """Start workers; the last two arguments are those of :data:`StartWorkers`."""
    group = ProcessWorkers if backend == "process" else RayWorkers
    env_fns = [WorkerEnv(env_fn, seed, worker, attempt) for worker in range(num_workers)]
    return group(env_fns, policy, device=device, init_random_frames=random_frames, **options)


def _check_workers(backend: str, num_workers: int, restarts: int) -> None:
    if backend not in get_args(Backend):
        raise ValueError(f"backend must be one of {', '.join(get_args(Backend))}, got {backend!r}.")
    if backend == "local" and num_workers:
        raise ValueError(
            f"num_workers must be 0 with backend='local', got {num_workers}; try backend='process'."
        )
    if backend != "local" and num_workers < 1:
        raise ValueError(
            f"num_workers must be at least 1 with backend={backend!r}, got {num_workers}."
        )
    if restarts < 0 or (restarts and backend == "local"):
        raise ValueError(
            f"restarts must be 0, or more with workers, got {restarts} with backend={backend!r}."
        )
    if backend == "ray":
        check_ray()


def _check_counts(frames_per_batch: int, total_frames: int, random_frames: int) -> None:
    if frames_per_batch < 1:
        raise ValueError(f"frames_per_batch must be at least 1, got {frames_per_batch}.")
    check_whole_rollouts("total_frames", total_frames, frames_per_batch, also=-1)
    check_whole_rollouts("random_frames", random_frames, frames_per_batch, also=0)


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
