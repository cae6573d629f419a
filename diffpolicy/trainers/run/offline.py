"""Offline training: the networks of an off-policy method, fitted to a data set of transitions."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tensordict import TensorDictBase

from collectors import RandomStream, derive_seed, make_replay_buffer
from collectors.streams.replay import give_back
from diffpolicy.errors import ArgumentError
from diffpolicy.trainers.config.off_policy import OffPolicyConfig
from diffpolicy.trainers.config.run import RunConfig
from diffpolicy.trainers.errors import TrainingError
from diffpolicy.trainers.io import files
from diffpolicy.trainers.io.checkpoint import OFFLINE_KEY
from diffpolicy.trainers.io.metrics_table import MetricsTable
from diffpolicy.trainers.loops.evaluation import Evaluation
from diffpolicy.trainers.loops.off_policy import OffPolicyModule
from diffpolicy.trainers.loops.transitions import FittingData
from diffpolicy.trainers.loops.updates import Updates
from diffpolicy.trainers.run.from_data import check_config, prepared, write_run
from diffpolicy.trainers.run.launch import Run, start_folder
from diffpolicy.trainers.run.scope import run_scope
from diffpolicy.trainers.run.trained import evaluate_run

# For the numbers that training draws, beside those of networks, environments and cloning.
_STREAM = 6
_HINT = "choose an off-policy one, such as diffusion_ql, dime or sac."
# Options that have no place without steps of the environment, or that data sets do not have.
_NEEDED = {
    "gpus": 0,
    "cpu_ranks": 1,
    "resume": None,
    "demonstrations": None,
    "policy_starts": 0,
}


@dataclass(frozen=True)
class OfflineTraining:
    """How a method is trained on a data set.

    Attributes:
        updates: of the networks.
        evaluations: how often the policy is evaluated, at equal distances, the last time at the
            end.
        lr_decay: whether learning rates fall to 0 along half a cosine.
        clip_actions: whether actions outside of the bounds are clipped to them.

    Raises:
        ArgumentError: for values outside of their range.
    """

    updates: int = 20_000
    evaluations: int = 5
    lr_decay: bool = False
    clip_actions: bool = False

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise ArgumentError("updates", self.updates, "must be at least 1.")
        if not 1 <= self.evaluations <= self.updates:
            problem = f"must be between 1 and the {self.updates} updates."
            raise ArgumentError("evaluations", self.evaluations, problem)

    def evaluation_due(self, update: int) -> bool:
        """Whether there is an evaluation after so many updates."""
        number, total = self.evaluations, self.updates
        return update * number // total > (update - 1) * number // total

    def rate(self, update: int) -> float:
        """What learning rates are multiplied by in an update, from 1 on."""
        if not self.lr_decay:
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (update - 1) / self.updates))


def train_offline(
    config: RunConfig,
    data: TensorDictBase,
    training: OfflineTraining,
    source: str = "data",
    report: Callable[[dict[str, float]], None] = lambda metrics: None,
) -> tuple[Evaluation, Path]:
    """Train the networks of a method on transitions, evaluate the policy, and write a run's folder.

    Loss, updates, optimisers and target networks are those of a run with this configuration; its
    replay buffer holds the data, and nothing is added to it. The size of returns, by which rewards
    are divided, is that of the data. The folder holds ``config.yaml``, ``metrics.csv`` with a row
    for each evaluation, ``results.json`` with the last one, and a checkpoint for
    :func:`diffpolicy.load_policy`, ``diffpolicy eval`` and ``--init-from``, which takes the critics
    along. The same configuration and data give the same networks on a CPU.

    Args:
        config: of an off-policy method; ``output`` is the folder.
        data: transitions ``[R]``, the episodes one after the other, with all that the replay
            buffer of a run holds, and ``next.done``.
        training: how.
        source: what the data is called in messages and in the checkpoint.
        report: called after each evaluation with its row of metrics.

    Returns:
        The last evaluation, and the folder.

    Raises:
        ArgumentError: naming ``method``, ``data`` or another option that does not fit; nothing is
            written then.
        ValueError: for a configuration that does not work.
        TrainingError: a loss is not finite, or the folder cannot be written to.
    """
    if not isinstance(config, OffPolicyConfig):
        raise ArgumentError("method", config.method, f"learns from its own rollouts; {_HINT}")
    check_config(config, _NEEDED, what="offline training", hint=_HINT)
    with prepared(_as_long_as(config, training.updates)) as run:
        assert run.lock is not None  # there is one process
        assert isinstance(run.module, OffPolicyModule)
        fitting = run.module.fitting(data, source, clip_actions=training.clip_actions)
        start_folder(run, run.lock)
        with run_scope(torch.device("cpu")), RandomStream(derive_seed(config.seed, _STREAM)):
            return _train(run, run.module, fitting, training, source, report), run.output


def _as_long_as(config: OffPolicyConfig, updates: int) -> OffPolicyConfig:
    """The configuration of a run with so many updates, which schedules of methods count."""
    frames = config.refill_frames + math.ceil(updates / config.updates_per_step)
    return replace(config, total_frames=frames)


def _train(
    run: Run,
    module: OffPolicyModule,
    fitting: FittingData,
    training: OfflineTraining,
    source: str,
    report: Callable[[dict[str, float]], None],
) -> Evaluation:
    progress, table = module.progress, MetricsTable(run.output / files.METRICS_FILE)
    module.train()
    progress.start_clock()
    module.rewards.note_data(fitting.steps)
    module.rewards.update()
    step, updates = _stepper(module, fitting.rows, training)
    while progress.gradient_steps < training.updates:
        updates.start(rewards_seen=module.rewards.seen)
        while not step():
            pass
        averages = updates.averages()
        module.check_finite(updates.checked(averages))
        evaluation = evaluate_run(module)
        progress.evaluations[:] = [evaluation]
        progress.tick()
        scores = {
            "eval_return_mean": evaluation.return_mean,
            "eval_return_std": evaluation.return_std,
        }
        counted = {"frames": 0, "gradient_steps": progress.gradient_steps}
        row = {**counted, **scores, **averages, **module.rewards.metrics()}
        table.add(row)
        _write(table)
        done = progress.gradient_steps
        write_run(
            run, OFFLINE_KEY, {"data": source, "transitions": len(fitting.steps), "updates": done}
        )
        report(row)
    return progress.evaluations[-1]


def _stepper(
    module: OffPolicyModule, rows: TensorDictBase, training: OfflineTraining
) -> tuple[Callable[[], bool], Updates]:
    """What makes an update and tells whether an evaluation is due, and its averages."""
    config, parts = module.config, module.parts
    buffer = make_replay_buffer(
        len(rows),
        batch_size=config.batch_size,
        storage=config.replay_storage,
        prioritized=config.prioritized_replay,
        seed=derive_seed(config.seed, _STREAM),
    )
    buffer.extend(rows)
    optimizers = module.configure_optimizers()
    updates = Updates(
        parts,
        lambda: optimizers,
        policy_delay=config.policy_delay,
        begin=module.begin_update,
    )

    def step() -> bool:
        number = module.progress.gradient_steps + 1
        for options, optimizer in zip(parts.optimizers.values(), optimizers, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = training.rate(number) * options.lr
        batch = buffer.sample()
        if parts.complete is not None:
            batch = parts.complete(batch)
        updates.step(module.rewards.scale_(batch), number)
        give_back(buffer, batch, parts.write_back)
        module.progress.gradient_steps = number
        return training.evaluation_due(number)

    return step, updates


def _write(table: MetricsTable) -> None:
    """Write ``metrics.csv``; raises TrainingError if that is not possible."""
    try:
        table.write()
    except OSError as error:
        raise TrainingError(
            f"--output {table.path.parent} cannot be written to: {error}."
        ) from error
