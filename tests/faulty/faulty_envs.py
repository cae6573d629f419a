"""Pendulums that fail, for tests in which fresh processes import them by name."""

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from gymnasium.envs.classic_control.pendulum import PendulumEnv


class Faulty(PendulumEnv):
    """Fails at the steps ``first`` and ``2 * first`` of a copy.

    With ``flags``, a folder, a fault happens only if it can make its file there: then each of the
    two happens in one copy only.
    """

    def __init__(self, fault: str = "raise", first: int = 3, flags: str | None = None) -> None:
        super().__init__()
        self.fault, self.first, self.flags = fault, first, flags
        self.steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps in (self.first, 2 * self.first) and self._first_to_fail():
            if self.fault == "raise":
                raise ArithmeticError(f"the simulator broke at step {self.steps}")
            if self.fault == "exit":
                os._exit(7)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)

    def _first_to_fail(self) -> bool:
        if self.flags is None:
            return True
        try:
            Path(self.flags, str(self.steps)).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class Unbuildable(PendulumEnv):
    """Cannot be built where the variable ``BUILDABLE_IN`` does not name the process."""

    def __init__(self) -> None:
        if os.environ["BUILDABLE_IN"] != str(os.getpid()):
            raise OSError("no licence for the simulator")
        super().__init__()


gym.register("Faulty-v0", Faulty, disable_env_checker=True, max_episode_steps=200)
# After an evaluation of one episode with --max-episode-steps 10.
gym.register(
    "FaultyLater-v0", partial(Faulty, first=25), disable_env_checker=True, max_episode_steps=200
)
gym.register("Unbuildable-v0", Unbuildable, disable_env_checker=True)
