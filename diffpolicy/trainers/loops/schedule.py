"""The linear learning-rate schedule, which goes on without a jump when a run is made longer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self


@dataclass(frozen=True)
class LinearSchedule:
    """A factor on the learning rate that falls linearly to zero at the end of the run.

    Attributes:
        start: environment steps (all ranks) at which it begins to fall.
        factor: its value there.
    """

    start: int = 0
    factor: float = 1.0

    def at(self, frames: int, total: int) -> float:
        """The factor after ``frames`` environment steps of a run that ends after ``total``."""
        return self.factor * (1.0 - min(1.0, (frames - self.start) / (total - self.start)))

    @classmethod
    def resumed(cls, state: Mapping[str, Any], total: int) -> tuple[Self, str]:
        """The schedule of a run that goes on from the ``state`` of a checkpoint until ``total``.

        With the same ``total`` as before it is the same. With another one it falls from where it
        is to zero at the new end, unless it is at zero already.

        Returns:
            The schedule, and one line about a change; empty without one.
        """
        # Checkpoints of earlier versions always fell from the start.
        schedule, config = cls(**state.get("schedule", {})), state["config"]
        frames, before = state["frames"], config["total_frames"]
        if total == before or config.get("lr_schedule") != "linear":
            return schedule, ""
        factor = schedule.at(frames, before)
        if factor == 0:
            new = cls()
            words = (
                f"the learning rate had fallen to zero at --total-frames {before}; it goes on with "
                f"{new.at(frames, total):.3g} times --lr, as if --total-frames {total} had been "
                "given from the start."
            )
            return new, words
        words = (
            f"--total-frames was {before} and is {total}: the learning rate falls from the "
            f"{factor:.3g} times --lr that it has reached to zero at the new end."
        )
        return cls(frames, factor), words
