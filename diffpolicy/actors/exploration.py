"""When actors act without noise."""

from torchrl.envs.utils import ExplorationType, exploration_type

_DETERMINISTIC = (
    ExplorationType.DETERMINISTIC,
    ExplorationType.MODE,
    ExplorationType.MEAN,
    ExplorationType.MEDIAN,
)


def is_deterministic() -> bool:
    """Whether TorchRL's exploration type asks for actions without noise."""
    return exploration_type() in _DETERMINISTIC
