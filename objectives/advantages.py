"""Advantages and returns over the denoising MDP."""

import contextlib
from collections.abc import Callable
from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives.value import ValueEstimatorBase

from diffpolicy.actors import ActorKeys, ChainActor, DenoisingStepActor, chain_rows
from objectives.checks import check_choice
from objectives.functional import DiscountMode, denoising_gae
from objectives.wasserstein import denoising_q_returns


class DenoisingEstimator(ValueEstimatorBase):
    """Base of estimators over rollouts of chains ``[*B, T]``, time last.

    Args:
        gamma: discount factor.
        lmbda: lambda of the returns.
        value_network: a module on denoising-MDP rows.
        actor: the actor; gives the observation keys, chain keys and the prior.
        temperature: callable that returns the temperature.
        discount_mode: ``"env"`` (gamma and lambda act between environment steps only) or
            ``"denoising_step"`` (at every denoising step, as in the published configurations).
        differentiable: whether gradients flow into the value network.
        device: device of the coefficients.

    Raises:
        ValueError: if gamma or lambda is outside [0, 1], or for an unknown discount mode.
    """

    gamma: Tensor
    lmbda: Tensor

    def __init__(
        self,
        *,
        gamma: float,
        lmbda: float,
        value_network: TensorDictModuleBase,
        actor: ChainActor,
        temperature: Callable[[], Tensor],
        discount_mode: DiscountMode = "env",
        differentiable: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(value_network=value_network, differentiable=differentiable, device=device)
        for name, factor in (("gamma", gamma), ("lmbda", lmbda)):
            if not 0 <= factor <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {factor}.")
        check_choice("discount_mode", discount_mode, ("env", "denoising_step"))
        self.register_buffer("gamma", torch.as_tensor(gamma, device=device))
        self.register_buffer("lmbda", torch.as_tensor(lmbda, device=device))
        self.discount_mode = discount_mode
        self.denoising_steps = actor.denoising_steps
        # References, not children: their parameters belong to the loss.
        self.__dict__["actor"] = actor
        self.__dict__["temperature"] = temperature

    @property
    def in_keys(self) -> list[NestedKey]:
        """Observation, chain, and the next observation, reward and end flags."""
        tensor_keys, observation_keys = self.tensor_keys, self.actor.in_keys
        following = (
            *observation_keys,
            tensor_keys.reward,
            tensor_keys.done,
            tensor_keys.terminated,
        )
        keys = self._actor_keys
        return [
            *observation_keys,
            *keys.chain,
            *(unravel_key(("next", key)) for key in following),
        ]

    @property
    def _actor_keys(self) -> ActorKeys:
        return self.actor.keys

    def value_estimate(
        self,
        tensordict: TensorDictBase,
        target_params: TensorDictBase | None = None,
        next_value: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        """The value target ``[*B, T, N, 1]`` without writing into ``tensordict``."""
        if next_value is not None or kwargs:
            raise TypeError(
                f"{type(self).__name__} computes the next value itself; next_value is not accepted."
            )
        out = self(tensordict.copy(), params=target_params)
        return out.get(self.tensor_keys.value_target)

    def _check_time(self, tensordict: TensorDictBase) -> None:
        if not tensordict.batch_dims:
            raise ValueError("tensordict must have batch size [*B, T] with time last, got [].")
        names = tensordict.names if tensordict._has_names() else []
        if "time" in names and names[-1] != "time":
            raise ValueError(
                f"the time dimension must be the last batch dimension, got names {names}; "
                "estimate advantages before flattening the rollout."
            )

    def _rows(self, tensordict: TensorDictBase) -> TensorDictBase:
        return chain_rows(
            tensordict,
            observation_keys=self.actor.in_keys,
            keys=self._actor_keys,
            denoising_steps=self.denoising_steps,
            step_keys=(),
        )

    def _run(self, rows: TensorDictBase, params: TensorDictBase | None) -> TensorDictBase:
        """What the value network says about rows."""
        network = self.value_network
        context = (
            contextlib.nullcontext()
            if params is None
            else params.to_module(network, preserve_module_state=False)
        )
        with context:
            return network(rows.select(*network.in_keys))

    def _fresh_state(self, tensordict: TensorDictBase) -> TensorDictBase:
        """State of the denoising MDP at the start of the chain after every transition."""
        keys, batch = self._actor_keys, tensordict.batch_size
        rows = TensorDict(batch_size=batch, device=tensordict.device)
        for key in self.actor.in_keys:
            rows.set(key, tensordict["next"][key])
        latents = tensordict.get(keys.latents)
        rows.set(keys.latent, self.actor.sample_prior(batch).to(latents))
        rows.set(keys.step, torch.zeros(*batch, 1, dtype=torch.long, device=latents.device))
        return rows

    def _next_in_rollout(self, tensordict: TensorDictBase, first: Tensor, fresh: Tensor) -> Tensor:
        """``first`` ``[*B, T, 1]`` of the next row inside a trajectory, else ``fresh``."""
        ends = tensordict["next"][self.tensor_keys.done][..., :-1, :]
        inside = torch.where(ends, fresh[..., :-1, :], first[..., 1:, :].detach())
        return torch.cat((inside, fresh[..., -1:, :]), -2)


class DenoisingGAE(DenoisingEstimator):
    """GAE for rollouts of chains: one advantage per denoising step (arXiv 2512.02019).

    Reads ``[*B, T]`` TensorDicts, time last, and writes ``state_value``, ``advantage`` and
    ``value_target`` as ``[*B, T, N, 1]``. A trajectory that was truncated, or cut by the end of
    the rollout, is bootstrapped from its true last observation with a fresh prior sample. The
    value network is ``V(s, x_n, n)``; arguments and errors are those of
    :class:`DenoisingEstimator`.
    """

    @property
    def out_keys(self) -> list[NestedKey]:
        """Advantage, value target and value."""
        keys = self.tensor_keys
        return [keys.advantage, keys.value_target, keys.value]

    def forward(
        self,
        tensordict: TensorDictBase,
        *,
        params: TensorDictBase | None = None,
        target_params: TensorDictBase | None = None,
    ) -> TensorDictBase:
        """Write value, advantage and value target into ``tensordict`` ``[*B, T]``.

        Args:
            tensordict: rollout with chains.
            params: parameters of the value network; None uses the module's own.
            target_params: parameters for the value after a trajectory's last row; None means
                ``params``. Inside a trajectory the next row's value is used, from ``params``.

        Raises:
            ValueError: if there is no time dimension, or it is not the last.
        """
        self._check_time(tensordict)
        keys = self.tensor_keys
        following = tensordict["next"]
        with torch.set_grad_enabled(self.differentiable):
            value = self._value(self._rows(tensordict), params)
            last = params if target_params is None else target_params
            estimate = denoising_gae(
                value,
                self._bootstrap(tensordict, value, last),
                following[keys.reward],
                tensordict.get(self._actor_keys.log_ratio),
                following[keys.done],
                following[keys.terminated],
                temperature=self.temperature(),
                gamma=self.gamma,
                lmbda=self.lmbda,
                discount_mode=self.discount_mode,
            )
        tensordict.set(keys.value, value)
        tensordict.set(keys.advantage, estimate.advantage)
        tensordict.set(keys.value_target, estimate.value_target)
        return tensordict

    def _value(self, rows: TensorDictBase, params: TensorDictBase | None) -> Tensor:
        return self._run(rows, params)[self.tensor_keys.value]

    def _bootstrap(
        self, tensordict: TensorDictBase, value: Tensor, params: TensorDictBase | None
    ) -> Tensor:
        """``V(s_{t+1}, x'_0, 0)``: the next row's value inside a trajectory, else a fresh one."""
        fresh = self._value(self._fresh_state(tensordict), params).detach()
        return self._next_in_rollout(tensordict, value[..., 0, :], fresh)


class DenoisingTDLambda(DenoisingEstimator):
    """Lambda-returns of ``Q_n(s, x_{n+1})`` for rollouts of chains (arXiv 2512.02019, DiffWPO).

    Reads ``[*B, T]`` TensorDicts, time last, and writes ``value_target`` ``[*B, T, N, 1]``. The
    chain after a truncation, or after the end of the rollout, begins at the true last observation
    with a fresh prior sample and a fresh step of the actor. The value network writes values
    ``[*B, E, 1]`` under the key ``value``.

    Args:
        critic_reduction: ``"mean"`` or ``"min"`` over the critics.
        **arguments: those of :class:`DenoisingEstimator`.
    """

    def __init__(
        self, *, critic_reduction: Literal["mean", "min"] = "mean", **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        check_choice("critic_reduction", critic_reduction, ("mean", "min"))
        self.critic_reduction = critic_reduction

    @property
    def out_keys(self) -> list[NestedKey]:
        """The value target."""
        return [self.tensor_keys.value_target]

    def forward(
        self,
        tensordict: TensorDictBase,
        *,
        params: TensorDictBase | None = None,
        target_params: TensorDictBase | None = None,
    ) -> TensorDictBase:
        """Write the value target into ``tensordict`` ``[*B, T]``.

        Args:
            tensordict: rollout with chains.
            params: parameters of the value network; None uses the module's own.
            target_params: parameters for the value after a trajectory's last row; None means
                ``params``.

        Raises:
            ValueError: if there is no time dimension, or it is not the last.
        """
        self._check_time(tensordict)
        keys, following = self.tensor_keys, tensordict["next"]
        log_ratio = tensordict.get(self._actor_keys.log_ratio)
        with torch.set_grad_enabled(self.differentiable):
            value = self._value(self._rows(tensordict), params)
            last = params if target_params is None else target_params
            with set_exploration_type(ExplorationType.RANDOM):
                fresh = DenoisingStepActor(self.actor)(self._fresh_state(tensordict))
            fresh_value, first = self._value(fresh, last), value[..., 0, :]
            fresh_ratio = fresh.get(self._actor_keys.log_ratio)
            target = denoising_q_returns(
                value,
                self._next_in_rollout(tensordict, first, fresh_value.detach()),
                self._next_in_rollout(tensordict, log_ratio[..., 0, :], fresh_ratio.detach()),
                following[keys.reward],
                log_ratio,
                following[keys.done],
                following[keys.terminated],
                temperature=self.temperature(),
                gamma=self.gamma,
                lmbda=self.lmbda,
                discount_mode=self.discount_mode,
            )
        return tensordict.set(keys.value_target, target)

    def _value(self, rows: TensorDictBase, params: TensorDictBase | None) -> Tensor:
        value = self._run(rows, params)[self.tensor_keys.value]
        value = value.reshape(*rows.batch_size, -1, 1)
        return value.amin(-2) if self.critic_reduction == "min" else value.mean(-2)
