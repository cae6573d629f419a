"""The Lightning module of off-policy methods."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives import LossModule

from collectors import (
    OffPolicyStream,
    environment_steps,
    load_replay_state,
    make_replay_buffer,
    replay_state,
)
from diffpolicy.trainers.config.off_policy import OffPolicyConfig
from diffpolicy.trainers.io import files
from diffpolicy.trainers.io.resume import replay_file
from diffpolicy.trainers.loops.collecting import BuildParts, CollectingModule
from diffpolicy.trainers.loops.optimizer import Optimizer
from diffpolicy.trainers.loops.ranks import reduce
from diffpolicy.trainers.loops.warm_up import WarmUpPolicy
from diffpolicy.trainers.loops.workers import faults_end_training

# Steps of every environment between two signs of life while a replay buffer is filled.
_WARM_UP_STEPS = 50


@dataclass(frozen=True)
class OffPolicyParts:
    """What distinguishes one off-policy method from another.

    Attributes:
        loss: the loss with all parameters.
        update: called with a batch ``[B]`` and whether the policy moves; the sum of the ``loss_*``
            entries that it returns is minimised, the other scalars are logged. A critic's
            ``td_error`` goes into the batch.
        keys: entries of a transition that ``update`` reads, and so the replay buffer keeps.
        optimizers: one for each part of the loss, by the name under which it is logged.
        update_policy: called with the batch once the critics have moved; returns the losses of
            what is delayed, which ``update`` then leaves out. None has ``update`` compute all
            losses, for one backward pass.
        warm_up: acts in the random steps, for methods that need more of them than the action;
            None leaves them to the collector.
        write_back: entries that ``update`` changes in a batch and the replay buffer keeps, by the
            name of the entry that they start as.
        policy: acts when transitions are collected; None is the actor of the loss.
        before_update: called with the number of each update, from 0, and its batch; measures what
            the update needs and is not measured every time.
        after_update: called after each update, for example to move target networks.
        diagnostics: further numbers to log, read after each iteration.
    """

    loss: LossModule
    update: Callable[[TensorDictBase, bool], Mapping[str, Tensor]]
    keys: list[Any]
    optimizers: Mapping[str, Optimizer]
    update_policy: Callable[[TensorDictBase], Mapping[str, Tensor]] | None = None
    warm_up: TensorDictModuleBase | None = None
    policy: TensorDictModuleBase | None = None
    write_back: Mapping[str, str] = field(default_factory=dict)
    before_update: Callable[[int, TensorDictBase], None] = lambda number, batch: None
    after_update: Callable[[], None] = lambda: None
    diagnostics: Callable[[], dict[str, float]] = field(default=dict)


class OffPolicyModule(CollectingModule[OffPolicyParts, OffPolicyStream]):
    """Random steps, then collection and updates in turns; for any off-policy loss.

    Every rank has its own environments and its own replay buffer. Each update is one backward pass
    of the summed losses, computed inside the wrapped forward, so that gradients are averaged over
    the ranks. The number of updates in an iteration is fixed, so it is the same on every rank.

    A run that is resumed without its replay buffer (see ``--checkpoint-replay``) first fills it
    again, with ``--learning-starts`` steps of the policy.

    Arguments and errors are those of :class:`CollectingModule`.
    """

    config: OffPolicyConfig

    def __init__(
        self, config: OffPolicyConfig, build: BuildParts[OffPolicyParts], device: torch.device
    ) -> None:
        if config.prioritized_replay:
            # Raises before anything else where TorchRL cannot sample by priorities.
            make_replay_buffer(1, batch_size=1, seed=0, prioritized=True)
        super().__init__(config, build, device)
        self._end_warm_up: Callable[[], None] = lambda: None
        self._collected = 0
        # Without those that wait for a reward.
        self._moving = dict(self.parts.optimizers)
        self._totals: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    # ---------------------------------------------------------------------------------------
    # Set-up

    def start_collecting(
        self, policy: TensorDictModuleBase, seed: Callable[[int], int]
    ) -> OffPolicyStream:
        """One step of every environment at a time, a replay buffer, and its batches."""
        config, warm_up = self.config, self.parts.warm_up
        policy = self.parts.policy or policy
        # A policy that has learned already, here or in another run, acts from the start.
        untrained = self.progress.frames == 0 and "actor" not in self.warm_parts
        random_frames = config.chunks(config.learning_starts) if untrained else 0
        if warm_up is not None and random_frames:
            policy, random_frames = WarmUpPolicy(warm_up, policy), 0
            self._end_warm_up = policy.finish
        collector = self.make_collector(
            policy, frames_per_batch=config.num_envs, random_frames=random_frames, seed=seed(1)
        )
        buffer = make_replay_buffer(
            config.replay_size,
            batch_size=config.batch_size,
            storage=config.replay_storage,
            prioritized=config.prioritized_replay,
            seed=seed(2),
            device=self.device,
        )
        return OffPolicyStream(
            collector,
            buffer,
            frames=config.chunks(config.iteration_frames),
            updates_per_step=config.updates_per_step * config.action_chunk,
            keys=self.parts.keys,
            on_rollout=self.rewards.note,
            write_back=self.parts.write_back,
        )

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One Adam for each part of the loss."""
        return [options.build(self.loss) for options in self.parts.optimizers.values()]

    def transfer_batch_to_device(self, batch: Any, device: torch.device, index: int) -> Any:
        """The batch itself, which is there already: priorities are written into it."""
        return batch

    def on_train_start(self) -> None:
        """Evaluate the untrained policy, and fill the replay buffer unless it goes on."""
        self.progress.start_clock()
        # A checkpoint brings the learning rates of the run that wrote it along.
        for options, optimizer in zip(
            self.parts.optimizers.values(), self._optimizers(), strict=True
        ):
            for group in optimizer.param_groups:
                group.update(options.settings)
        if not self.progress.evaluations:
            self.run_evaluation()
        if self.continued.replay is None:
            self._fill_replay()
        self.resume_random_state()

    def _fill_replay(self) -> None:
        """Make ``--learning-starts`` steps in parts, of which the callbacks hear."""
        part = _WARM_UP_STEPS * self.config.num_envs
        total = self.config.chunks(self.config.learning_starts)
        with faults_end_training(self.config.env_name):
            for start in range(0, total, part):
                rows = self.stream.warm_up(min(part, total - start))
                self.progress.frames += self.over_ranks(environment_steps(rows))
                for callback in self.run_callbacks():
                    callback.on_collected(self.trainer, self, self.progress.frames)
        self._end_warm_up()
        self.rewards.update()

    def save_replay(self, folder: Path) -> None:
        """Write this rank's replay buffer into ``folder``."""
        folder.mkdir(exist_ok=True)
        files.write_plain(replay_file(folder, self.global_rank), replay_state(self.stream.buffer))

    def load_replay(self, folder: Path) -> None:
        """Read this rank's replay buffer from ``folder``."""
        path = replay_file(folder, self.global_rank)
        load_replay_state(self.stream.buffer, files.read_plain(path, mmap=True))

    def on_train_epoch_start(self) -> None:
        """Start the averages of this iteration."""
        self.progress.tick()
        seen = self.rewards.seen
        self._moving = {
            name: options
            for name, options in self.parts.optimizers.items()
            if seen or not options.needs_rewards
        }
        self._collected = self.stream.collected
        self._totals.clear()
        self._counts.clear()

    # ---------------------------------------------------------------------------------------
    # Training

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        """One update; the policy takes part in every ``--policy-delay``-th, once it has begun."""
        self.rewards.scale_(batch)
        number = self.progress.gradient_steps
        policy_moves = (number + 1) % self.config.policy_delay == 0 and not self.policy_waits
        parts = self.parts
        due = {name: o.delayed for name, o in self._moving.items() if number % o.interval == 0}
        later = [name for name, delayed in due.items() if delayed] if policy_moves else []
        first = [name for name, delayed in due.items() if not delayed]
        parts.before_update(number, batch)
        if parts.update_policy is None:
            self._step([*first, *later], lambda: parts.update(batch, policy_moves))
        else:
            self._step(first, lambda: parts.update(batch, False))
            if later:
                policy_losses = partial(parts.update_policy, batch)
                self._step(later, policy_losses)
        self.progress.gradient_steps += 1
        parts.after_update()

    def _step(self, names: Sequence[str], losses: Callable[[], Mapping[str, Tensor]]) -> None:
        """One backward pass of the sum of ``losses``, and a step of the optimisers ``names``."""
        self.begin_update()
        out = losses()
        moving = [
            (name, options, optimizer)
            for (name, options), optimizer in zip(
                self.parts.optimizers.items(), self._optimizers(), strict=True
            )
            if name in names
        ]
        for *_, optimizer in moving:
            optimizer.zero_grad()
        self.manual_backward(self._total_loss(out, names))
        self._record({k: v.detach() for k, v in out.items() if v.numel() == 1})
        for name, options, optimizer in moving:
            treated = options.treat_gradients(self.loss)
            self._record({f"grad_{what}_{name}": value for what, value in treated.items()})
            optimizer.step()

    def on_train_epoch_end(self) -> None:
        """Count, evaluate when due, tell the callbacks."""
        progress, stream = self.progress, self.stream
        seconds = progress.tick()
        stream.finish_batch()
        self.rewards.update()
        frames = self.over_ranks(stream.collected - self._collected)
        progress.frames += frames
        averages = self._averages()
        self.check_finite({k: v for k, v in averages.items() if self._must_be_finite(k)})
        metrics = {
            **self.progress_metrics(frames, seconds, stream.episodes),
            "updates": len(stream),
            # Updates for each environment step of a rank, over the run so far.
            "replay_ratio": self.progress.gradient_steps
            * self.trainer.world_size
            / self.progress.frames,
            "replay_size": len(stream.buffer) * self.trainer.world_size,
            **averages,
            **self.rewards.metrics(),
            **self.parts.diagnostics(),
            **self.bound_metrics(),
        }
        metrics.update(self.evaluate_if_due())
        self.end_iteration(metrics)

    # ---------------------------------------------------------------------------------------
    # Helpers

    def _total_loss(self, out: Mapping[str, Tensor], moving: Sequence[str]) -> Tensor:
        losses = [value for key, value in out.items() if key.startswith("loss_")]
        waiting = [o for name, o in self.parts.optimizers.items() if name not in moving]
        if self.trainer.world_size > 1 and waiting:
            # Ranks exchange a gradient of every parameter, hence zeros of what waits.
            sums = [p.sum() for o in waiting for p in o.parameters(self.loss)]
            losses.append(0.0 * torch.stack(sums).sum())
        return torch.stack(losses).sum()

    def _must_be_finite(self, name: str) -> bool:
        """Whether a run ends when this average is not; clipped gradients may be anything before."""
        options = self.parts.optimizers.get(name.partition("grad_norm_")[2])
        return name.startswith("loss_") or (options is not None and options.grad_limit is None)

    def _optimizers(self) -> list[LightningOptimizer]:
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        return optimizers

    def _record(self, scalars: Mapping[str, Tensor]) -> None:
        """Add to the sums of this iteration, on the device: nothing waits for it."""
        for name, value in scalars.items():
            # A new tensor each time: the next update of a CUDA graph overwrites the value.
            self._totals[name] = self._totals.get(name, 0.0) + value.reshape(())
            self._counts[name] = self._counts.get(name, 0) + 1

    def _averages(self) -> dict[str, float]:
        """Means over the updates of this iteration and over the ranks."""
        if not self._totals:
            return {}
        means = [self._totals[name] / count for name, count in self._counts.items()]
        values = reduce(torch.stack([mean.double() for mean in means]), average=True)
        return dict(zip(self._counts, values.tolist(), strict=True))
