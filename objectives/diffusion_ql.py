"""Diffusion Q-learning: cloning of replayed actions, and values through the whole chain."""

from typing import ClassVar

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor, nn

from diffpolicy.actors import RegressionActor, observation_keys
from diffpolicy.actors.keys import required
from diffpolicy.networks import HLGauss
from diffpolicy.networks.ranks import sum_over_ranks
from objectives import functional as fn
from objectives.behavior_cloning import CloningTerm
from objectives.checks import check_not_negative
from objectives.draws import Draws
from objectives.q_critic import CriticReduction, QNetworks
from objectives.regression.parts import valid_actions
from objectives.replay_loss import ActionCriticLoss


class DiffusionQLLoss(ActionCriticLoss):
    """Diffusion Q-learning (arXiv 2208.06193), for data sets and for replay.

    The policy clones the actions of the data, and is drawn to those that the critics value. On
    transitions ``[*B]``, with actions ``a_0`` of whole chains of the policy and ``a'_k`` of the
    target policy::

        L_Q  = sum_j (Q_j(s, a) - y)^2,   y = r + gamma (1 - terminated) min_j max_k Q'_j(s', a'_k)
        L_pi = L_BC - eta mean_B Q_i(s, a_0) / stopgrad(mean_B |Q_l(s, a_0)|)

    ``L_BC`` is the term of :class:`~objectives.BehaviorCloningLoss` for ``a``. The gradient of the
    second one goes through the chain. The critic i is drawn for each row, and l is the next one, of
    which only the size counts, over the batches of all ranks: eta then means the same on every
    task.

    Returns ``loss_qvalue`` and ``loss_actor``, to be summed; no term has a gradient in the
    parameters of another. To update the policy less often, call :meth:`qvalue_loss` for every
    update and :meth:`actor_loss` for some. Targets are moved by TorchRL's ``SoftUpdate``.

    Args:
        actor_network: a :class:`~diffpolicy.actors.RegressionActor` whose ``sample_action`` can be
            differentiated, as that of :class:`~diffpolicy.actors.DenoisingActor`, or a
            ``TensorDictSequential`` of encoders and one.
        qvalue_network: see :class:`~objectives.DenoisingRegressionLoss`.
        eta: weight of the values. Published: 1, on single tasks between .005 and 3.5. A buffer.
        num_qvalue_nets: make so many critics of one network for one critic; None takes it as it is.
        sampled_steps: steps of each action that are cloned in an update, of the N different ones.
        latent_limit: see :class:`~objectives.BehaviorCloningLoss`.
        best_of: number of next actions, of which each critic takes its own best one. Published: 1,
            and 10 on AntMaze ("max-Q backup").
        delay_qvalue: whether next values come from a target network.
        delay_actor: whether next actions come from a target actor.
        critic_reduction: ``"min"`` or ``"mean"`` over the critics, in targets.
        loss_function: ``"l1"``, ``"l2"`` or ``"smooth_l1"``, for scalar critics.
        separate_losses: whether parameters shared with the actor get no gradient from the critic.
        reduction: ``"mean"`` (also None), ``"sum"`` or ``"none"``; the size of values is that of
            the batch with each of them.

    The discount is set by ``make_value_estimator(gamma=...)``, default 0.99. The absolute error of
    the value, the largest among the critics, is written into the input as ``td_error`` ``[*B]`` for
    prioritised replay, unless the input is locked.

    Every random number of a call can be given as ``draws``, see :meth:`draw`.

    Diagnostics, detached: ``q_value``, ``target_value``, ``td_error``, ``noise_error`` (of the
    cloning), ``policy_value`` (``Q_i(s, a_0)``), ``alpha``, which is 0: there is no entropy term,
    and with an HL-Gauss critic ``value_clip_fraction``.

    Raises:
        TypeError: if the actor lacks members.
        ValueError: for arguments outside their range.

    Examples:
        >>> from tensordict.nn import TensorDictModule
        >>> from torchrl.objectives import SoftUpdate
        >>> from diffpolicy.actors import ActionClip, DenoisingActor
        >>> from diffpolicy.networks import QEnsemble, ScoreNetwork
        >>> from diffpolicy.sde import VariancePreservingProcess
        >>> clip = ActionClip(-torch.ones(2), torch.ones(2))
        >>> process = VariancePreservingProcess(2, 5, schedule="vp")
        >>> actor = DenoisingActor(process, ScoreNetwork(2, 3, 5), clip)
        >>> read, written = ["observation", "action"], ["state_action_value"]
        >>> critic = TensorDictModule(QEnsemble(3, 2, hidden_sizes=(8,)), read, written)
        >>> loss = DiffusionQLLoss(actor, critic)
        >>> updater = SoftUpdate(loss, tau=0.005)
        >>> rows = TensorDict({"observation": torch.randn(5, 3), "action": torch.zeros(5, 2)}, [5])
        >>> ends = {"reward": torch.ones(5, 1), "terminated": torch.zeros(5, 1, dtype=torch.bool)}
        >>> rows["next"] = TensorDict({"observation": torch.randn(5, 3), **ends}, [5])
        >>> sorted(key for key in loss(rows).keys() if key.startswith("loss_"))
        ['loss_actor', 'loss_qvalue']
    """

    _schedulable_buffers: ClassVar[frozenset[str]] = frozenset({"eta"})

    eta: Tensor

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: QNetworks,
        *,
        eta: float = 1.0,
        num_qvalue_nets: int | None = None,
        sampled_steps: int = 1,
        latent_limit: float = 3.0,
        best_of: int = 1,
        delay_qvalue: bool = True,
        delay_actor: bool = True,
        critic_reduction: CriticReduction = "min",
        loss_function: fn.ValueLoss = "l2",
        separate_losses: bool = False,
        reduction: str | None = None,
    ) -> None:
        super().__init__(
            actor_network, protocol=RegressionActor, reduction=reduction, delay_actor=delay_actor
        )
        self.critic = self._add_qvalue_network(
            qvalue_network,
            num_qvalue_nets,
            delay=delay_qvalue,
            separate=separate_losses,
            reduction=critic_reduction,
            loss_function=loss_function,
        )
        self._add_temperature(0.0)
        check_not_negative("eta", eta)
        if best_of < 1:
            raise ValueError(f"best_of must be at least 1, got {best_of}.")
        self.cloning = CloningTerm(
            self.actor_network, sampled_steps=sampled_steps, latent_limit=latent_limit
        )
        self.best_of = best_of
        self.register_coeff_buffer("eta", float(eta))
        self.make_value_estimator()

    @property
    def value_support(self) -> HLGauss | None:
        """The bins of an HL-Gauss critic, None for a scalar one."""
        return self.critic.bins

    def _default_in_keys(self) -> list[NestedKey]:
        return self._transition_keys(observation_keys(self.actor_network))

    def _default_out_keys(self) -> list[NestedKey]:
        described = [*self.critic.diagnostic_keys, "noise_error", "policy_value", "alpha"]
        return ["loss_qvalue", "loss_actor", *described]

    def draw(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All random numbers of one call on transitions ``[*B]``, for ``draws``.

        ``step`` ``[*B, sampled_steps, 1]`` and ``noise`` ``[*B, sampled_steps, A]`` of the cloning,
        ``chain_noise`` ``[*B, N+1, A]`` of the actions that are valued, ``judge`` ``[*B, 1]``, the
        critic that values them (an integer, modulo their number), and ``next_noise``
        ``[*B, best_of, N+1, A]``. All are optional in ``draws``.
        """
        rows = self._enter(tensordict)
        action = required(rows, self.tensor_keys.action)
        batch, chain = rows.batch_size, (self.cloning.denoising_steps + 1, action.shape[-1])
        named = {
            **self.cloning.draw(action),
            "chain_noise": torch.randn_like(action.new_empty(*batch, *chain)),
            "judge": torch.randint(2**20, (*batch, 1), device=action.device),
            "next_noise": torch.randn_like(action.new_empty(*batch, self.best_of, *chain)),
        }
        return TensorDict(named, batch)

    def _draws(self, draws: TensorDictBase | None, rows: TensorDictBase) -> Draws:
        names = [*self.cloning.reads, "chain_noise", "judge", "next_noise"]
        return Draws(draws, rows.batch_size, names)

    def qvalue_loss(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of all critics, and diagnostics; writes ``td_error`` into an unlocked input."""
        transitions, keys, critic = self._enter(tensordict), self.tensor_keys, self.critic
        following, noise = transitions["next"], self._draws(draws, transitions).get("next_noise", 1)
        action = self.sample_actions(following, self.best_of, noise, delayed=self.delay_actor)
        current, coming = critic.current_and_next(
            critic.action_inputs(transitions, keys.action, required(transitions, keys.action)),
            critic.action_inputs(following.expand(action.shape[:-1]), keys.action, action),
            keys,
            self.qvalue_network_params,
            self.target_qvalue_network_params if self.delay_qvalue else None,
        )
        with torch.no_grad():
            next_value = critic.over_critics(coming.value.amax(0))
            target = self._value_target(transitions, next_value)
        distance = critic.distance(current, target)
        loss = self._fit(distance, critic.diagnostics(current, target), transitions)
        self._leave(transitions, tensordict)
        return loss

    def actor_loss(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``L_BC - eta Q_i / mean |Q_l|``, and diagnostics ``[*B, 1]``."""
        rows = self._enter(tensordict)
        given, actor = self._draws(draws, rows), self.actor_network
        action = required(rows, self.tensor_keys.action)
        action = valid_actions(actor.squash, action, self._valid(rows, action))
        observed = rows.select(*observation_keys(actor), strict=False)
        with self.actor_network_params.to_module(actor, preserve_module_state=False):
            error = self.cloning.error(rows, action, given)
            own = actor.sample_action(observed, noise=given.get("chain_noise"))
        value, size = self._judged(rows, own, given.get("judge"))
        described = {"noise_error": error.detach().sqrt(), "policy_value": value.detach()}
        return self._reduce(error - self.eta * value / size, rows), described

    def _judged(
        self, rows: TensorDictBase, action: Tensor, judge: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """``Q_i(s, a)`` ``[*B, 1]``, and the mean of ``|Q_l(s, a)|`` over the valid rows."""
        values = self.each_value(rows, action)
        number = values.shape[-2]
        if judge is None:
            judge = torch.randint(number, (*values.shape[:-2], 1), device=values.device)
        index = (judge % number).unsqueeze(-2)
        value = values.gather(-2, index).squeeze(-2)
        size = values.gather(-2, (index + 1) % number).squeeze(-2).detach().abs()
        valid = self._valid(rows, size)
        kept = torch.ones_like(size, dtype=torch.bool) if valid is None else valid
        size = torch.where(kept, size, 0.0)
        total, count = sum_over_ranks(torch.stack((size.sum(), kept.sum().to(size))))
        return value, (total / count.clamp_min(1)).clamp_min(torch.finfo(size.dtype).tiny)
