"""What an environment observes, as the networks of a policy read it."""

from collections.abc import Sequence
from dataclasses import dataclass

from tensordict import NestedKey
from torchrl.envs import EnvBase

from collectors.environments.simulator_env import simulator_env
from collectors.environments.spaces import EPISODE_REWARD_KEY, SEPARATOR, STEP_COUNT_KEY
from diffpolicy.errors import ArgumentError

#: How many steps a chunk of actions took, in environments that execute chunks.
CHUNK_STEPS_KEY = "chunk_steps"
_STATISTICS = (EPISODE_REWARD_KEY, STEP_COUNT_KEY, CHUNK_STEPS_KEY)


@dataclass(frozen=True)
class Observed:
    """One entry of an observation.

    Attributes:
        name: the keys that lead to it, joined by dots.
        key: where it is in a TensorDict.
        shape: its shape, without that of the batch.
    """

    name: str
    key: NestedKey
    shape: tuple[int, ...]

    @property
    def is_image(self) -> bool:
        """Whether it is an image ``[H, W, C]`` or ``[C, H, W]``."""
        return len(self.shape) == 3


def observed_entries(env: EnvBase, names: Sequence[str] | None = None) -> list[Observed]:
    """The entries that networks read, in the order of their concatenation.

    Args:
        env: from :func:`collectors.make_env`.
        names: the entries that are wanted, in this order. By default all of a Gymnasium
            environment's, and of a TorchRL environment's the vectors and images.

    Raises:
        ArgumentError: there is no entry of this name, or none that could be read.
    """
    own = simulator_env(env)
    spec = env.observation_spec_unbatched
    if own is not None:
        # It has chosen already, and knows the names.
        return [
            Observed(entry.name, entry.key, tuple(spec[entry.key].shape)) for entry in own.entries
        ]
    found = {}
    for key, leaf in spec.items(True, True):
        name = key if isinstance(key, str) else SEPARATOR.join(key)
        if name not in _STATISTICS:
            found[name] = Observed(name, key, tuple(leaf.shape))
    readable = [
        entry.name
        for entry in found.values()
        if entry.is_image or (len(entry.shape) == 1 and spec[entry.key].dtype.is_floating_point)
    ]
    wanted = readable if names is None else names
    for name in wanted:
        if name not in found:
            problem = f"is not observed; choose from {', '.join(found)}."
            raise ArgumentError("observation_keys", name, problem)
    if not wanted:
        raise ArgumentError(
            "observation_keys",
            names,
            f"finds no vectors of floats and no images among {', '.join(found) or 'no entries'}; "
            "let a transform make them, for example torchrl.envs.UnsqueezeTransform of numbers.",
        )
    return [found[name] for name in wanted]
