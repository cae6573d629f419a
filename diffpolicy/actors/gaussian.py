"""A Gaussian policy as a denoising chain of one step, and its networks for WPO."""

import math
from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModuleBase, dispatch
from torch import Tensor, nn
from torchrl.envs import EnvBase

from diffpolicy.actors.actor import concatenate_observation
from diffpolicy.actors.build import orthogonal_init
from diffpolicy.actors.build_denoising_q import make_denoising_critic
from diffpolicy.actors.build_q import check_no_value_function
from diffpolicy.actors.configs import CriticConfig, NetworkConfig
from diffpolicy.actors.exploration import is_deterministic
from diffpolicy.actors.keys import ActorKeys, required
from diffpolicy.actors.sizes import ActorCritic, read_sizes
from diffpolicy.actors.squashing import ActionSquash
from diffpolicy.networks import mlp
from diffpolicy.sde import Gaussian, gaussian_log_prob, log_ratio, tanh_log_det

# A normal density with this std is 1 at its mean.
_UNIT_DENSITY_STD = 1 / math.sqrt(2 * math.pi)
_WPO_CRITIC = CriticConfig(hidden=(64, 64), normalization=None, atoms=None)


class GaussianChainActor(TensorDictModuleBase):
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
        return_chain: also write the chain, its log-probabilities and kernels.

    Raises:
        ValueError: if ``initial_std`` is not positive and finite.

    Examples:
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
        squash: ActionSquash,
        *,
        in_keys: Sequence[NestedKey] = ("observation",),
        keys: ActorKeys | None = None,
        initial_std: float = 1.0,
        return_chain: bool = False,
    ) -> None:
        super().__init__()
        if not (math.isfinite(initial_std) and initial_std > 0):
            raise ValueError(f"initial_std must be a positive finite number, got {initial_std}.")
        self.mean_network = mean_network
        self.squash = squash
        self._initial_log_std = math.log(initial_std)
        self.log_std = nn.Parameter(torch.full((squash.action_dim,), self._initial_log_std))
        self.keys = keys or ActorKeys()
        self.return_chain = return_chain
        self.in_keys = list(in_keys)
        self.out_keys = [self.keys.action, *(self.keys.chain if return_chain else ())]

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

    @dispatch(auto_batch_size=False)
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write the action (and the chain) into ``tensordict`` of any batch shape."""
        kernel, keys = self.denoising_kernel(tensordict), self.keys
        next_latent = kernel.mean
        if not is_deterministic():
            next_latent = next_latent + kernel.std * torch.randn_like(next_latent)
        tensordict.set(keys.action, self.squash(next_latent))
        if self.return_chain:
            latent = torch.zeros_like(next_latent)
            ratio = log_ratio(latent, next_latent, kernel, _unit_density(next_latent))
            tensordict.set(keys.latents, torch.stack((latent, next_latent), -2))
            tensordict.set(keys.log_prob, gaussian_log_prob(next_latent, kernel).unsqueeze(-2))
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
        return tanh_log_det(latent)

    def denoising_kernel(self, rows: TensorDictBase) -> Gaussian:
        """``q(. | s)``, see :class:`ChainActor`; reads the observation only."""
        mean = self.mean_network(concatenate_observation(rows, self.in_keys))
        return Gaussian(mean, self.std.expand_as(mean))

    def noising_kernel(self, rows: TensorDictBase) -> Gaussian:
        """The kernel whose log density at ``x_0 = 0`` is 0, see :class:`ChainActor`."""
        return _unit_density(required(rows, self.keys.next_latent))


def build_gaussian_wpo_networks(
    env: EnvBase,
    *,
    network: NetworkConfig | None = None,
    critic: CriticConfig | None = None,
    observation_keys: Sequence[NestedKey] = ("observation",),
    keys: ActorKeys | None = None,
    initial_std: float = 1.0,
    device: torch.device | str | None = None,
) -> ActorCritic:
    """The Gaussian baseline of DiffWPO: a :class:`GaussianChainActor` and its Q ensemble.

    The policy network is that of :func:`build_gaussian_ppo_networks`, the critic that of
    :func:`build_diffwpo_networks` for one denoising step.

    Args:
        env: a TorchRL environment, batched or not; only its specs are read.
        network: ``actor_hidden`` and ``normalize_observations``, and ``step_embedding`` for the
            critic; nothing else is used.
        critic: options of the Q ensemble; None has two scalar ones of two layers of 64.
        observation_keys: observation entries to read, concatenated.
        keys: names of the entries that the actor reads and writes.
        initial_std: standard deviation before squashing at the start.
        device: where to put the parameters.

    Raises:
        ValueError: as :func:`build_diffwpo_networks`.
    """
    network, critic = network or NetworkConfig(), critic or _WPO_CRITIC
    keys = keys or ActorKeys()
    check_no_value_function(network)
    sizes = read_sizes(env, observation_keys, network, action_key=keys.action)
    policy = mlp(sizes.observation_dim, network.actor_hidden, sizes.action_dim, nn.Tanh)
    orthogonal_init(policy, 0.01)
    body: list[nn.Module] = [] if sizes.normalizer is None else [sizes.normalizer]
    actor = GaussianChainActor(
        nn.Sequential(*body, policy),
        ActionSquash.from_spec(sizes.action_spec.cpu()),
        in_keys=sizes.observation_keys,
        keys=keys,
        initial_std=initial_std,
        return_chain=True,
    )
    q_module = make_denoising_critic(
        sizes, 1, critic, keys, network.step_embedding, latent_scale=1.0
    )
    return ActorCritic(actor.to(device), q_module.to(device), sizes.normalizer)


def _unit_density(like: Tensor) -> Gaussian:
    """A normal around 0 with density 1 there, in the shape of ``like``."""
    return Gaussian(torch.zeros_like(like), torch.full_like(like, _UNIT_DENSITY_STD))
