"""The policy of the denoising MDP: one denoising step."""

from tensordict import NestedKey, TensorDictBase
from torch import nn

from diffpolicy.actors.keys import required
from diffpolicy.actors.module import ActorModule
from diffpolicy.actors.protocol import ChainActor, observation_keys


class DenoisingStepActor(ActorModule):
    """One transition (observation, latent, step) -> next latent, with the actor's parameters.

    The policy view of the denoising MDP (arXiv 2512.02019): state ``(s, x_n, n)``, action
    ``x_{n+1}``. Under deterministic exploration the next latent is the kernel's mean.

    Args:
        actor: the actor whose kernels are used; its parameters are shared, not copied.
        noise_key: where to read standard normal noise ``[*B, A]`` from; None draws it. Under
            deterministic exploration it is not read.

    Raises:
        TypeError: for an actor without the members of :class:`ChainActor`.
    """

    def __init__(self, actor: nn.Module, *, noise_key: NestedKey | None = None) -> None:
        if not isinstance(actor, ChainActor):
            raise TypeError(
                f"actor must offer the members of ChainActor, got {type(actor).__name__}."
            )
        keys = actor.keys
        super().__init__(
            observation_keys(actor), keys, noise_key, further_in_keys=[keys.latent, keys.step]
        )
        self.actor = actor
        self.out_keys = [keys.next_latent, keys.log_prob, keys.log_ratio]

    def _write(self, tensordict: TensorDictBase) -> TensorDictBase:
        keys = self.keys
        latent = required(tensordict, keys.latent)
        denoising = self.actor.denoising_kernel(tensordict)
        next_latent = self.drawn(denoising, tensordict)
        tensordict.set(keys.next_latent, next_latent)
        noising = self.actor.noising_kernel(tensordict)
        log_prob = denoising.log_prob(next_latent)
        tensordict.set(keys.log_prob, log_prob)
        return tensordict.set(keys.log_ratio, log_prob - noising.log_prob(latent))
