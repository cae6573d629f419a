"""TorchRL's diffusion actor as one of ours."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torchrl.data import TensorSpec
from torchrl.modules import DiffusionActor

from diffpolicy.actors.actor import DenoisingActor
from diffpolicy.actors.keys import ActorKeys, ReturnedChain
from diffpolicy.actors.squashing import ActionClip, action_bounds
from diffpolicy.errors import ArgumentError
from diffpolicy.sde import DeterministicStep, LinearBetas, VariancePreservingProcess


class ConcatenatedScore(nn.Module):
    """A score network with the input of TorchRL's: latent, observation and time in one vector.

    TorchRL counts time backwards: our step n is its ``t = N - 1 - n``, which it sees as a number.

    Args:
        network: maps ``[*B, A + S + 1]`` to ``[*B, A]``.
        denoising_steps: number of steps ``N`` that it was trained with.
    """

    def __init__(self, network: nn.Module, denoising_steps: int) -> None:
        super().__init__()
        self.network = network
        self.denoising_steps = denoising_steps

    def forward(self, latent: Tensor, step: Tensor, observation: Tensor) -> Tensor:
        """The noise ``[*B, A]`` at latents ``[*B, A]``, integer steps ``[*B]``."""
        time = (self.denoising_steps - 1 - step).to(latent.dtype).unsqueeze(-1)
        return self.network(torch.cat((latent, observation, time), -1))


def from_torchrl(
    actor: DiffusionActor,
    action_spec: TensorSpec | None = None,
    *,
    keys: ActorKeys | None = None,
    return_chain: ReturnedChain = False,
    deterministic_step: DeterministicStep = "mean",
    noise_key: str | None = None,
    min_std: float = 0.0,
) -> DenoisingActor:
    """A :class:`DenoisingActor` with the weights, schedule and steps of TorchRL's DiffusionActor.

    From the same noise both compute the same action, to rounding, with noise and without. The
    weights are copied. Latents are actions in their own units, as in TorchRL, which leaves actions
    outside of the bounds as they are; ours are clipped, as by TorchRL's ``safe=True``.

    Args:
        actor: TorchRL's, called once if its network is lazy.
        action_spec: bounds of the action; None takes those of ``actor.spec``.
        keys: names of what is read and written; None takes the action's from ``actor``.
        return_chain: see :class:`DenoisingActor`.
        deterministic_step: see :class:`DenoisingActor`; TorchRL's is ``"mean"``.
        noise_key: see :class:`DenoisingActor`.
        min_std: smallest noise of a step. TorchRL's last step has none, and so no density, which
            the losses of the denoising MDP and DIME need.

    Raises:
        ArgumentError: naming ``actor`` if it is none, its network has no weights yet or weights of
            half precision, or its schedule is not linear; naming ``action_spec`` without bounds or
            with another number of actions.

    Examples:
        >>> from torchrl.data import Bounded
        >>> theirs = DiffusionActor(action_dim=2, obs_dim=3, num_steps=10)
        >>> ours = from_torchrl(theirs, Bounded(-1.0, 1.0, (2,)))
        >>> ours(observation=torch.zeros(5, 3)).shape
        torch.Size([5, 2])
    """
    if not isinstance(actor, DiffusionActor):
        raise ArgumentError("actor", type(actor).__name__, "is no DiffusionActor of TorchRL.")
    diffusion = actor.module
    dtype, device = _weights(diffusion.score_network)
    process = VariancePreservingProcess(
        diffusion.action_dim,
        diffusion.num_steps,
        schedule=_schedule(diffusion.betas),
        variance="beta",
        clip=None,
        min_std=min_std,
    ).to(dtype)
    # The levels again, now in the precision of the weights.
    process.set_denoising_steps(diffusion.num_steps)
    (action_key,) = actor.out_keys
    clip = _clip(actor.spec[action_key] if action_spec is None else action_spec, process)
    converted = DenoisingActor(
        process,
        ConcatenatedScore(copy.deepcopy(diffusion.score_network), diffusion.num_steps),
        clip.to(dtype),
        in_keys=actor.in_keys,
        keys=keys or ActorKeys(action=action_key),
        return_chain=return_chain,
        deterministic_step=deterministic_step,
        noise_key=noise_key,
    )
    return converted.to(device)


def _weights(network: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Type and device of the weights; float32 on the CPU for a network without any."""
    parameters = list(network.parameters())
    if any(is_lazy(parameter) for parameter in parameters):
        problem = "has a lazy network without weights; call the actor once."
        raise ArgumentError("actor", "DiffusionActor", problem)
    first = parameters[0] if parameters else torch.zeros(())
    if first.dtype not in (torch.float32, torch.float64):
        problem = "cannot be taken over: chains are in single or double precision; actor.float()."
        raise ArgumentError("actor", f"DiffusionActor in {first.dtype}", problem)
    return first.dtype, first.device


def _schedule(betas: Tensor) -> LinearBetas:
    """The schedule of TorchRL's buffer of betas ``[N]``."""
    even = torch.linspace(float(betas[0]), float(betas[-1]), len(betas)).to(betas)
    if not torch.allclose(betas, even, rtol=1e-3, atol=1e-6):
        problem = "has betas that do not rise in even steps, which DiffusionActor's do."
        raise ArgumentError("actor", "DiffusionActor", problem)
    return LinearBetas(float(betas[0]), float(betas[-1]))


def _clip(spec: TensorSpec | None, process: VariancePreservingProcess) -> ActionClip:
    """The bounds of the actions, in whose units latents are."""
    if spec is None:
        problem = "is needed, as the actor has no spec: env.action_spec_unbatched."
        raise ArgumentError("action_spec", None, problem)
    try:
        clip = ActionClip(*action_bounds(spec), scaled=False)
    except ValueError as error:
        raise ArgumentError("action_spec", spec, f"has no bounds: {error}") from error
    if clip.action_dim != process.action_dim:
        problem = f"has {clip.action_dim} actions, and the actor {process.action_dim}."
        raise ArgumentError("action_spec", spec, problem)
    return clip
