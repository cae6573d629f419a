"""The rewards that a run is trained on."""

from tensordict import TensorDictBase
from torch import Tensor, nn

from collectors.collection.rollouts import CHUNK_LENGTH_KEY
from diffpolicy.networks import ReturnScale


class TrainedRewards(nn.Module):
    """Rewards of rollouts and batches, divided by the running size of returns or as they are.

    Args:
        gamma: discount of an environment step.
        normalize: whether to divide them.

    Attributes:
        scale: what divides them, None if nothing does.
    """

    def __init__(self, gamma: float, *, normalize: bool) -> None:
        super().__init__()
        self.scale = ReturnScale(gamma) if normalize else None

    @property
    def seen(self) -> bool:
        """Whether a reward has differed from zero by the last :meth:`update`, or nobody looks."""
        return self.scale is None or bool(self.scale.size > 0)

    def note(self, rollout: TensorDictBase) -> None:
        """Remember the returns in the next rollout ``[E, T]`` for :meth:`update`."""
        if self.scale is not None:
            following = rollout["next"]
            lengths = rollout.get(CHUNK_LENGTH_KEY, None)
            self.scale.add(following["reward"], following["done"], lengths)

    def note_data(self, rows: TensorDictBase) -> None:
        """Remember the returns in steps ``[R]`` of others, one episode after the other.

        Call :meth:`update` before and after it.
        """
        if self.scale is not None:
            running, self.scale.running = self.scale.running, None
            following = rows["next"].unsqueeze(0)
            self.scale.add(following["reward"], following["done"])
            self.scale.running = running

    def update(self) -> None:
        """Let the returns that have been noted count; all ranks call it at the same time."""
        if self.scale is not None:
            self.scale.update()

    def scale_(self, rows: TensorDictBase) -> TensorDictBase:
        """Put the rewards that are trained on into rows of any shape."""
        if self.scale is not None:
            reward = ("next", "reward")
            rows.set(reward, self.scale(rows[reward]))
        return rows

    def metrics(self) -> dict[str, float]:
        """The size of returns."""
        return {} if self.scale is None else {"return_scale": float(self.scale.size)}

    @property
    def running(self) -> Tensor | None:
        """Returns so far of this rank's running episodes."""
        return None if self.scale is None else self.scale.running

    @running.setter
    def running(self, value: Tensor | None) -> None:
        if self.scale is not None:
            self.scale.running = value
