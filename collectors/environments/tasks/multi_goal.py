"""The two-dimensional task with four goals, as a Gymnasium environment."""

import math
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike, NDArray

from collectors.environments.tasks.modes import NO_MODE, FloatArray, reached_goal

GOALS = np.array([[5.0, 0.0], [-5.0, 0.0], [0.0, 5.0], [0.0, -5.0]])
GOAL_RADIUS = 1.0
#: Positions stay in [-BOUND, BOUND]^2.
BOUND = 7.0
_START_STD = 0.1
_GOAL_REWARD = 10.0
_ACTION_COST = 30.0


class MultiGoalStep(NamedTuple):
    """What a step of the task gives, for any batch shape ``[*B]``.

    Attributes:
        position: ``[*B, 2]`` where the point is afterwards.
        reward: ``[*B]``.
        reached: ``[*B]`` whether that is within distance 1 of a goal, which ends the episode.
    """

    position: FloatArray
    reward: FloatArray
    reached: NDArray[np.bool_]


def multi_goal_step(
    position: ArrayLike, action: ArrayLike, *, action_cost: float = _ACTION_COST
) -> MultiGoalStep:
    """Move points and reward them.

    With x' = x + a inside the square [-7, 7]^2 and the goals g::

        r = -min_g |x' - g| - action_cost |a|^2 + 10 [min_g |x' - g| <= 1]

    Args:
        position: ``[*B, 2]`` where the points are.
        action: ``[*B, 2]`` velocities in [-1, 1]^2; others are clipped.
        action_cost: factor on the squared speed.
    """
    velocity = np.clip(np.asarray(action, dtype=np.float64), -1.0, 1.0)
    moved = np.clip(np.asarray(position) + velocity, -BOUND, BOUND)
    distance = np.linalg.norm(moved[..., None, :] - GOALS, axis=-1).min(-1)
    reached = reached_goal(moved, GOALS, GOAL_RADIUS) != NO_MODE
    cost = action_cost * np.square(velocity).sum(-1)
    return MultiGoalStep(moved, -distance - cost + _GOAL_REWARD * reached, reached)


class MultiGoalEnv(gym.Env[FloatArray, FloatArray]):
    """A point that starts near the origin, between four goals: :func:`multi_goal_step`.

    Observes its position; the action is its velocity in [-1, 1]^2. It starts at N(0, 0.1^2), and
    the episode terminates at a goal. Registered as ``MultiGoal-v0`` with at most 50 steps, and with
    starts from the whole square, so that experience does not depend on the policy, as
    ``MultiGoalAnywhere-v0``.

    Args:
        action_cost: factor on the squared speed. The default 30 is that of the task's first
            publication (soft Q-learning, arXiv 1702.08165, in its released code). It makes the best
            speed .4 at the start and .2 near a goal, so that the best actions lie inside of the
            action space and a squashed policy does not have to saturate to take them. The way to a
            goal then has 14 steps and costs 62 (value iteration along an axis).
        start_anywhere: start uniformly in the square, not near the origin.

    Raises:
        ValueError: for a cost that is negative or not finite.
    """

    def __init__(self, action_cost: float = _ACTION_COST, *, start_anywhere: bool = False) -> None:
        if not (math.isfinite(action_cost) and action_cost >= 0):
            raise ValueError(f"action_cost must be a finite number >= 0, got {action_cost}.")
        self.action_cost = action_cost
        self.start_anywhere = start_anywhere
        self.action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = gym.spaces.Box(-BOUND, BOUND, (2,), np.float32)
        self._position: FloatArray = np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Start a new episode."""
        super().reset(seed=seed, options=options)
        if self.start_anywhere:
            self._position = self.np_random.uniform(-BOUND, BOUND, 2)
        else:
            self._position = _START_STD * self.np_random.standard_normal(2)
        return self._observe(), {}

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Move by the action; the reward depends on where that ends."""
        step = multi_goal_step(self._position, action, action_cost=self.action_cost)
        self._position = step.position
        return self._observe(), float(step.reward), bool(step.reached), False, {}

    def _observe(self) -> FloatArray:
        return self._position.astype(np.float32)
