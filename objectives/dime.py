"""DIME: maximum-entropy reinforcement learning by backpropagation through the denoising chain."""

from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor

from objectives.base import evaluation_mode
from objectives.soft_q import SoftQLoss


class DIMELoss(SoftQLoss):
    """Soft actor-critic with the entropy bound of a denoising chain (arXiv 2502.02316).

    Reads transitions ``[*B]`` and returns ``loss_critic``, ``loss_actor`` and, with a learned
    temperature, ``loss_alpha``, to be summed. No term has a gradient in the parameters of another.
    To update the policy less often, call :meth:`critic_loss` for every update and
    :meth:`actor_loss` and :meth:`alpha_loss` for some.

    The published critic is a categorical :class:`~diffpolicy.networks.QEnsemble` with batch
    renormalisation and no target network: current and next state-action pairs go through it in
    one forward, in the mode that the critic is in, so that ``loss.train()`` makes it use and track
    batch statistics. The actor loss always runs it in evaluation mode. The classic recipe is a
    scalar critic, ``delay_critic=True``, ``critic_reduction="min"`` and TorchRL's ``SoftUpdate``.

    Args:
        actor_network: a :class:`~diffpolicy.actors.PathActor`.
        critic_network: reads the observation and the action, writes ``state_action_value``
            ``[*B, E, 1]`` for ``E`` critics (``[*B, 1]`` for one) and, if a submodule of it is a
            :class:`~diffpolicy.networks.CategoricalSupport`, ``state_action_value_logits``
            ``[*B, E, K]`` on its atoms.
        temperature: a number, or a Temperature. Published:
            ``LearnedTemperature(1.0, target_entropy=-4 * action_dim)``; the target refers to
            ``-(sum_n LR_n - log |d tanh|)``, without the prior's term.
        value_range: ``(minimum, maximum)`` or ``"auto"`` moves the atoms; None leaves them.
            ``"auto"`` derives the range from the rewards of the first batch that the critic loss
            sees; better call :meth:`derive_value_range` with all data of the warm-up before.
        delay_critic: whether next values come from a target network.
        critic_reduction: ``"mean"`` or, for scalar critics, ``"min"``, over the critics.
        loss_critic_type: ``"l1"``, ``"l2"`` or ``"smooth_l1"``, for scalar critics.
        critic_entropy_coeff: weight of the critics' own negative entropy, categorical critics only.
        num_next_actions: number of next actions that the target is averaged over.
        checkpoint_chain: save memory in the actor loss by computing activations of the chain again.
        separate_losses: whether parameters shared with the actor get no gradient from the critic.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``.

    The discount is set by ``make_value_estimator(gamma=...)``, default 0.99. The absolute error of
    the value, the largest among the critics, is written into the input as ``td_error`` ``[*B]`` for
    prioritised replay, unless the input is locked.

    Diagnostics, detached: ``q_value``, ``target_value``, ``td_error``, ``entropy_bound``,
    ``running_cost``, ``terminal_cost``, ``alpha``, and for categorical critics
    ``clip_fraction`` (probability that targets put outside of the value range) and
    ``critic_entropy``.

    Raises:
        TypeError: if the actor lacks members of PathActor, or for a bad temperature type.
        ValueError: for arguments outside their range or that do not go together.
    """

    def _default_out_keys(self) -> list[NestedKey]:
        losses: list[NestedKey] = ["loss_critic", "loss_actor"]
        if self.temperature.learned:
            losses.append("loss_alpha")
        costs = ["entropy_bound", "running_cost", "terminal_cost", "alpha"]
        return [*losses, *self._critic_out_keys(), *costs]

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All loss terms and diagnostics of transitions ``[*B]``, see the class."""
        critic, diagnostics = self.critic_loss(tensordict)
        actor, costs = self.actor_loss(tensordict)
        out = {"loss_critic": critic, "loss_actor": actor, **diagnostics}
        if self.temperature.learned:
            out["loss_alpha"] = self.alpha_loss(tensordict, costs["running_cost"])
        for key, value in costs.items():
            out[key] = self._reduce(value, tensordict, "mean")
        out["entropy_bound"] = -(out["running_cost"] + out["terminal_cost"])
        out["alpha"] = self.temperature()
        batch_size = self._output_batch_size(tensordict)
        out = {key: value.expand(batch_size) for key, value in out.items()}
        self._clear_weakrefs(
            tensordict,
            "actor_network_params",
            "critic_network_params",
            "target_critic_network_params",
        )
        return TensorDict(out, batch_size)

    def actor_loss(self, tensordict: TensorDictBase) -> tuple[Tensor, dict[str, Tensor]]:
        """``-Q + alpha (run + term)``, and ``running_cost`` and ``terminal_cost`` ``[*B, 1]``."""
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            path = self._sample_path(tensordict, checkpoint=self.checkpoint_chain)
        params = self.critic_network_params.detach()
        with evaluation_mode(self.critic_network):
            values = self._evaluate(params, self._critic_inputs(tensordict, path.action))
        value = self._over_critics(values.value)
        loss = self.temperature() * (path.running_cost + path.terminal_cost) - value
        costs = {"running_cost": path.running_cost, "terminal_cost": path.terminal_cost}
        return self._reduce(loss, tensordict), {k: v.detach() for k, v in costs.items()}

    def alpha_loss(self, tensordict: TensorDictBase, running_cost: Tensor) -> Tensor:
        """Loss of the temperature.

        Args:
            tensordict: transitions ``[*B]``; masks and priority weights are read.
            running_cost: of :meth:`actor_loss` ``[*B, 1]``.
        """
        return self._reduce(self.temperature.loss(-running_cost), tensordict)
