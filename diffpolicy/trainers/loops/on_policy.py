"""The Lightning module of on-policy methods."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives import LossModule

from collectors import OnPolicyStream, environment_steps, episode_stats
from diffpolicy.networks import RunningNorm
from diffpolicy.trainers.config.on_policy import OnPolicyConfig
from diffpolicy.trainers.loops.averages import Averages
from diffpolicy.trainers.loops.collecting import BuildParts, CollectingModule
from diffpolicy.trainers.loops.ranks import reduce

# Where losses have their state values and Q values.
_CRITICS = ("critic_network_params.", "qvalue_network_params.")


@dataclass(frozen=True)
class OnPolicyParts:
    """What distinguishes one on-policy method from another.

    Attributes:
        loss: called with rows; the sum of its ``loss_*`` entries is minimised and its other
            scalars are logged. The policy's movement is read from ``kl``, else ``kl_approx``.
        prepare: turns a rollout ``[E, T]`` into flat training rows (advantages included).
        normalizer: observation statistics, updated once per iteration.
        grad_norms: parts of the loss whose gradient norm is limited, each on its own, by the name
            under which the norm is logged; an empty part is the whole loss.
        lr_multipliers: factor on the learning rate of the parameters whose dotted name has this
            part, for example ``{"process": 3.0}``.
        diagnostics: further numbers to log, read after each iteration.
        anneal: called before the first iteration and after each one with the share of the learning
            rate that is left, from 1 to 0.
    """

    loss: LossModule
    prepare: Callable[[TensorDictBase], TensorDictBase]
    normalizer: RunningNorm | None = None
    grad_norms: Mapping[str, str] = field(default_factory=lambda: {"grad_norm": ""})
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)
    diagnostics: Callable[[], dict[str, float]] = dict
    anneal: Callable[[float], None] = lambda left: None


class OnPolicyModule(CollectingModule[OnPolicyParts, OnPolicyStream]):
    """Collect, train for some epochs on minibatches, evaluate; for any on-policy loss.

    Every rank has its own environments. Each optimiser step is one backward pass of the summed
    losses, computed inside the wrapped forward, so that gradients are averaged over the ranks.
    Every decision that changes the number of optimiser steps (the KL limit, a loss that is not
    finite, a request to stop) rests on numbers averaged over the ranks.

    Arguments and errors are those of :class:`CollectingModule`.
    """

    config: OnPolicyConfig

    def __init__(
        self, config: OnPolicyConfig, build: BuildParts[OnPolicyParts], device: torch.device
    ) -> None:
        super().__init__(config, build, device)
        self._averages = Averages()
        self._updates = 0
        self._lr = config.lr
        self._multipliers: dict[str, float] = {}
        if config.compile_mode is not None:
            self.loss.compile(mode=config.compile_mode)

    @property
    def optimizer(self) -> LightningOptimizer:
        """The one optimiser."""
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        return optimizer

    # ---------------------------------------------------------------------------------------
    # Set-up

    def start_collecting(
        self, policy: TensorDictModuleBase, seed: Callable[[int], int]
    ) -> OnPolicyStream:
        """Whole rollouts of all environments, and minibatches of their rows."""
        config = self.config
        return OnPolicyStream(
            self.make_collector(policy, frames_per_batch=config.rollout_frames, seed=seed(1)),
            self._prepare,
            rows=config.rollout_rows,
            minibatch_size=config.minibatch_rows,
            epochs=config.epochs,
            seed=seed(2),
            device=self.device,
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, with a parameter group for each learning-rate multiplier."""
        groups: dict[str, list[Tensor]] = {}
        for name, parameter in self.loss.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(self._lr_group(name), []).append(parameter)
        # Not kept in the optimiser: a resumed run may have other multipliers.
        self._multipliers = {name: self.parts.lr_multipliers.get(name, 1.0) for name in groups}
        return torch.optim.Adam(
            [{"params": parameters} for parameters in groups.values()],
            lr=self.config.lr,
            betas=(self.config.adam_beta1, 0.999),
            eps=self.config.adam_eps,
            fused=True,
        )

    def on_train_start(self) -> None:
        """Evaluate the untrained policy."""
        self.progress.start_clock()
        self.parts.anneal(self._lr_left)
        if not self.progress.evaluations:
            self.run_evaluation()
        self.resume_random_state()

    def on_train_epoch_start(self) -> None:
        """Start the records of this iteration."""
        self.progress.tick()
        self._averages.clear()
        self._updates = 0

    # ---------------------------------------------------------------------------------------
    # Training

    def training_step(self, rows: TensorDictBase, batch_idx: int) -> None:
        """One optimiser step on rows, unless the policy has moved far enough."""
        self.begin_update()
        out, target_kl = self.loss(rows), self.config.target_kl
        self._averages.add(dict(out.items()))
        # The average is the same on all ranks, hence so is the decision.
        if target_kl is not None and float(_policy_distance(out)) > target_kl:
            self.stream.stop_epochs()
            return
        self.optimizer.zero_grad()
        self.manual_backward(sum(v for k, v in out.items() if k.startswith("loss_")))
        if self.policy_waits:
            self._keep_critics()
        self._averages.add(self._clip_gradients())
        self.optimizer.step()
        self.progress.gradient_steps += 1
        self._updates += 1

    def on_train_epoch_end(self) -> None:
        """Count, update statistics, evaluate when due, tell the callbacks."""
        seconds = self.progress.tick()
        rollout = self.stream.last_rollout
        assert rollout is not None
        averages = self._averages.read()
        self.check_finite({k: v for k, v in averages.items() if self._must_be_finite(k)})
        frames = self.over_ranks(environment_steps(rollout))
        self.progress.frames += frames
        metrics = self._metrics(rollout, frames, seconds, averages)
        if self.parts.normalizer is not None:
            observations = [rollout.get(key) for key in self.actor.in_keys]
            vectors = [entry for entry in observations if entry.ndim == rollout.ndim + 1]
            self.parts.normalizer.update(torch.cat(vectors, -1))
        self.parts.anneal(self._lr_left)
        metrics.update(self.evaluate_if_due())
        self.end_iteration(metrics)

    # ---------------------------------------------------------------------------------------
    # Helpers

    def _prepare(self, rollout: TensorDictBase) -> TensorDictBase:
        """Flat training rows of a rollout ``[E, T]``, whose own rewards count already."""
        self.rewards.note(rollout)
        self.rewards.update()
        self._set_learning_rates()
        return self.parts.prepare(self.rewards.scale_(rollout))

    @property
    def _lr_left(self) -> float:
        """The share of the learning rate that is left."""
        if self.config.lr_schedule == "constant":
            return 1.0
        return self.schedule.at(self.progress.frames, self.config.total_frames)

    def _set_learning_rates(self) -> None:
        """The learning rates of this iteration."""
        self._lr = self.config.lr * self._lr_left
        groups = self.optimizer.param_groups
        # A temperature has nothing to be weighed against before the first reward.
        waits = () if self.rewards.seen else ("temperature",)
        for group, (name, multiplier) in zip(groups, self._multipliers.items(), strict=True):
            group["lr"] = self._lr * (0.0 if name in waits else multiplier)
            # A checkpoint brings those of the run that wrote it along.
            group["betas"] = (self.config.adam_beta1, 0.999)
            group["eps"] = self.config.adam_eps

    def _keep_critics(self) -> None:
        """Drop the gradients of all but the critics."""
        for name, parameter in self.loss.named_parameters():
            if not name.startswith(_CRITICS):
                parameter.grad = None

    def _clip_gradients(self) -> dict[str, Tensor]:
        """Limit the norms of gradients and return what they were."""
        limit = self.config.max_grad_norm
        return {
            name: torch.nn.utils.clip_grad_norm_(self.loss.get_submodule(part).parameters(), limit)
            for name, part in self.parts.grad_norms.items()
        }

    def _must_be_finite(self, name: str) -> bool:
        """Whether the run ends when the average of this name is not finite."""
        return name.startswith("loss_") or name in self.parts.grad_norms

    def _lr_group(self, parameter: str) -> str:
        """The key of ``lr_multipliers`` that holds for a parameter; empty if none does."""
        parts = parameter.split(".")
        return next((key for key in self.parts.lr_multipliers if key in parts), "")

    def _metrics(
        self, rollout: TensorDictBase, frames: int, seconds: float, averages: dict[str, float]
    ) -> dict[str, float]:
        return {
            **self.progress_metrics(frames, seconds, episode_stats(rollout)),
            "updates": self._updates,
            "lr": self._lr,
            **averages,
            **self.rewards.metrics(),
            **self.parts.diagnostics(),
            **self.bound_metrics(),
        }


def _policy_distance(out: TensorDictBase) -> Tensor:
    """Divergence of the policy from the one that collected the rollout, over all ranks."""
    return reduce(out.get("kl", out.get("kl_approx")).detach().float(), average=True)
