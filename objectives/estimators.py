"""Advantages and returns over the denoising MDP."""

import contextlib
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives.value import ValueEstimatorBase

from diffpolicy.actors import ChainActor, DenoisingMDP
from diffpolicy.actors.keys import required
from objectives.checks import check_choice
from objectives.draws import Draws
from objectives.functional import DiscountMode, denoising_gae, denoising_q_returns
from objectives.q_critic import QCritic
from objectives.transitions import return_discount

_DRAWS = ("prior", "proposal")


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
        # References, not children: their parameters belong to the loss.
        self.__dict__["mdp"] = DenoisingMDP(actor)
        self.__dict__["temperature"] = temperature

    @property
    def in_keys(self) -> list[NestedKey]:
        """Observation, chain, and the next observation, reward and end flags."""
        tensor_keys, observation_keys = self.tensor_keys, self.mdp.observation_keys
        following = (
            *observation_keys,
            tensor_keys.reward,
            tensor_keys.done,
            tensor_keys.terminated,
        )
        return [
            *observation_keys,
            *self.mdp.keys.chain,
            *(unravel_key(("next", key)) for key in following),
        ]

    def value_estimate(
        self,
        tensordict: TensorDictBase,
        target_params: TensorDictBase | None = None,
        next_value: Tensor | None = None,
        *,
        draws: TensorDictBase | None = None,
        **kwargs: object,
    ) -> Tensor:
        """The value target ``[*B, T, N, 1]`` without writing into ``tensordict``."""
        if next_value is not None or kwargs:
            raise TypeError(
                f"{type(self).__name__} computes the next value itself; next_value is not accepted."
            )
        out = self(tensordict.copy(), params=target_params, draws=draws)
        return out.get(self.tensor_keys.value_target)

    def _check_time(self, tensordict: TensorDictBase) -> None:
        if not tensordict.batch_dims:
            raise ValueError("tensordict must have batch size [*B, T] with time last, got [].")
        hint = "; collect with an actor built with return_chain=True, pass its keys"
        batch = required(tensordict, self.mdp.keys.latents, hint).shape[:-2]
        if batch != tensordict.batch_size:
            raise ValueError(
                f"the rollout has batch size {list(tensordict.batch_size)} and chains for "
                f"{list(batch)}: estimate rollouts of several agents with the agents before time, "
                "[*B, agents, T], as objectives.agents.per_agent and permute() make them."
            )
        names = tensordict.names if tensordict._has_names() else []
        if "time" in names and names[-1] != "time":
            raise ValueError(
                f"the time dimension must be the last batch dimension, got names {names}; "
                "estimate advantages before flattening the rollout."
            )

    def draw(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All random numbers of one call on a rollout ``[*B, T]``, for ``draws``.

        ``prior`` and ``proposal`` ``[*B, T, A]`` make the first latent, and the first step, of the
        chains after the ends of trajectories. All are optional in ``draws``.
        """
        latents = required(tensordict, self.mdp.keys.latents)
        names = _DRAWS[: 1 + self.samples_step]
        return TensorDict(
            {name: torch.randn_like(latents[..., 0, :]) for name in names}, tensordict.batch_size
        )

    #: Whether the value after a trajectory needs a step of the policy.
    samples_step: ClassVar[bool] = False

    def _run(self, rows: TensorDictBase, params: TensorDictBase | None) -> TensorDictBase:
        """Output of the value network for rows."""
        network = self.value_network
        context = (
            contextlib.nullcontext()
            if params is None
            else params.to_module(network, preserve_module_state=False)
        )
        with context:
            return network(rows.select(*network.in_keys))

    def _fresh_state(self, tensordict: TensorDictBase, draws: Draws) -> TensorDictBase:
        """State of the denoising MDP at the start of the chain after every transition."""
        latents = tensordict.get(self.mdp.keys.latents)
        return self.mdp.first_state(tensordict["next"], latents, draws.get("prior"))

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
        draws: TensorDictBase | None = None,
    ) -> TensorDictBase:
        """Write value, advantage and value target into ``tensordict`` ``[*B, T]``.

        Args:
            tensordict: rollout with chains.
            params: parameters of the value network; None uses the module's own.
            target_params: parameters for the value after a trajectory's last row; None means
                ``params``. Inside a trajectory the next row's value is used, from ``params``.
            draws: random numbers, see :meth:`draw`; None draws them.

        Raises:
            ValueError: if there is no time dimension, or it is not the last.
        """
        self._check_time(tensordict)
        keys = self.tensor_keys
        following = tensordict["next"]
        given = Draws(draws, tensordict.batch_size, _DRAWS)
        with torch.set_grad_enabled(self.differentiable):
            value = self._value(self.mdp.rows(tensordict), params)
            last = params if target_params is None else target_params
            estimate = denoising_gae(
                value,
                self._bootstrap(tensordict, value, last, given),
                following[keys.reward],
                tensordict.get(self.mdp.keys.log_ratio),
                following[keys.done],
                following[keys.terminated],
                temperature=self.temperature(),
                gamma=return_discount(self, tensordict, following[keys.reward]),
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
        self,
        tensordict: TensorDictBase,
        value: Tensor,
        params: TensorDictBase | None,
        draws: Draws,
    ) -> Tensor:
        """``V(s_{t+1}, x'_0, 0)``: the next row's value inside a trajectory, else a fresh one."""
        fresh = self._value(self._fresh_state(tensordict, draws), params).detach()
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

    samples_step = True

    def __init__(
        self, *, critic_reduction: Literal["mean", "min"] = "mean", **arguments: Any
    ) -> None:
        super().__init__(**arguments)
        network = arguments["value_network"]
        self.__dict__["critic"] = QCritic(network, reduction=critic_reduction, loss_function="l2")

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
        draws: TensorDictBase | None = None,
    ) -> TensorDictBase:
        """Write the value target into ``tensordict`` ``[*B, T]``.

        Args:
            tensordict: rollout with chains.
            params: parameters of the value network; None uses the module's own.
            target_params: parameters for the value after a trajectory's last row; None means
                ``params``.
            draws: random numbers, see :meth:`draw`; None draws them.

        Raises:
            ValueError: if there is no time dimension, or it is not the last.
        """
        self._check_time(tensordict)
        keys, following = self.tensor_keys, tensordict["next"]
        log_ratio = tensordict.get(self.mdp.keys.log_ratio)
        given = Draws(draws, tensordict.batch_size, _DRAWS)
        with torch.set_grad_enabled(self.differentiable):
            value = self._value(self.mdp.rows(tensordict), params)
            last = params if target_params is None else target_params
            state = self._fresh_state(tensordict, given)
            fresh = self.mdp.propose(state, given.get("proposal"))
            fresh_value, first = self._value(fresh, last), value[..., 0, :]
            fresh_ratio = fresh.get(self.mdp.keys.log_ratio)
            target = denoising_q_returns(
                value,
                self._next_in_rollout(tensordict, first, fresh_value.detach()),
                self._next_in_rollout(tensordict, log_ratio[..., 0, :], fresh_ratio.detach()),
                following[keys.reward],
                log_ratio,
                following[keys.done],
                following[keys.terminated],
                temperature=self.temperature(),
                gamma=return_discount(self, tensordict, following[keys.reward]),
                lmbda=self.lmbda,
                discount_mode=self.discount_mode,
            )
        return tensordict.set(keys.value_target, target)

    def _value(self, rows: TensorDictBase, params: TensorDictBase | None) -> Tensor:
        out, critic = self._run(rows, params), self.critic
        return critic.over_critics(critic.members(out, self.tensor_keys.value, rows.batch_size))
