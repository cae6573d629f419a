"""The Lightning module of off-policy methods."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.data import TensorDictReplayBuffer

from collectors import (
    MixedReplay,
    OffPolicyStream,
    environment_steps,
    load_demonstrations,
    load_replay_state,
    make_replay_buffer,
    replay_state,
)
from diffpolicy.errors import ArgumentError
from diffpolicy.trainers.config.off_policy import OffPolicyConfig
from diffpolicy.trainers.io import files
from diffpolicy.trainers.io.resume import replay_file
from diffpolicy.trainers.loops.collecting import BuildParts, CollectingModule
from diffpolicy.trainers.loops.transitions import FittingData, fitting_transitions
from diffpolicy.trainers.loops.updates import OffPolicyParts, Updates
from diffpolicy.trainers.loops.warm_up import WarmUpPolicy
from diffpolicy.trainers.loops.workers import faults_end_training

__all__ = ["OffPolicyModule", "OffPolicyParts"]

# Steps of every environment between two signs of life while a replay buffer is filled.
_WARM_UP_STEPS = 50


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
        self.demonstrations = None if config.demonstrations is None else self._demonstrations()
        self._end_warm_up: Callable[[], None] = lambda: None
        self._collected = 0
        self.updates = Updates(
            self.parts,
            self.optimizer_list,
            policy_delay=config.policy_delay,
            backward=self.manual_backward,
            begin=self.begin_update,
            ranks=config.ranks,
        )

    # ---------------------------------------------------------------------------------------
    # Set-up

    def fitting(
        self, data: TensorDictBase, source: str, *, clip_actions: bool | None = None
    ) -> FittingData:
        """Transitions ``[R]`` of others as the rows that updates read, in memory.

        Arguments and errors are those of :func:`fitting_transitions`.
        """
        env, parts = self._envs[0], self.parts
        fitting = fitting_transitions(
            data, env, parts, self.config, source=source, clip_actions=clip_actions
        )
        for name, start in parts.write_back.items():
            fitting.rows.set(name, fitting.rows[start].clone())
        return fitting

    def _demonstrations(self) -> FittingData:
        """Those of ``--demonstrations``."""
        source = str(self.config.demonstrations)
        try:
            return self.fitting(load_demonstrations(source), source)
        except ArgumentError as error:
            if error.argument != "data":
                raise
            raise ArgumentError("demonstrations", error.value, error.problem) from error

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
        sample = buffer.sample if self.demonstrations is None else self._mixed(buffer).sample
        return OffPolicyStream(
            collector,
            buffer,
            sample=sample,
            frames=config.chunks(config.iteration_frames),
            updates_per_step=config.updates_per_step * config.action_chunk,
            keys=self.parts.keys,
            on_rollout=self.rewards.note,
            write_back=self.parts.write_back,
        )

    def _mixed(self, buffer: TensorDictReplayBuffer) -> MixedReplay:
        """The buffer with demonstrations in its samples."""
        assert self.demonstrations is not None
        fraction = self.config.demonstration_fraction
        assert fraction is not None  # a configuration with demonstrations has filled it in
        return MixedReplay(
            buffer, self.demonstrations.rows, fraction=fraction, complete=self.parts.complete
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
            self.parts.optimizers.values(), self.optimizer_list(), strict=True
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
        if self.demonstrations is not None and self.progress.frames == 0:
            if self.global_rank == 0:
                # Once: ranks have the same ones.
                self.rewards.note_data(self.demonstrations.steps)
            self.rewards.update()
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
        self.updates.start(rewards_seen=self.rewards.seen)
        self._collected = self.stream.collected

    # ---------------------------------------------------------------------------------------
    # Training

    def training_step(self, batch: TensorDictBase, batch_idx: int) -> None:
        """One update; the policy takes part in every ``--policy-delay``-th, once it has begun."""
        self.rewards.scale_(batch)
        number = self.progress.gradient_steps + 1
        self.updates.step(batch, number, policy_waits=self.policy_waits)
        self.progress.gradient_steps = number

    def on_train_epoch_end(self) -> None:
        """Count, evaluate when due, tell the callbacks."""
        progress, stream = self.progress, self.stream
        seconds = progress.tick()
        stream.finish_batch()
        self.rewards.update()
        frames = self.over_ranks(stream.collected - self._collected)
        progress.frames += frames
        averages = self.updates.averages()
        self.check_finite(self.updates.checked(averages))
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

    def optimizer_list(self) -> list[LightningOptimizer]:
        """The optimisers of this rank, in the order of those of the parts."""
        optimizers = self.optimizers()
        assert isinstance(optimizers, list)
        return optimizers
