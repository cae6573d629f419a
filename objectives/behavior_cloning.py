"""Behaviour cloning: the network of a chain is fitted to demonstrated actions."""

from dataclasses import dataclass

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn
from torchrl.objectives.value import ValueEstimatorBase

from diffpolicy.actors import RegressionActor, observation_keys
from diffpolicy.actors.chains import draw_steps
from diffpolicy.actors.keys import required
from objectives.base import DiffusionLoss
from objectives.draws import Draws
from objectives.regression.parts import Noised, noised_actions, valid_actions


class CloningTerm:
    """``|scale_n (net(x_n, n, s) - y)|^2 / A`` of given actions, see :class:`BehaviorCloningLoss`.

    A part of losses: parameters belong to the loss, and are in the actor when it is called.

    Args:
        actor: whose network is fitted.
        sampled_steps: steps of each action, of the N different ones.
        latent_limit: latents of actions are cut off here.

    Raises:
        ValueError: for arguments outside their range.
    """

    #: Names of its random numbers in the ``draws`` of a loss.
    reads = ("step", "noise")

    def __init__(
        self, actor: RegressionActor, *, sampled_steps: int = 1, latent_limit: float = 3.0
    ) -> None:
        if not 1 <= sampled_steps <= actor.denoising_steps:
            raise ValueError(
                f"sampled_steps must be between 1 and {actor.denoising_steps}, the steps of the "
                f"chain, got {sampled_steps}."
            )
        if latent_limit <= 0:
            raise ValueError(f"latent_limit must be above 0, got {latent_limit}.")
        self.actor = actor
        self.denoising_steps = actor.denoising_steps
        self.sampled_steps = sampled_steps
        self.latent_limit = latent_limit

    def draw(self, action: Tensor) -> dict[str, Tensor]:
        """``step`` ``[*B, sampled_steps, 1]`` and ``noise`` ``[*B, sampled_steps, A]``."""
        batch, number = action.shape[:-1], self.sampled_steps
        step = draw_steps(self.denoising_steps, batch, number, action.device)
        noise = torch.randn_like(action.new_empty(*batch, number, action.shape[-1]))
        return {"step": step.movedim(0, -1).unsqueeze(-1), "noise": noise}

    def error(self, rows: TensorDictBase, action: Tensor, draws: Draws) -> Tensor:
        """The term ``[*B, 1]``, averaged over the sampled steps.

        Args:
            rows: have the observation keys, ``[*B]``.
            action: ``[*B, A]`` in the bounds of the actor.
            draws: see :meth:`draw`.
        """
        keys, process = self.actor.keys, self.actor.process
        with torch.no_grad():
            noised = self._noised(rows, action, draws)
            step = required(noised.rows, keys.step).squeeze(-1)
            latent = required(noised.rows, keys.latent)
            wanted = process.output_for_clean(latent, noised.clean, step)
            scale = process.noise_per_output(step)
        error = scale * (self.actor.output(noised.rows) - wanted)
        return error.square().mean(-1, keepdim=True).flatten(0, 1).mean(0)

    def _noised(self, rows: TensorDictBase, action: Tensor, draws: Draws) -> Noised:
        """Actions at the sampled steps, rows ``[sampled_steps, 1, *B]``."""
        actor, limit = self.actor, self.latent_limit
        if actor.squash.latent_bounds is None:
            action = actor.squash(actor.squash.inverse(action).clamp(-limit, limit))
        step, noise = draws.get("step", 1), draws.get("noise", 1)
        if step is None:
            step = draw_steps(
                self.denoising_steps, rows.batch_size, self.sampled_steps, action.device
            ).unsqueeze(-1)
        return noised_actions(
            actor,
            rows.select(*observation_keys(actor), strict=False),
            action.unsqueeze(0),
            step.squeeze(-1),
            None if noise is None else noise.unsqueeze(1),
            level=actor.process.bridge_level,
        )


@dataclass
class DemonstrationKeys:
    """Configurable keys of behaviour cloning; ``action`` must be the actor's."""

    action: NestedKey = "action"
    priority_weight: NestedKey = "priority_weight"


class BehaviorCloningLoss(DiffusionLoss):
    """Behaviour cloning of demonstrations by denoising score matching, without simulating chains.

    With the latent ``x_N`` of a demonstrated action, a random step n and its latent ``x_n``, drawn
    from chains that begin at the prior and end in ``x_N``::

        x_n  = signal_n x_N + std_n eps                          (process.bridge_level)
        L_pi = | scale_n (net(x_n, n, s) - y(x_n, x_N)) |^2 / A   (process.output_for_clean)

    ``y`` is the output whose step has the mean of the step of these chains, and ``scale_n`` turns
    its error into one of the noise (``process.noise_per_output``). Of a
    :class:`~diffpolicy.sde.VariancePreservingProcess` it is the noise, and the loss that of DDPM
    (arXiv 2006.11239); of a :class:`~diffpolicy.sde.RectifiedFlowProcess` the velocity ``x_N -
    eps`` (arXiv 2209.03003). Of a :class:`~diffpolicy.sde.DenoisingProcess` it is the score whose
    denoising kernel has the mean of ``p(x_{n+1} | x_n, x_N)``: denoising score matching (Vincent
    2011), exact for steps of any size, and also where the noising does not forget the action (the
    bridge matching of arXiv 2303.16852 with independent ends).

    Returns ``loss_actor``, and the diagnostic ``noise_error``, detached: the root of the mean
    square over steps and dimensions. Step sizes and friction of the process get no gradient.

    Args:
        actor_network: a :class:`~diffpolicy.actors.RegressionActor`, or a ``TensorDictSequential``
            of encoders and one.
        sampled_steps: steps of each action in a call, of the N different ones.
        latent_limit: latents of actions are cut off here, for actors that squash: an action at a
            bound has none that is finite. tanh(3) is 0.995.
        reduction: ``"mean"`` (also None), ``"sum"`` or ``"none"``.

    Every random number of a call can be given as ``draws``, see :meth:`draw`.

    Raises:
        TypeError: if the actor lacks members; Gaussian policies do.
        ValueError: for arguments outside their range, and in a call for actions outside of the
            actor's bounds.

    Examples:
        >>> from diffpolicy.actors import ActionClip, DenoisingActor
        >>> from diffpolicy.networks import ScoreNetwork
        >>> from diffpolicy.sde import VariancePreservingProcess
        >>> clip = ActionClip(-torch.ones(2), torch.ones(2))
        >>> process = VariancePreservingProcess(2, 10)
        >>> actor = DenoisingActor(process, ScoreNetwork(2, 3, 10), clip)
        >>> loss = BehaviorCloningLoss(actor)
        >>> demonstrations = {"observation": torch.randn(5, 3), "action": torch.zeros(5, 2)}
        >>> loss(TensorDict(demonstrations, [5]))["loss_actor"].shape
        torch.Size([])
    """

    _AcceptedKeys = DemonstrationKeys
    default_keys = DemonstrationKeys
    tensor_keys: DemonstrationKeys

    def __init__(
        self,
        actor_network: nn.Module,
        *,
        sampled_steps: int = 1,
        latent_limit: float = 3.0,
        reduction: str | None = None,
    ) -> None:
        super().__init__(actor_network, protocol=RegressionActor, reduction=reduction)
        self.cloning = CloningTerm(
            self.actor_network, sampled_steps=sampled_steps, latent_limit=latent_limit
        )

    def _default_in_keys(self) -> list[NestedKey]:
        return [*observation_keys(self.actor_network), self.tensor_keys.action]

    def _default_out_keys(self) -> list[NestedKey]:
        return ["loss_actor", "noise_error"]

    def _make_default_estimator(self, **hyperparams: object) -> ValueEstimatorBase:
        raise NotImplementedError("BehaviorCloningLoss estimates no values.")

    def draw(self, tensordict: TensorDictBase) -> TensorDictBase:
        """All random numbers of one call on demonstrations ``[*B]``, for ``draws``.

        ``step`` ``[*B, sampled_steps, 1]``, the steps that are trained on, and ``noise``
        ``[*B, sampled_steps, A]``, standard normal. Both are optional in ``draws``.
        """
        rows = self._enter(tensordict)
        action = required(rows, self.tensor_keys.action)
        return TensorDict(self.cloning.draw(action), rows.batch_size)

    @dispatch
    def forward(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> TensorDictBase:
        """Loss and diagnostic of demonstrations ``[*B]``, see the class."""
        rows = self._enter(tensordict)
        loss, described = self.actor_loss(rows, draws=draws)
        described = {key: self._describe(value, rows) for key, value in described.items()}
        return self._output({"loss_actor": loss, **described}, rows, tensordict)

    def actor_loss(
        self, tensordict: TensorDictBase, *, draws: TensorDictBase | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """``|scale (net - y)|^2 / A``, and the diagnostic ``[*B, 1]``.

        Args:
            tensordict: demonstrations ``[*B]``.
            draws: see :meth:`draw`.
        """
        rows = self._enter(tensordict)
        action = required(rows, self.tensor_keys.action)
        action = valid_actions(self.actor_network.squash, action, self._valid(rows, action))
        given = Draws(draws, rows.batch_size, self.cloning.reads)
        with self.actor_network_params.to_module(self.actor_network, preserve_module_state=False):
            error = self.cloning.error(rows, action, given)
        return self._reduce(error, rows), {"noise_error": error.detach().sqrt()}
