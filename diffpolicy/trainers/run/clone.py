"""Behaviour cloning: a run whose policy is fitted to demonstrations, for others to go on from."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from collectors import RandomStream, derive_seed
from collectors.streams.demonstrations import bounded_actions, finite_entry
from collectors.streams.windows import END_KEYS, demonstrated_windows
from diffpolicy.actors import RegressionActor, observation_keys
from diffpolicy.errors import ArgumentError
from diffpolicy.networks import RunningNorm
from diffpolicy.trainers.config.run import RunConfig
from diffpolicy.trainers.errors import TrainingError
from diffpolicy.trainers.io.checkpoint import CLONE_KEY
from diffpolicy.trainers.loops.base import RLModule
from diffpolicy.trainers.loops.evaluation import Evaluation
from diffpolicy.trainers.run.from_data import check_config, prepared, write_run
from diffpolicy.trainers.run.launch import Run, start_folder
from diffpolicy.trainers.run.scope import run_scope
from diffpolicy.trainers.run.trained import evaluate_run
from objectives import BehaviorCloningLoss

# For the numbers that cloning draws, beside those of networks and environments.
_STREAM = 5
_REPORTS = 10


@dataclass(frozen=True)
class Cloning:
    """How a policy is fitted to demonstrations.

    Attributes:
        updates: steps of Adam; None counts them by ``epochs``.
        epochs: passes over the data.
        batch_size: transitions of an update.
        lr: learning rate at the start; it falls to 0 along half a cosine.
        clip_actions: whether actions outside of the bounds are clipped to them.

    Raises:
        ArgumentError: for values outside of their range.
    """

    updates: int | None = None
    epochs: int = 100
    batch_size: int = 256
    lr: float = 1e-3
    clip_actions: bool = False

    def __post_init__(self) -> None:
        for name in ("updates", "epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(name, value, "must be at least 1.")
        if not self.lr > 0:
            raise ArgumentError("lr", self.lr, "must be above 0.")

    def total(self, rows: int) -> int:
        """Number of updates on so many rows."""
        return self.updates or self.epochs * -(-rows // self.batch_size)


def clone(
    config: RunConfig,
    data: TensorDictBase,
    cloning: Cloning,
    source: str = "data",
    report: Callable[[int, int, float], None] = lambda update, total, loss: None,
) -> tuple[Evaluation, Path]:
    """Fit the policy of a method to demonstrations, evaluate it, and write the folder of a run.

    The networks are those that a run with this configuration starts with. Observation statistics
    become those of the data; critics, temperatures and the process stay as they are. The folder
    holds ``config.yaml``, ``results.json`` and a checkpoint for :func:`diffpolicy.load_policy`,
    ``diffpolicy eval`` and ``--init-from``. The same configuration and data give the same policy
    on a CPU.

    Args:
        config: of a method whose policy is a chain; ``output`` is the folder.
        data: transitions ``[R]`` with single observations and actions of the environment; histories
            and chunks are made of them (:func:`collectors.demonstrated_windows`).
        cloning: how.
        source: what the data is called in messages and in the checkpoint.
        report: called now and then with the update, their number and the loss.

    Returns:
        The evaluation, and the folder.

    Raises:
        ArgumentError: naming ``method`` or ``data``, if they do not fit; nothing is written then.
        ValueError: for a configuration that does not work.
        TrainingError: the loss is not finite, or the folder cannot be written to.
    """
    needed = {"gpus": 0, "cpu_ranks": 1, "resume": None}
    check_config(config, needed, what="cloning", hint=_others())
    with prepared(config) as run:
        assert run.lock is not None  # there is one process
        actor = run.module.actor
        if not isinstance(actor, RegressionActor):
            raise ArgumentError("method", config.method, f"has no chain; {_others()}")
        rows = _fitting(data, actor, config, cloning, source)
        start_folder(run, run.lock)
        with run_scope(torch.device("cpu")):
            return _clone(run, rows, cloning, source, report), run.output


def _others() -> str:
    return "choose one with a chain, such as diffppo, diffsac or dime."


def _fitting(
    data: TensorDictBase, actor: RegressionActor, config: RunConfig, cloning: Cloning, source: str
) -> TensorDictBase:
    """Observations and actions in memory, of the types and shapes that the actor has."""
    keys, action_key = observation_keys(actor), actor.keys.action
    rows = data.select(*keys, action_key, *END_KEYS, strict=False).clone()
    for key in (*keys, action_key):
        value = finite_entry(rows, key, source)
        rows.set(key, value.float() if value.dtype != torch.uint8 else value)
    rows.set(action_key, _inside(rows.get(action_key), actor, config, cloning, source))
    rows = demonstrated_windows(
        rows,
        keys,
        action_key=action_key,
        frame_stack=config.frame_stack,
        action_chunk=config.action_chunk,
        source=source,
    )
    _check_observations(rows, actor, source)
    return rows


def _inside(
    action: Tensor, actor: RegressionActor, config: RunConfig, cloning: Cloning, source: str
) -> Tensor:
    """Single actions ``[R, A]``, clipped to the bounds of the environment."""
    chunks = (actor.squash.low, actor.squash.high)
    low, high = (bound[: len(bound) // config.action_chunk] for bound in chunks)
    hint = None if cloning.clip_actions else "clip_actions (--clip-actions) clips them"
    return bounded_actions(action, low, high, source, hint)


def _check_observations(rows: TensorDictBase, actor: RegressionActor, source: str) -> None:
    """Raise ArgumentError unless the actor acts on the first rows."""
    try:
        with torch.no_grad():
            actor.sample_action(rows[:2].select(*observation_keys(actor)))
    except (RuntimeError, ValueError) as error:
        shapes = {str(key): list(rows.get(key).shape[1:]) for key in observation_keys(actor)}
        words = " ".join(str(error).split())
        problem = f"has observations {shapes}, which the policy does not read: {words}"
        raise ArgumentError("data", source, problem) from error


def _clone(
    run: Run,
    rows: TensorDictBase,
    cloning: Cloning,
    source: str,
    report: Callable[[int, int, float], None],
) -> Evaluation:
    module, config = run.module, run.config
    progress = module.progress
    progress.start_clock()
    _take_statistics(module, rows)
    total = cloning.total(len(rows))
    with RandomStream(derive_seed(config.seed, _STREAM)):
        _fit(module, rows, cloning, total, report)
    progress.gradient_steps = total
    evaluation = evaluate_run(module)
    progress.tick()
    progress.evaluations.append(evaluation)
    write_run(run, CLONE_KEY, {"data": source, "transitions": len(rows), "updates": total})
    return evaluation


def _take_statistics(module: RLModule, rows: TensorDictBase) -> None:
    """Let the actor's observation statistics be those of the rows."""
    keys: list[NestedKey] = observation_keys(module.loss.actor_network)
    vectors = [rows.get(key) for key in keys if rows.get(key).ndim == 2]
    for part in module.loss.actor_network.modules():
        if isinstance(part, RunningNorm):
            part.update(torch.cat(vectors, -1))


def _fit(
    module: RLModule,
    rows: TensorDictBase,
    cloning: Cloning,
    total: int,
    report: Callable[[int, int, float], None],
) -> None:
    """Adam on minibatches; the loss shares its parameters with the module's."""
    loss = BehaviorCloningLoss(module.loss.actor_network)
    parameters = [p for p in loss.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(parameters, cloning.lr, fused=True)
    recent: list[Tensor] = []
    for update, batch in enumerate(_minibatches(rows, cloning.batch_size, total), 1):
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * cloning.lr * (1 + math.cos(math.pi * (update - 1) / total))
        value = loss(batch)["loss_actor"]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        recent.append(value.detach())
        if update * _REPORTS // total > (update - 1) * _REPORTS // total:
            mean = float(torch.stack(recent).mean())
            if not math.isfinite(mean):
                raise TrainingError(f"the loss is {mean} after {update} updates; try a lower --lr.")
            report(update, total, mean)
            recent.clear()


def _minibatches(rows: TensorDictBase, size: int, number: int) -> Iterator[TensorDictBase]:
    """So many minibatches; each pass over the rows has an order of its own."""
    while number > 0:
        for index in torch.randperm(len(rows)).split(size)[:number]:
            number -= 1
            yield rows[index]
