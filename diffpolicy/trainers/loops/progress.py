"""How far a run has come."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from diffpolicy.trainers.loops.evaluation import Evaluation


@dataclass
class Progress:
    """The counters of a run, which checkpoints hold in place of Lightning's own.

    Attributes:
        total_frames: environment steps that the run is to make.
        frames: environment steps so far, of all ranks together.
        gradient_steps: updates so far.
        wall_seconds: time spent so far, evaluations included.
        evaluations: every evaluation so far.
    """

    total_frames: int
    frames: int = 0
    gradient_steps: int = 0
    wall_seconds: float = 0.0
    evaluations: list[Evaluation] = field(default_factory=list)
    _clock: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether the environment steps of the run are used up."""
        return self.frames >= self.total_frames

    def start_clock(self) -> None:
        """Start to measure ``wall_seconds``."""
        self._clock = time.perf_counter()

    def tick(self) -> float:
        """Add the time since the last call to ``wall_seconds`` and return it."""
        now = time.perf_counter()
        elapsed = now - self._clock
        self._clock = now
        self.wall_seconds += elapsed
        return elapsed

    def evaluation_due(self, every: int) -> bool:
        """Whether ``every`` environment steps have passed since the last evaluation."""
        if not self.evaluations or self.finished:
            return True
        return self.frames // every > self.evaluations[-1].env_steps // every

    def state_dict(self) -> dict[str, Any]:
        """The counters as plain data."""
        return {
            "frames": self.frames,
            "gradient_steps": self.gradient_steps,
            "wall_seconds": self.wall_seconds,
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of :meth:`state_dict`; entries of others are left alone."""
        self.frames = state["frames"]
        self.gradient_steps = state["gradient_steps"]
        self.wall_seconds = state["wall_seconds"]
        self.evaluations = [Evaluation(**values) for values in state["evaluations"]]
