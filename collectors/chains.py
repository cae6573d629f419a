"""From rollouts that keep whole denoising chains to rows of the denoising MDP."""

from tensordict import TensorDictBase

from diffpolicy.actors import chain_rows


def flatten_chains(rollout: TensorDictBase) -> TensorDictBase:
    """Flatten a rollout with chains into denoising-MDP rows, one per denoising step.

    A denoising actor with ``return_chain=True`` makes one policy call per environment step and
    stores the whole chain ``latents`` ``[*B, N + 1, A]``. The rows mix environments, times and
    denoising steps; row ``i`` of the result is step ``i % N`` of chain ``i // N``, chains in the
    order of ``rollout.reshape(-1)``. Estimate advantages before: the time order is lost after.

    Args:
        rollout: ``[*B]``, usually ``[E, T]``, with the entries the actor wrote and any per-step
            entries ``[*B, N, 1]`` such as ``advantage``.

    Returns:
        Rows ``[prod(B) * N]`` with the observation, ``latent`` and ``next_latent`` ``[rows, A]``,
        ``step`` ``[rows, 1]`` and the per-step entries; see
        :func:`diffpolicy.actors.chain_rows`.
    """
    return chain_rows(rollout).reshape(-1)
