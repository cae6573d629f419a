"""Names of the entries that actors read and write, and names that observations must not have."""

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from itertools import combinations, product
from typing import Literal

from tensordict import NestedKey, TensorDictBase
from tensordict.utils import unravel_key
from torch import Tensor

ReturnedChain = bool | Literal["latents"]
"""What acting writes of a chain: nothing, all of it, or its latents alone."""


@dataclass(frozen=True)
class ActorKeys:
    """TensorDict keys of a diffusion actor; any of them may be nested.

    Attributes:
        action: squashed action in environment units ``[*B, A]``.
        latents: chain ``x_0 .. x_N`` ``[*B, N+1, A]``.
        log_prob: ``log q(x_{n+1} | x_n, s)`` per step ``[*B, N, 1]``.
        log_ratio: ``log q - log p`` per step ``[*B, N, 1]``.
        kernel_mean: mean of the denoising kernel per step ``[*B, N, A]``.
        kernel_std: std of the denoising kernel per step ``[*B, N, A]``.
        entropy_bound: one-sample estimate of the lower bound on the entropy of the squashed
            action, measured in [-1, 1] units, ``[*B, 1]``.
        latent: ``x_n`` of a denoising-MDP row ``[*B, A]``.
        next_latent: ``x_{n+1}`` of a denoising-MDP row ``[*B, A]``.
        step: ``n`` of a denoising-MDP row, integer ``[*B, 1]``; of a
            :class:`~diffpolicy.sde.MeanFlowProcess` also the times of a step ``[*B, 2]``.

    Raises:
        ValueError: if two names collide.
    """

    action: NestedKey = "action"
    latents: NestedKey = "latents"
    log_prob: NestedKey = "log_prob"
    log_ratio: NestedKey = "log_ratio"
    kernel_mean: NestedKey = "kernel_mean"
    kernel_std: NestedKey = "kernel_std"
    entropy_bound: NestedKey = "entropy_bound"
    latent: NestedKey = "latent"
    next_latent: NestedKey = "next_latent"
    step: NestedKey = "step"

    def __post_init__(self) -> None:
        names = vars(self)
        for (first, key), (second, other) in combinations(names.items(), 2):
            if _collide(key, other):
                raise ValueError(f"ActorKeys has {first}={key!r} and {second}={other!r}.")

    @property
    def per_step(self) -> tuple[NestedKey, ...]:
        """Entries with one value per denoising step, the same key in chains and rows."""
        return (self.log_prob, self.log_ratio, self.kernel_mean, self.kernel_std)

    @property
    def chain(self) -> tuple[NestedKey, ...]:
        """Everything that describes a chain."""
        return (self.latents, *self.per_step)

    def written(self, chain: ReturnedChain) -> tuple[NestedKey, ...]:
        """The entries of a chain that acting writes.

        Raises:
            ValueError: for anything that is no :data:`ReturnedChain`.
        """
        if chain == "latents":
            return (self.latents,)
        if not isinstance(chain, bool):
            raise ValueError(f"return_chain must be True, False or 'latents', got {chain!r}.")
        return self.chain if chain else ()

    @property
    def all(self) -> tuple[NestedKey, ...]:
        """Every name, in the order of the attributes."""
        return astuple(self)


ENCODED_KEY = "encoded_observation"
"""Where encoders write what actors read."""

RESERVED_KEYS: frozenset[str] = frozenset(
    {
        # environments, transforms and collectors
        "next",
        "reward",
        "done",
        "terminated",
        "truncated",
        "step_count",
        "episode_reward",
        "is_init",
        "collector",
        "traj_ids",
        # replay buffers
        "index",
        "priority_weight",
        "td_error",
        "steps_to_next_obs",
        # value functions and advantage estimators
        "advantage",
        "value_target",
        "state_value",
        "state_value_logits",
        "state_action_value",
        "state_action_value_logits",
        # encoders
        ENCODED_KEY,
        # losses
        "fresh",
        # Gaussian actors of TorchRL
        "loc",
        "scale",
        "action_log_prob",
        # injected noise
        "noise",
    }
)
"""Names besides those of :class:`ActorKeys` that some component writes at the root."""


def check_collisions(
    name: str, observation_keys: Iterable[NestedKey], taken: Iterable[NestedKey]
) -> None:
    """Refuse observations that something else would overwrite, or that would be read as it.

    Two keys collide if they are equal or one lies below the other.

    Args:
        name: the argument to name in the error.
        observation_keys: keys of observation (or noise) entries.
        taken: keys that are read or written as something else.

    Raises:
        ValueError: naming the key and both ways out.
    """
    for key, other in product(observation_keys, taken):
        if _collide(key, other):
            raise ValueError(
                f"{name} has {key!r}, which collides with {other!r}, an entry that is written "
                "or read as something else. Rename it (torchrl.envs.RenameTransform for an "
                "observation), or, if the other entry is an actor's, pass keys=ActorKeys(...) "
                "with other names."
            )


def required(tensordict: TensorDictBase, key: NestedKey, hint: str = "") -> Tensor:
    """The entry ``key``.

    Raises:
        KeyError: naming the missing key, the keys that are there and ``hint``.
    """
    value = tensordict.get(key, None)
    if value is None:
        present = sorted(map(str, tensordict.keys(True, True)))
        raise KeyError(f"key {key!r} is missing from the TensorDict, which has {present}{hint}.")
    return value


def _collide(first: NestedKey, second: NestedKey) -> bool:
    return all(a == b for a, b in zip(_path(first), _path(second), strict=False))


def _path(key: NestedKey) -> tuple[str, ...]:
    key = unravel_key(key)
    return (key,) if isinstance(key, str) else key
