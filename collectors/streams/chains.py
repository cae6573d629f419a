"""From rollouts that keep whole denoising chains to rows of the denoising MDP."""

from collections.abc import Sequence

from tensordict import NestedKey, TensorDictBase

from diffpolicy.actors import ActorKeys, chain_rows


def flatten_chains(
    rollout: TensorDictBase,
    *,
    observation_keys: Sequence[NestedKey] = ("observation",),
    keys: ActorKeys | None = None,
) -> TensorDictBase:
    """Flatten a rollout with chains into denoising-MDP rows, one per denoising step.

    A denoising actor with ``return_chain=True`` makes one policy call per environment step and
    stores the whole chain ``latents`` ``[*B, N + 1, A]``. The rows mix environments, times and
    denoising steps; row ``i`` of the result is step ``i % N`` of chain ``i // N``, chains in the
    order of ``rollout.reshape(-1)``. Estimate advantages before: the time order is lost after.

    Args:
        rollout: ``[*B]``, usually ``[E, T]``, with the entries the actor wrote and any per-step
            entries ``[*B, N, 1]`` such as ``advantage``.
        observation_keys: the entries the actor reads; every row of a chain repeats them.
        keys: names of the chain entries, when the actor was built with its own.

    Returns:
        Rows ``[prod(B) * N]`` with the observation, ``latent`` and ``next_latent`` ``[rows, A]``,
        ``step`` ``[rows, 1]`` and the per-step entries; see
        :func:`diffpolicy.actors.chain_rows`.

    Raises:
        KeyError: the chain or an observation key is missing.
    """
    return chain_rows(rollout, observation_keys=observation_keys, keys=keys).reshape(-1)
