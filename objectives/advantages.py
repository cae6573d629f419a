"""Advantage estimation over the denoising MDP."""

import contextlib
from collections.abc import Callable

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives.value import ValueEstimatorBase

from diffpolicy.actors import ActorKeys, ChainActor, chain_rows
from objectives.checks import check_choice
from objectives.functional import DiscountMode, denoising_gae


class DenoisingGAE(ValueEstimatorBase):
    """GAE for rollouts of chains: one advantage per denoising step (arXiv 2512.02019).

    Reads ``[*B, T]`` TensorDicts, time last, and writes ``state_value``, ``advantage`` and
    ``value_target`` as ``[*B, T, N, 1]``. A trajectory that was truncated, or cut by the end of
    the rollout, is bootstrapped from its true last observation with a fresh prior sample.

    Args:
        gamma: discount factor.
        lmbda: GAE lambda.
        value_network: module for ``V(s, x_n, n)`` on denoising-MDP rows.
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
    def out_keys(self) -> list[NestedKey]:
        """Advantage, value target and value."""
        keys = self.tensor_keys
        return [keys.advantage, keys.value_target, keys.value]

    @property
    def _actor_keys(self) -> ActorKeys:
        return self.actor.keys

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
                "DenoisingGAE computes the next value itself; next_value is not accepted."
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

    def _value(self, rows: TensorDictBase, params: TensorDictBase | None) -> Tensor:
        network = self.value_network
        context = (
            contextlib.nullcontext()
            if params is None
            else params.to_module(network, preserve_module_state=False)
        )
        with context:
            return network(rows.select(*network.in_keys))[self.tensor_keys.value]

    def _bootstrap(
        self, tensordict: TensorDictBase, value: Tensor, params: TensorDictBase | None
    ) -> Tensor:
        """``V(s_{t+1}, x'_0, 0)``: the next row's value inside a trajectory, else a fresh one."""
        keys, batch = self._actor_keys, tensordict.batch_size
        rows = TensorDict(batch_size=batch, device=tensordict.device)
        for key in self.actor.in_keys:
            rows.set(key, tensordict["next"][key])
        rows.set(keys.latent, self.actor.sample_prior(batch).to(value))
        rows.set(keys.step, torch.zeros(*batch, 1, dtype=torch.long, device=value.device))
        fresh = self._value(rows, params).detach()
        done = tensordict["next"][self.tensor_keys.done]
        ends = done[..., :-1, :]
        inside = torch.where(ends, fresh[..., :-1, :], value[..., 1:, 0, :].detach())
        return torch.cat((inside, fresh[..., -1:, :]), -2)
