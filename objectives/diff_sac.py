"""DiffSAC: soft actor-critic over the denoising MDP."""

from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, dispatch
from torch import Tensor, nn

from objectives import functional as fn
from objectives.base import evaluation_mode
from objectives.denoising_q import DenoisingQLoss
from objectives.q_loss import CriticReduction
from objectives.temperature import Temperature


class DiffSACLoss(DenoisingQLoss):
    """Soft actor-critic with the steps of a denoising chain as actions (arXiv 2512.02019).

    Reads transitions ``[*B]`` that keep their chains and returns ``loss_critic``, ``loss_actor``
    and, with a learned temperature, ``loss_alpha``, to be summed. Every call draws
    ``sampled_steps`` steps of each chain. The actor's gradient goes through one denoising step,
    never through a chain: with ``target_steps=1`` and stored chains an update costs what SAC's
    does, however long the chain is::

        L_Q  = sum_j (Q_j(s, x_{n+1}, n) - y)^2
        L_pi = T LR_n(x') - min_j Q_j(s, x', n),   x' = m_n + std_n xi
        L_T  = T stopgrad(H - H_target),           H = -N mean(LR)

    No term has a gradient in the parameters of another. To update the policy less often, call
    :meth:`critic_loss` for every update and :meth:`actor_loss` and :meth:`alpha_loss` for some.

    The defaults are the published objective with one-step targets. What learned best in
    docs/diffsac.md, and what the trainer uses, is ``squashed_entropy=True, fresh_chains=True,
    center_entropy=True, target_steps=N, delay_critic=False, critic_reduction="mean"`` with
    batch-renormalised critics, ``CriticConfig(atoms=None)``.

    Random actions need chains, too: :class:`~diffpolicy.actors.RandomChains` writes them, where a
    collector's ``init_random_frames`` would leave latents of zero beside other actions.

    Args:
        actor_network: a :class:`~diffpolicy.actors.ChainActor`.
        critic_network: reads the observation, ``next_latent`` and ``step``, writes
            ``state_action_value`` ``[*B, E, 1]`` for ``E`` critics (``[*B, 1]`` for one) and, if a
            submodule of it is an :class:`~diffpolicy.networks.HLGauss`,
            ``state_action_value_logits`` ``[*B, E, K]``.
        temperature: a number, or a Temperature. The entropy is that of the chain, ``-sum_n LR_n``,
            without the prior's constant.
        squashed_entropy: measure the entropy after squashing: the last step's cost is then
            ``LR - log |d tanh(x_N)|``, as in DIME. Without it, as published, nothing but the chain
            itself keeps latents away from where tanh is flat.
        sampled_steps: steps of each chain in an update (kappa), of the N different ones.
        target_steps: steps of the current policy that a target simulates before it bootstraps.
            One is the cheapest; more carry rewards through the chain in fewer updates.
        fresh_chains: train on chains that the current policy draws for the observations of the
            batch; of those that acted only the last steps remain, for the critics, because they
            were rewarded. Inside a chain the environment has no part, so nothing else is lost. It
            costs a forward pass through the chain, without gradient.
        center_entropy: count entropies in targets from the target entropy of a learned temperature
            on, as in the Lagrangian of the constrained problem. Values then do not drift by
            ``T H / (1 - gamma)``, which would make whatever the critics have not seen look better.
            Where episodes terminate, ``-T H_target`` becomes a bonus for every step survived.
        delay_critic: whether next values come from a target network (TorchRL's ``SoftUpdate``).
            Without one, current and next pairs share one forward, as for batch normalisation.
        critic_reduction: ``"min"`` or ``"mean"`` over the critics.
        loss_critic_type: ``"l1"``, ``"l2"`` or ``"smooth_l1"``, for scalar critics.
        discount_mode: ``"env"`` (gamma acts between environment steps only) or
            ``"denoising_step"`` (at every denoising step).
        separate_losses: whether parameters shared with the actor get no gradient from the critic.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    The discount is set by ``make_value_estimator(gamma=...)``, default 0.99. The absolute error of
    the value, the largest among the critics and the mean over the sampled steps, is written into
    the input as ``td_error`` ``[*B]`` for prioritised replay, unless the input is locked.

    Diagnostics, detached: ``q_value``, ``target_value``, ``td_error``, ``entropy_bound``, ``alpha``
    and, with an HL-Gauss critic, ``value_clip_fraction`` (share of targets outside its support).

    Raises:
        TypeError: if the actor lacks members of ChainActor (or ``squash_log_det``), or for a bad
            temperature type.
        ValueError: for arguments outside their range or that do not go together.
    """

    def __init__(
        self,
        actor_network: nn.Module,
        critic_network: TensorDictModule,
        *,
        temperature: float | Temperature,
        sampled_steps: int = 1,
        target_steps: int = 1,
        delay_critic: bool = True,
        critic_reduction: CriticReduction = "min",
        loss_critic_type: fn.ValueLoss = "l2",
        discount_mode: fn.DiscountMode = "env",
        squashed_entropy: bool = False,
        fresh_chains: bool = False,
        center_entropy: bool = False,
        separate_losses: bool = False,
        reduction: str = "mean",
    ) -> None:
        super().__init__(
            actor_network,
            critic_network,
            temperature=temperature,
            sampled_steps=sampled_steps,
            target_steps=target_steps,
            delay_critic=delay_critic,
            critic_reduction=critic_reduction,
            loss_critic_type=loss_critic_type,
            discount_mode=discount_mode,
            squashed_entropy=squashed_entropy,
            fresh_chains=fresh_chains,
            center_entropy=center_entropy,
            separate_losses=separate_losses,
            reduction=reduction,
        )
        self.make_value_estimator()

    def _default_out_keys(self) -> list[NestedKey]:
        losses: list[NestedKey] = ["loss_critic", "loss_actor"]
        if self.temperature.learned:
            losses.append("loss_alpha")
        return [*losses, *self._critic_out_keys(), "entropy_bound", "alpha"]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All loss terms and diagnostics of transitions ``[*B]``, see the class."""
        rows = self._sampled_rows(tensordict)
        critic, diagnostics = self._critic_loss(rows, tensordict)
        actor, costs = self._actor_loss(rows, tensordict)
        out = {"loss_critic": critic, "loss_actor": actor, **diagnostics}
        if self.temperature.learned:
            out["loss_alpha"] = self.alpha_loss(tensordict, costs["entropy_bound"])
        out["entropy_bound"] = self._reduce(costs["entropy_bound"], tensordict, "mean")
        out["alpha"] = self.temperature()
        batch_size = self._output_batch_size(tensordict)
        out = {key: value.expand(batch_size) for key, value in out.items()}
        self._clear_weakrefs(
            tensordict,
            rows,
            "actor_network_params",
            "critic_network_params",
            "target_critic_network_params",
        )
        return TensorDict(out, batch_size)

    def critic_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of all critics, and diagnostics; writes ``td_error`` into an unlocked input."""
        return self._critic_loss(self._sampled_rows(tensordict), tensordict)

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """``T LR_n - Q_n`` of one step of the policy, and ``entropy_bound`` ``[*B, 1]``."""
        return self._actor_loss(self._sampled_rows(tensordict), tensordict)

    def alpha_loss(self, tensordict: TensorDictBase, entropy: Tensor) -> Tensor:
        """Loss of the temperature.

        Args:
            tensordict: transitions ``[*B]``; masks and priority weights are read.
            entropy: ``entropy_bound`` of :meth:`actor_loss` ``[*B, 1]``.
        """
        return self._reduce(self.temperature.loss(entropy), tensordict)

    def _actor_loss(
        self, rows: TensorDictBase, transitions: TensorDictBase
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            proposed, cost = self._propose(self._policy_rows(rows))
        params = self.critic_network_params.detach()
        with evaluation_mode(self.critic_network):
            values = self._evaluate(params, self._critic_inputs(proposed))
        loss = self.temperature() * cost - self._over_critics(values.value)
        entropy = -self.denoising_steps * self._average(cost.detach(), transitions)
        loss = self._reduce(self._average(loss, transitions), transitions)
        return loss, {"entropy_bound": entropy}
