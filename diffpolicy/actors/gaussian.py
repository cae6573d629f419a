"""A Gaussian policy as a denoising chain of one step."""

import math
from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn

from diffpolicy.actors.keys import ActorKeys, ReturnedChain, required
from diffpolicy.actors.module import ActorModule
from diffpolicy.actors.squashing import ActionMap
from diffpolicy.sde import Gaussian, log_ratio

# A normal density with this std is 1 at its mean.
_UNIT_DENSITY_STD = 1 / math.sqrt(2 * math.pi)


class GaussianChainActor(ActorModule):
    """A squashed Gaussian that offers what losses on denoising chains need, with ``N = 1``.

    The chain starts at ``x_0 = 0`` and its only step draws ``x_1 ~ N(mean(s), std^2)``, whatever
    ``x_0`` is; the noising kernel has density 1 at ``x_0 = 0``. So the log-ratio of the step is
    ``log q(x_1 | s)``, the entropy bound is the entropy before squashing, and DiffWPO is WPO
    (arXiv 2505.00663). The std does not depend on the observation.

    Like :class:`DenoisingActor` it follows TorchRL's exploration type: ``DETERMINISTIC``, ``MODE``,
    ``MEAN`` and ``MEDIAN`` act by the mean, everything else samples.

    Args:
        mean_network: maps observations ``[*B, S]`` to means ``[*B, A]``.
        squash: maps ``x_1`` to the action.
        in_keys: observation keys, concatenated over their last dimension.
        keys: names of everything else that is read or written.
        initial_std: std at the start, the same for every action dimension.
        return_chain: also write the chain, its log-probabilities and kernels; ``"latents"`` writes
            the latents only.
        noise_key: where to read standard normal noise ``[*B, A]`` from; None draws it. Under
            deterministic exploration it is not read.

    Raises:
        ValueError: if ``initial_std`` is not positive and finite, or for an observation with the
            name of another entry.

    Examples:
        >>> from diffpolicy.actors import ActionSquash
        >>> from tensordict import TensorDict
        >>> squash = ActionSquash(-torch.ones(2), torch.ones(2))
        >>> actor = GaussianChainActor(nn.Linear(3, 2), squash, return_chain=True)
        >>> out = actor(TensorDict({"observation": torch.randn(5, 3)}, [5]))
        >>> out["action"].shape, out["latents"].shape, out["log_ratio"].shape
        (torch.Size([5, 2]), torch.Size([5, 2, 2]), torch.Size([5, 1, 1]))
    """

    def __init__(
        self,
        mean_network: nn.Module,
        squash: ActionMap,
        *,
        in_keys: Sequence[NestedKey] = ("observation",),
        keys: ActorKeys | None = None,
        initial_std: float = 1.0,
        return_chain: ReturnedChain = False,
        noise_key: NestedKey | None = None,
    ) -> None:
        super().__init__(in_keys, keys or ActorKeys(), noise_key)
        if not (math.isfinite(initial_std) and initial_std > 0):
            raise ValueError(f"initial_std must be a positive finite number, got {initial_std}.")
        self.mean_network = mean_network
        self.squash = squash
        self._initial_log_std = math.log(initial_std)
        self.log_std = nn.Parameter(torch.full((squash.action_dim,), self._initial_log_std))
        self.return_chain = return_chain
        self.out_keys = [self.keys.action, *self.keys.written(return_chain)]

    def reset_parameters(self) -> None:
        """Set the std back to its initial value."""
        nn.init.constant_(self.log_std, self._initial_log_std)

    @property
    def denoising_steps(self) -> int:
        """One."""
        return 1

    @property
    def std(self) -> Tensor:
        """Standard deviation before squashing, per action dimension ``[A]``."""
        return self.log_std.exp()

    def _write(self, tensordict: TensorDictBase) -> TensorDictBase:
        kernel, keys = self.denoising_kernel(tensordict), self.keys
        next_latent = self.drawn(kernel, tensordict)
        tensordict.set(keys.action, self.squash(next_latent))
        if not self.return_chain:
            return tensordict
        latent = torch.zeros_like(next_latent)
        tensordict.set(keys.latents, torch.stack((latent, next_latent), -2))
        if self.return_chain is True:
            ratio = log_ratio(latent, next_latent, kernel, _unit_density(next_latent))
            tensordict.set(keys.log_prob, kernel.log_prob(next_latent).unsqueeze(-2))
            tensordict.set(keys.log_ratio, ratio.unsqueeze(-2))
            tensordict.set(keys.kernel_mean, kernel.mean.unsqueeze(-2))
            tensordict.set(keys.kernel_std, kernel.std.unsqueeze(-2))
        return tensordict

    def sample_prior(
        self, batch_size: torch.Size | tuple[int, ...], noise: Tensor | None = None
    ) -> Tensor:
        """``x_0 = 0`` of shape ``[*batch_size, A]``, whatever the noise."""
        return self.log_std.new_zeros(*batch_size, self.squash.action_dim)

    @property
    def prior_entropy(self) -> float:
        """Zero: what the prior, a point, adds to the entropy bound."""
        return 0.0

    def prior_log_prob(self, latent: Tensor) -> Tensor:
        """Zeros ``[*B, 1]``: the prior is a point, which adds no entropy."""
        return torch.zeros_like(latent[..., :1])

    def squash_log_det(self, latent: Tensor) -> Tensor:
        """``log |d tanh(x_1)|`` of last latents ``[*B, A]``, in [-1, 1] units, ``[*B, 1]``."""
        return self.squash.log_det(latent)

    def denoising_kernel(self, rows: TensorDictBase) -> Gaussian:
        """``q(. | s)``, see :class:`ChainActor`; reads the observation only."""
        mean = self.mean_network(self.observation(rows))
        return Gaussian(mean, self.std.expand_as(mean))

    def noising_kernel(self, rows: TensorDictBase) -> Gaussian:
        """The kernel whose log density at ``x_0 = 0`` is 0, see :class:`ChainActor`."""
        return _unit_density(required(rows, self.keys.next_latent))


def _unit_density(like: Tensor) -> Gaussian:
    """A normal around 0 with density 1 there, in the shape of ``like``."""
    return Gaussian(torch.zeros_like(like), torch.full_like(like, _UNIT_DENSITY_STD))
