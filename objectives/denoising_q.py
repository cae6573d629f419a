"""The critics of the denoising MDP: soft Q targets for single denoising steps."""

from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModule
from tensordict.utils import expand_as_right
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type

from diffpolicy.actors import ChainActor, rows_at
from diffpolicy.actors.keys import required
from diffpolicy.networks import CategoricalSupport, HLGauss
from diffpolicy.sde import gaussian_log_prob
from objectives import distributional as dist
from objectives import functional as fn
from objectives.chain_loss import find_submodule
from objectives.checks import check_choice, check_known
from objectives.q_loss import CriticReduction, QLoss, QValues
from objectives.temperature import LearnedTemperature, Temperature


class Proposal(NamedTuple):
    """A denoising step: rows with its ``next_latent``, and its entropy cost ``[*R, 1]``."""

    rows: TensorDictBase
    cost: Tensor


class DenoisingQLoss(QLoss):
    """Base of losses with critics ``Q_n(s, x_{n+1})`` of the denoising MDP.

    The target of a step is that of the step after it, sampled from the current policy: inside a
    chain the environment has no part in it (arXiv 2512.02019)::

        n < N-1:  y = Q_{n+1}(s, x'') - T LR_{n+1}(x''),          x'' ~ q(. | x_{n+1}, s)
        n = N-1:  y = r + gamma (Q_0(s', x'_1) - T LR_0(x'_1)),   x'_1 ~ q(. | x'_0, s')

    with ``x'_0`` from the prior. With ``squashed_entropy`` the cost of a last step is
    ``LR - log |d tanh(x_N)|``, so that the costs of a chain bound the entropy of the action.

    Arguments and keys are those of :class:`~objectives.DiffSACLoss`.
    """

    _actor_protocol = ChainActor

    def __init__(
        self,
        actor_network: nn.Module,
        critic_network: TensorDictModule,
        *,
        temperature: float | Temperature,
        sampled_steps: int,
        target_steps: int,
        delay_critic: bool,
        critic_reduction: CriticReduction,
        loss_critic_type: fn.ValueLoss,
        discount_mode: fn.DiscountMode,
        separate_losses: bool,
        reduction: str,
        delay_actor: bool = False,
        squashed_entropy: bool = False,
        fresh_chains: bool = False,
        center_entropy: bool = False,
    ) -> None:
        support = find_submodule(critic_network, HLGauss)
        if find_submodule(critic_network, CategoricalSupport) is not None:
            raise ValueError(
                "critic_network has a CategoricalSupport, whose targets are distributions; use a "
                "scalar head or HLGauss."
            )
        super().__init__(
            actor_network,
            critic_network,
            temperature=temperature,
            categorical=support is not None,
            delay_critic=delay_critic,
            critic_reduction=critic_reduction,
            loss_critic_type=loss_critic_type,
            separate_losses=separate_losses,
            reduction=reduction,
            delay_actor=delay_actor,
        )
        chain = self.chain_keys
        known = [*self.actor_network.in_keys, chain.next_latent, chain.step]
        check_known("critic_network", self.critic_network.in_keys, known)
        # The actor may act with another number of steps later; the loss keeps the one it trains.
        self.denoising_steps: int = self.actor_network.denoising_steps
        for name, number in (("sampled_steps", sampled_steps), ("target_steps", target_steps)):
            if not 1 <= number <= self.denoising_steps:
                raise ValueError(
                    f"{name} must be between 1 and the actor's {self.denoising_steps} denoising "
                    f"steps, got {number}."
                )
        check_choice("discount_mode", discount_mode, ("env", "denoising_step"))
        if squashed_entropy and not hasattr(actor_network, "squash_log_det"):
            raise TypeError(
                "squashed_entropy=True needs an actor with a method squash_log_det(latent), which "
                f"{type(actor_network).__name__} lacks; add it or use squashed_entropy=False."
            )
        self.value_support = support
        self.sampled_steps = sampled_steps
        self.target_steps = target_steps
        self.discount_mode = discount_mode
        self.squashed_entropy = squashed_entropy
        self.fresh_chains = fresh_chains
        self.center_entropy = center_entropy
        if center_entropy and not isinstance(self.temperature, LearnedTemperature):
            raise ValueError(
                "center_entropy=True needs a LearnedTemperature, whose target is subtracted; "
                f"got {type(self.temperature).__name__}."
            )

    def _default_in_keys(self) -> list[NestedKey]:
        observation = self.actor_network.in_keys
        return [*observation, self.chain_keys.latents, *self._carried_keys()]

    def _critic_out_keys(self) -> list[NestedKey]:
        """Diagnostics of the critic."""
        categorical = [] if self.value_support is None else ["value_clip_fraction"]
        return ["q_value", "target_value", "td_error", *categorical]

    def _carried_keys(self) -> list[NestedKey]:
        """What the target of a chain's last step reads."""
        keys, observation = self.tensor_keys, self.actor_network.in_keys
        return [unravel_key(("next", k)) for k in (*observation, keys.reward, keys.terminated)]

    def _sampled_rows(self, transitions: TensorDictBase) -> TensorDictBase:
        """Rows ``[kappa, *B]`` of steps drawn without replacement from chains ``[*B]``.

        With ``fresh_chains`` they also hold the ``fresh`` rows of the same steps.
        """
        for name in ("reward", "terminated"):
            self._next_entry(transitions, name)
        latents = transitions.get(self.chain_keys.latents, None)
        device = None if latents is None else latents.device
        batch, steps = transitions.batch_size, self.denoising_steps
        if self.sampled_steps == 1:
            step = torch.randint(steps, (1, *batch), device=device)
        else:
            step = torch.rand(steps, *batch, device=device).argsort(0)[: self.sampled_steps]
        rows = self._rows_at(transitions, step)
        if self.fresh_chains:
            rows.set("fresh", self._rows_at(self._with_fresh_chains(transitions), step))
        return rows

    def _rows_at(self, transitions: TensorDictBase, step: Tensor) -> TensorDictBase:
        length = self.value_estimator.tensor_keys.steps_to_next_obs
        optional = (length, *self._loss_mask_keys())
        present = [key for key in optional if transitions.get(key, None) is not None]
        rows = rows_at(
            transitions,
            step,
            observation_keys=self.actor_network.in_keys,
            keys=self.chain_keys,
            denoising_steps=self.denoising_steps,
            carry_keys=[*self._carried_keys(), *present],
        )
        return self._detached(rows)

    def _detached(self, rows: TensorDictBase) -> TensorDictBase:
        """Rows into whose latents no gradient flows; ``rows`` itself stays as it is."""
        keys = self.chain_keys
        latents = {key: rows[key].detach() for key in (keys.latent, keys.next_latent)}
        return rows.copy().update(latents)

    def _with_fresh_chains(self, transitions: TensorDictBase) -> TensorDictBase:
        """The transitions with latents of the current policy instead of those that acted."""
        actor, keys = self.actor_network, self.chain_keys
        # TorchRL runs losses under deterministic exploration.
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            chains = actor(transitions.select(*actor.in_keys))
        latents = required(chains, keys.latents, "; build the actor with return_chain=True")
        return transitions.copy().set(keys.latents, latents)

    def _policy_rows(self, rows: TensorDictBase) -> TensorDictBase:
        """Rows from whose ``latent`` the policy takes the steps that it is trained on."""
        return rows["fresh"] if self.fresh_chains else rows

    def _critic_rows(self, rows: TensorDictBase) -> TensorDictBase:
        """Rows whose steps the critics are trained on: last ones are those that were rewarded."""
        if not self.fresh_chains:
            return rows
        last, fresh = self._is_last(rows[self.chain_keys.step]), rows["fresh"]
        merged = rows.exclude("fresh")
        for key in (self.chain_keys.latent, self.chain_keys.next_latent):
            merged.set(key, torch.where(last, rows[key], fresh[key]))
        return merged

    def _propose(self, rows: TensorDictBase) -> Proposal:
        """A step of the current policy from ``latent``, differentiable in its parameters."""
        keys, actor = self.chain_keys, self.actor_network
        denoising = actor.denoising_kernel(rows)
        next_latent = denoising.mean + denoising.std * torch.randn_like(denoising.mean)
        rows = rows.select(*actor.in_keys, keys.latent, keys.step).set(
            keys.next_latent, next_latent
        )
        noising_log_prob = gaussian_log_prob(rows[keys.latent], actor.noising_kernel(rows))
        cost = gaussian_log_prob(next_latent, denoising) - noising_log_prob
        if self.squashed_entropy:
            log_det = actor.squash_log_det(next_latent)
            cost = cost - torch.where(self._is_last(rows[keys.step]), log_det, 0.0)
        return Proposal(rows, cost)

    def _critic_inputs(self, rows: TensorDictBase) -> TensorDictBase:
        return rows.select(*self.critic_network.in_keys)

    @property
    def _step_entropy(self) -> float:
        """The entropy of a step from which targets count."""
        if self.center_entropy and isinstance(self.temperature, LearnedTemperature):
            return self.temperature.target_entropy / self.denoising_steps
        return 0.0

    def _is_last(self, step: Tensor) -> Tensor:
        return step == self.denoising_steps - 1

    def _inside(self, gamma: Tensor) -> Tensor:
        """Discount of a denoising step that is not the last."""
        return gamma if self.discount_mode == "denoising_step" else torch.ones_like(gamma)

    def _following(self, rows: TensorDictBase) -> TensorDictBase:
        """State of the denoising MDP after each row."""
        keys, actor = self.chain_keys, self.actor_network
        step, latent = rows[keys.step], rows[keys.next_latent]
        last = self._is_last(step)
        following = rows.select(*actor.in_keys)
        for key in actor.in_keys:
            coming = rows["next"][key]
            following.set(key, torch.where(expand_as_right(last, coming), coming, rows[key]))
        prior = actor.sample_prior(rows.batch_size).to(latent)
        following.set(keys.latent, torch.where(last, prior, latent))
        return following.set(keys.step, torch.where(last, 0, step + 1))

    def _simulate(self, state: TensorDictBase) -> tuple[TensorDictBase, Tensor, Tensor]:
        """Up to ``target_steps`` steps of the policy, never beyond the end of a chain.

        Returns:
            The last step, the discounted sum of the entropy costs on the way ``[*R, 1]``, and the
            discount of what comes after it ``[*R, 1]``, both from the first of these steps on.
        """
        keys = self.chain_keys
        inside = self._inside(self.value_estimator.gamma)
        taken, cost = self._propose(state)
        weight = torch.ones_like(cost)
        cost = cost + self._step_entropy
        for _ in range(self.target_steps - 1):
            step, next_latent = taken[keys.step], taken[keys.next_latent]
            moves = ~self._is_last(step)
            state = taken.copy()
            state.set(keys.latent, torch.where(moves, next_latent, taken[keys.latent]))
            state.set(keys.step, torch.where(moves, step + 1, step))
            proposal = self._propose(state)
            weight = torch.where(moves, inside * weight, weight)
            further = weight * (proposal.cost + self._step_entropy)
            cost = cost + torch.where(moves, further, 0.0)
            latest = torch.where(moves, proposal.rows[keys.next_latent], next_latent)
            taken = proposal.rows.set(keys.next_latent, latest)
        return taken, cost, weight

    def _soft_target(
        self, rows: TensorDictBase, next_value: Tensor, cost: Tensor, weight: Tensor
    ) -> Tensor:
        """The target ``[*R, 1]`` of rows from the value after what :meth:`_simulate` did."""
        last = self._is_last(rows[self.chain_keys.step])
        reward = self._next_entry(rows, "reward")
        gamma = self._discount(rows, reward)
        return dist.soft_target(
            weight * next_value,
            torch.where(last, reward, 0.0),
            last & self._next_entry(rows, "terminated"),
            cost,
            discount=torch.where(last, gamma, self._inside(self.value_estimator.gamma)),
            temperature=self.temperature(),
        )

    def _critic_loss(
        self, rows: TensorDictBase, transitions: TensorDictBase
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of rows ``[kappa, *B]`` of ``transitions`` with one-step targets."""
        rows = self._critic_rows(rows)
        with torch.no_grad():
            taken, cost, weight = self._simulate(self._following(rows))
        coming = self._critic_inputs(taken).unsqueeze(0)
        current, following = self._current_and_next(self._critic_inputs(rows), coming)
        with torch.no_grad():
            next_value = self._over_critics(following.value[0])
            target = self._soft_target(rows, next_value, cost, weight)
        diagnostics = self._fit_diagnostics(current, target, transitions)
        self._write_priority(transitions, diagnostics["td_error"])
        diagnostics = {k: self._reduce(v, transitions, "mean") for k, v in diagnostics.items()}
        return self._fit_loss(current, target, transitions), diagnostics

    @torch.no_grad()
    def _fit_diagnostics(
        self, current: QValues, target: Tensor, tensordict: TensorDictBase
    ) -> dict[str, Tensor]:
        """What there is to say ``[*B, 1]`` about values ``[*R, E, 1]`` and targets ``[*R, 1]``."""
        values = self._value_diagnostics(current.value, target)
        if self.value_support is not None:
            values["value_clip_fraction"] = self.value_support.outside(target).to(target)
        return {key: self._average(value, tensordict) for key, value in values.items()}

    def _fit_loss(self, current: QValues, target: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Loss of values ``[*R, E, 1]`` against targets ``[*R, 1]``."""
        targets = target.unsqueeze(-2)
        if self.value_support is not None and current.logits is not None:
            distance = self.value_support.loss(current.logits, targets)
        else:
            wanted = targets.expand_as(current.value)
            distance = fn.value_distance(current.value, wanted, self.loss_critic_type)
        return self._reduce(self._average(distance.sum(-2), tensordict), tensordict)

    @staticmethod
    def _average(value: Tensor, tensordict: TensorDictBase) -> Tensor:
        """Mean over the sampled steps: ``[*B, 1]`` from ``[kappa, *B, 1]`` or ``[*B, 1]``."""
        return value.mean(0) if value.ndim > tensordict.batch_dims + 1 else value
