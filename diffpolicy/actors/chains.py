"""Chains as rows of the denoising MDP."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor

from diffpolicy.actors.keys import ActorKeys, required

_MASK_KEY = ("collector", "mask")


class SimulatedStep(NamedTuple):
    """A step of :meth:`DenoisingMDP.simulate`, and whether it was taken ``[*R, 1]``.

    Where a chain had ended before, the step was not taken and the rows are those of its last one.
    """

    rows: TensorDictBase
    taken: Tensor


def chain_rows(
    tensordict: TensorDictBase,
    *,
    observation_keys: Sequence[NestedKey] = ("observation",),
    keys: ActorKeys | None = None,
    denoising_steps: int | None = None,
    step_keys: Sequence[NestedKey] = ("advantage", "value_target", "state_value"),
    carry_keys: Sequence[NestedKey] = (_MASK_KEY,),
) -> TensorDictBase:
    """View transitions with chains as denoising-MDP rows.

    Args:
        tensordict: batch ``[*B]`` with the observation, the chain and further entries.
        observation_keys: entries ``[*B, ...]`` that every row of a chain repeats.
        keys: names of the chain entries.
        denoising_steps: number of steps that the chains must have; None accepts any.
        step_keys: entries ``[*B, N, ...]`` with one value per step, taken along where present.
        carry_keys: entries ``[*B, ...]`` that every row repeats where present (a validity mask).

    Returns:
        TensorDict of batch ``[*B, N]`` with the observation, ``latent`` and ``next_latent``
        ``[*B, N, A]``, ``step`` ``[*B, N, 1]`` and the per-step entries. Nothing is copied.

    Raises:
        KeyError: if the chain or an observation key is missing.
        ValueError: if the chains have another number of steps than ``denoising_steps``.
    """
    keys = keys or ActorKeys()
    hint = (
        "; collect with an actor built with return_chain=True, or with 'latents' and add the rest "
        "with DenoisingMDP.with_kernels(), and pass the actor's keys"
    )
    for key in (*observation_keys, *keys.chain):
        required(tensordict, key, hint)
    rows = chain_steps(
        tensordict,
        observation_keys=observation_keys,
        keys=keys,
        denoising_steps=denoising_steps,
        carry_keys=carry_keys,
    )
    for key in (*keys.per_step, *step_keys):
        value = tensordict.get(key, None)
        if value is not None:
            rows.set(key, value)
    return rows


def chain_steps(
    tensordict: TensorDictBase,
    *,
    observation_keys: Sequence[NestedKey],
    keys: ActorKeys,
    denoising_steps: int | None,
    carry_keys: Sequence[NestedKey] = (),
) -> TensorDictBase:
    """As :func:`chain_rows`, of transitions ``[*B]`` that have the latents of a chain only."""
    batch = tensordict.batch_size
    latents = required(
        tensordict, keys.latents, "; collect with an actor built with return_chain='latents'"
    )
    steps = latents.shape[-2] - 1
    _check_steps(steps, denoising_steps, keys)
    rows = TensorDict(batch_size=[*batch, steps], device=tensordict.device)
    present = [key for key in carry_keys if tensordict.get(key, None) is not None]
    for key in (*observation_keys, *present):
        value = tensordict.get(key)
        event = value.shape[len(batch) :]
        rows.set(key, value.unsqueeze(len(batch)).expand(*batch, steps, *event))
    rows.set(keys.latent, latents[..., :-1, :])
    rows.set(keys.next_latent, latents[..., 1:, :])
    index = torch.arange(steps, device=latents.device).unsqueeze(-1)
    return rows.set(keys.step, index.expand(*batch, steps, 1))


def rows_at(
    tensordict: TensorDictBase,
    step: Tensor,
    *,
    observation_keys: Sequence[NestedKey] = ("observation",),
    keys: ActorKeys | None = None,
    denoising_steps: int | None = None,
    carry_keys: Sequence[NestedKey] = (),
) -> TensorDictBase:
    """Denoising-MDP rows of chosen steps, for transitions that keep at least the latents.

    Args:
        tensordict: batch ``[*B]`` with the observation, ``latents`` and further entries.
        step: the ``M`` chosen steps of every chain, integers ``[M, *B]``.
        observation_keys: entries ``[*B, ...]`` that every row of a chain repeats.
        keys: names of the chain entries.
        denoising_steps: number of steps that the chains must have; None accepts any.
        carry_keys: further entries ``[*B, ...]`` that every row repeats.

    Returns:
        TensorDict of batch ``[M, *B]`` with the observation, ``latent`` and ``next_latent``
        ``[M, *B, A]``, ``step`` ``[M, *B, 1]``, and those entries with one value per step that are
        there.

    Raises:
        KeyError: if the latents, an observation key or an entry to carry is missing.
        ValueError: if the chains have another number of steps than ``denoising_steps``.
    """
    keys = keys or ActorKeys()
    latents = required(
        tensordict, keys.latents, "; collect with an actor built with return_chain=True"
    )
    _check_steps(latents.shape[-2] - 1, denoising_steps, keys)
    rows = TensorDict(batch_size=step.shape, device=tensordict.device)
    for key in (*observation_keys, *carry_keys):
        value = required(tensordict, key)
        rows.set(key, value.expand(step.shape[0], *value.shape))
    rows.set(keys.latent, _at(latents, step))
    rows.set(keys.next_latent, _at(latents, step + 1))
    rows.set(keys.step, step.unsqueeze(-1))
    for key in keys.per_step:
        value = tensordict.get(key, None)
        if value is not None:
            rows.set(key, _at(value, step))
    return rows


def draw_steps(
    denoising_steps: int,
    batch_size: torch.Size | tuple[int, ...],
    number: int,
    device: torch.device | None = None,
) -> Tensor:
    """``number`` different steps of every chain, uniformly drawn, integers ``[number, *B]``."""
    if number == 1:
        return torch.randint(denoising_steps, (1, *batch_size), device=device)
    return torch.rand(denoising_steps, *batch_size, device=device).argsort(0)[:number]


def _at(value: Tensor, step: Tensor) -> Tensor:
    """Entries ``[M, *B, F]`` of ``value`` ``[*B, N, F]`` at the steps ``[M, *B]``."""
    features = value.shape[-1]
    index = step[..., None, None].expand(*step.shape, 1, features)
    return value.expand(step.shape[0], *value.shape).gather(-2, index).squeeze(-2)


def _check_steps(steps: int, expected: int | None, keys: ActorKeys) -> None:
    if expected not in (None, steps):
        raise ValueError(
            f"the chains in {keys.latents!r} have {steps} denoising steps where {expected} "
            "are expected; collect with the actor as it was when the loss was built."
        )
