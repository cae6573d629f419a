"""Chains as rows of the denoising MDP."""

from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase

from diffpolicy.actors.keys import ActorKeys, required

_MASK_KEY = ("collector", "mask")


def chain_rows(
    tensordict: TensorDictBase,
    *,
    observation_keys: Sequence[NestedKey] = ("observation",),
    keys: ActorKeys | None = None,
    step_keys: Sequence[NestedKey] = ("advantage", "value_target", "state_value"),
    carry_keys: Sequence[NestedKey] = (_MASK_KEY,),
) -> TensorDictBase:
    """View transitions with chains as denoising-MDP rows.

    Args:
        tensordict: batch ``[*B]`` with the observation, the chain and further entries.
        observation_keys: entries ``[*B, ...]`` that every row of a chain repeats.
        keys: names of the chain entries.
        step_keys: entries ``[*B, N, ...]`` with one value per step, taken along where present.
        carry_keys: entries ``[*B, ...]`` that every row repeats where present (a validity mask).

    Returns:
        TensorDict of batch ``[*B, N]`` with the observation, ``latent`` and ``next_latent``
        ``[*B, N, A]``, ``step`` ``[*B, N, 1]`` and the per-step entries. Nothing is copied.

    Raises:
        KeyError: if the chain or an observation key is missing.
    """
    keys = keys or ActorKeys()
    batch = tensordict.batch_size
    for key in (*observation_keys, *keys.chain):
        required(
            tensordict, key, "; collect with an actor built with return_chain=True, pass its keys"
        )
    latents = tensordict.get(keys.latents)
    steps = latents.shape[-2] - 1
    rows = TensorDict(batch_size=[*batch, steps], device=tensordict.device)
    present = [key for key in carry_keys if tensordict.get(key, None) is not None]
    for key in (*observation_keys, *present):
        value = tensordict.get(key)
        event = value.shape[len(batch) :]
        rows.set(key, value.unsqueeze(len(batch)).expand(*batch, steps, *event))
    rows.set(keys.latent, latents[..., :-1, :])
    rows.set(keys.next_latent, latents[..., 1:, :])
    index = torch.arange(steps, device=latents.device).unsqueeze(-1)
    rows.set(keys.step, index.expand(*batch, steps, 1))
    for key in (*keys.per_step, *step_keys):
        value = tensordict.get(key, None)
        if value is not None:
            rows.set(key, value)
    return rows
