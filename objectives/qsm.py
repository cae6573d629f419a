"""QSM: Q-score matching, a regression of the score on the gradient of the critic."""

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, unravel_key
from tensordict.nn import dispatch
from torch import Tensor, nn

from diffpolicy.actors import DenoisingMDP, ScoreActor
from diffpolicy.actors.keys import required
from diffpolicy.networks import HLGauss
from objectives import functional as fn
from objectives.base import evaluation_mode
from objectives.draws import Draws
from objectives.paths import sample_path
from objectives.q_critic import CriticReduction, QNetworks
from objectives.replay_loss import ReplayLoss
from objectives.temperature import Temperature
from objectives.transitions import next_entry, return_discount


class QSMLoss(ReplayLoss):
    """Q-score matching (arXiv 2312.11752) under the denoising process of the actor.

    The policy that maximises value plus entropy is ``exp(Q(s, a) / T)``, whose score is the
    gradient of the critic. The score network is regressed on it at noised actions of the replay
    buffer, so that no gradient goes through a chain. On transitions ``[*B]``::

        L_Q  = sum_j (Q_j(s, a) - y)^2,   y = r + gamma (1 - terminated) min_j Q_j(s', a')
        L_pi = |f(x_n, n, s) - stopgrad(reversing_score(x_n, g))|^2 / A
        g    = mean_j grad_x Q_j(s, squash(x_n)) / T + grad_x log |d tanh(x_n)|
        L_T  = T stopgrad(H - H_target)

    ``x_n`` is the action of the buffer noised to a random step n, ``a'`` an action of the policy,
    ``f`` the score network and ``reversing_score`` the output with which the chain reverses the
    noising of a density with the score g. The gradient of the critic stands for the score of the
    *noised* density, as published: exact at the end of the chain, too sharp before it.

    Returns ``loss_qvalue``, ``loss_actor`` and, with a learned temperature, ``loss_alpha``, to be
    summed. No term has a gradient in the parameters of another. To update the policy less often,
    call :meth:`qvalue_loss` for every update and :meth:`actor_loss` and :meth:`alpha_loss` for
    some. Step sizes and friction of the process get no gradient: nothing here depends on them.

    Args:
        actor_network: a :class:`~diffpolicy.actors.ScoreActor` with a ``squash``, or a
            ``TensorDictSequential`` of encoders and one.
        qvalue_network: reads the observation and the action, writes ``state_action_value``
            ``[*B, E, 1]`` for ``E`` critics (``[*B, 1]`` for one) and, if a submodule of it is an
            :class:`~diffpolicy.networks.HLGauss`, ``state_action_value_logits`` ``[*B, E, K]``. Or
            a list of such modules for one critic each, or a tensordict ``EnsembleModule``.
        temperature: a number above 0, or a Temperature. Published: fixed, 1/50 for rewards of the
            DeepMind Control Suite (1/120 on two tasks). The target of a learned one refers to
            ``entropy``.
        num_qvalue_nets: make so many critics of one network for one critic; None takes it as it is.
        sampled_steps: steps of each noised chain in an update, of the N different ones.
        delay_qvalue: whether next values come from a target network (TorchRL's ``SoftUpdate``).
        critic_reduction: ``"min"`` or ``"mean"`` over the critics, in targets.
        loss_function: ``"l1"``, ``"l2"`` or ``"smooth_l1"``, for scalar critics.
        separate_losses: whether parameters shared with the actor get no gradient from the critic.
        reduction: ``"mean"`` (also None), ``"sum"`` or ``"none"``.

    The discount is set by ``make_value_estimator(gamma=...)``, default 0.99. The absolute error of
    the value, the largest among the critics, is written into the input as ``td_error`` ``[*B]`` for
    prioritised replay, unless the input is locked.

    Every random number of a call can be given as ``draws``, see :meth:`draw`.

    Diagnostics, detached: ``q_value``, ``target_value``, ``td_error``, ``score_norm`` (of the
    target that the score network is regressed on, per dimension: the root of its mean square),
    ``entropy`` (of chains of the policy, the prior's term left out: what the temperature's target
    refers to), ``entropy_bound`` (of the action in [-1, 1] units), ``alpha`` and, with an HL-Gauss
    critic, ``value_clip_fraction`` (share of targets outside its support).

    Raises:
        TypeError: if the actor lacks members of ScoreActor, or for a bad temperature type.
        ValueError: for arguments outside their range or that do not go together.
    """

    def __init__(
        self,
        actor_network: nn.Module,
        qvalue_network: QNetworks,
        *,
        temperature: float | Temperature,
        num_qvalue_nets: int | None = None,
        sampled_steps: int = 1,
        delay_qvalue: bool = True,
        critic_reduction: CriticReduction = "min",
        loss_function: fn.ValueLoss = "l2",
        separate_losses: bool = False,
        reduction: str | None = None,
    ) -> None:
        super().__init__(actor_network, protocol=ScoreActor, reduction=reduction)
        self.critic = self._add_qvalue_network(
            qvalue_network,
            num_qvalue_nets,
            delay=delay_qvalue,
            separate=separate_losses,
            reduction=critic_reduction,
            loss_function=loss_function,
        )
        self._add_temperature(temperature)
        if self.temperature.is_zero:
            raise ValueError("temperature must be above 0: the critic's gradient is divided by it.")
        self.mdp = DenoisingMDP(self.actor_network)
        if not 1 <= sampled_steps <= self.mdp.denoising_steps:
            raise ValueError(
                f"sampled_steps must be between 1 and {self.mdp.denoising_steps}, the steps of the "
                f"chain, got {sampled_steps}."
            )
        self.sampled_steps = sampled_steps
        self.make_value_estimator()

    @property
    def value_support(self) -> HLGauss | None:
        """The bins of an HL-Gauss critic, None for a scalar one."""
        return self.critic.bins

    def _default_in_keys(self) -> list[NestedKey]:
        keys, observation = self.tensor_keys, self.mdp.observation_keys
        following = (*observation, keys.reward, keys.terminated)
        return [*observation, keys.action, *(unravel_key(("next", key)) for key in following)]

    def _default_out_keys(self) -> list[NestedKey]:
        alpha = ["loss_alpha"] if self.temperature.learned else []
        described = [*self.critic.diagnostic_keys, "entropy", "entropy_bound", "score_norm"]
        return ["loss_qvalue", "loss_actor", *alpha, *described, "alpha"]

    def draw(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All random numbers of one call on transitions ``[*B]``, for ``draws``.

        With kappa ``sampled_steps``: ``step`` ``[*B, kappa, 1]``, the steps that are trained on,
        ``chain`` ``[*B, N, A]``, which noises the actions, ``noise`` and ``next_noise``
        ``[*B, N+1, A]``, of the chains whose entropy is measured and of those of the next actions.
        All are optional in ``draws``.
        """
        tensordict = self._enter(tensordict)
        action = required(tensordict, self.tensor_keys.action)
        batch, steps = tensordict.batch_size, self.mdp.denoising_steps
        step = self.mdp.draw_steps(batch, self.sampled_steps, action.device)
        noise = {
            name: torch.randn_like(action.new_empty(*batch, rows, action.shape[-1]))
            for name, rows in (("chain", steps), ("noise", steps + 1), ("next_noise", steps + 1))
        }
        return TensorDict({"step": step.movedim(0, -1).unsqueeze(-1), **noise}, batch)

    @dispatch
    def forward(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> TensorDictBase:
        """All loss terms and diagnostics of transitions ``[*B]``, see the class."""
        transitions = self._enter(tensordict)
        qvalue, diagnostics = self.qvalue_loss(transitions, draws=draws)
        self._leave(transitions, tensordict)
        actor, described = self.actor_loss(transitions, draws=draws)
        out = {"loss_qvalue": qvalue, "loss_actor": actor, **diagnostics}
        if self.temperature.learned:
            out["loss_alpha"] = self.alpha_loss(transitions, described["entropy"])
        out |= {key: self._describe(value, transitions) for key, value in described.items()}
        out["alpha"] = self.temperature()
        return self._output(out, transitions, tensordict)

    def qvalue_loss(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of all critics, and diagnostics; writes ``td_error`` into an unlocked input."""
        transitions, keys, critic = self._enter(tensordict), self.tensor_keys, self.critic
        following, noise = transitions["next"], self._draws(draws, transitions).get("next_noise")
        with torch.no_grad():
            path = sample_path(self.actor_network, following, noise)
        current, coming = critic.current_and_next(
            critic.action_inputs(transitions, keys.action, required(transitions, keys.action)),
            critic.action_inputs(following, keys.action, path.action).unsqueeze(0),
            keys,
            self.qvalue_network_params,
            self.target_qvalue_network_params if self.delay_qvalue else None,
        )
        with torch.no_grad():
            target = self._target(transitions, critic.over_critics(coming.value).squeeze(0))
        distance = critic.distance(current, target)
        loss = self._fit(distance, critic.diagnostics(current, target), transitions)
        self._leave(transitions, tensordict)
        return loss

    def actor_loss(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``|f - target|^2 / A``, and ``score_norm`` and entropies ``[*B, 1]``."""
        transitions = self._enter(tensordict)
        given = self._draws(draws, transitions)
        rows = self._noised_rows(transitions, given)
        latent = rows[self.chain_keys.latent]
        gradient = self._value_gradient(rows, latent) + self._squashing_gradient(latent)
        target = self.actor_network.reversing_score(latent, gradient).detach()
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            score = self.actor_network.score(rows)
        # Squares are averaged over the action dimensions and the sampled steps.
        loss = (score - target).square().mean(-1, keepdim=True).mean(0)
        norm = target.square().mean(-1, keepdim=True).mean(0).sqrt()
        described = {"score_norm": norm, **self._entropies(transitions, given.get("noise"))}
        return self._reduce(loss, transitions), described

    def _draws(self, draws: TensorDictBase | None, tensordict: TensorDictBase) -> Draws:
        return Draws(draws, tensordict.batch_size, ("step", "chain", "noise", "next_noise"))

    # -- the policy ---------------------------------------------------------------------------

    def _noised_rows(self, transitions: TensorDictBase, draws: Draws) -> TensorDictBase:
        """The actions of the buffer noised to the sampled steps, rows ``[kappa, *B]``."""
        mdp, given = self.mdp, draws.get("step", 1)
        action = self._valid_actions(transitions)
        if given is None:
            step = mdp.draw_steps(transitions.batch_size, self.sampled_steps, action.device)
        else:
            step = given.squeeze(-1)
        read = [key for key in self.qvalue_network.in_keys if key != self.tensor_keys.action]
        further = [key for key in read if key not in mdp.observation_keys]
        chains = transitions.select(*mdp.observation_keys, *further)
        latents = mdp.chains_for(transitions, action, draws.get("chain"))
        return mdp.rows_at(chains.set(self.chain_keys.latents, latents), step, carry_keys=further)

    def _valid_actions(self, transitions: TensorDictBase) -> Tensor:
        """Actions of the buffer; padding, which may hold anything, becomes one in the bounds."""
        action = required(transitions, self.tensor_keys.action)
        valid = self._valid(transitions, action)
        inside = self.actor_network.squash(torch.zeros_like(action))
        return action if valid is None else torch.where(valid, action, inside)

    def _value_gradient(self, rows: TensorDictBase, latent: Tensor) -> Tensor:
        """``mean_j grad_x Q_j(s, squash(x)) / T``, without gradient in any parameter."""
        params, key = self.qvalue_network_params.detach(), self.tensor_keys.action

        def total(latent: Tensor) -> Tensor:
            inputs = self.critic.action_inputs(rows, key, self.actor_network.squash(latent))
            value = self.critic.evaluate(params, inputs, self.tensor_keys).value
            return value.mean(-2).sum()

        with evaluation_mode(self.qvalue_network):
            return torch.func.grad(total)(latent.detach()).detach() / self.temperature()

    @torch.no_grad()
    def _entropies(self, transitions: TensorDictBase, noise: Tensor | None) -> dict[str, Tensor]:
        path = sample_path(self.actor_network, transitions, noise)
        bound = fn.entropy_bound(path.running_cost, path.terminal_cost)
        return {"entropy": -path.running_cost, "entropy_bound": bound}

    def _squashing_gradient(self, latent: Tensor) -> Tensor:
        """``grad_x log |d tanh(x)|``."""
        log_det = self.actor_network.squash_log_det
        return torch.func.grad(lambda x: log_det(x).sum())(latent.detach())

    def _target(self, transitions: TensorDictBase, next_value: Tensor) -> Tensor:
        """``r + gamma (1 - terminated) Q(s', a')``: the entropy has no part in the values."""
        keys, estimator = self.tensor_keys, self.value_estimator
        reward = next_entry(transitions, keys.reward)
        return fn.soft_target(
            next_value,
            reward,
            next_entry(transitions, keys.terminated),
            torch.zeros_like(next_value),
            discount=return_discount(estimator, transitions, reward),
            temperature=self.temperature(),
        )
