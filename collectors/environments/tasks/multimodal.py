"""Tasks of one action whose best actions are several and known, as Gymnasium environments.

Rewards and maxima are those of arXiv 2512.02019. Nothing that an action does to the state changes
later rewards, so the soft Q function of these tasks is the reward plus a constant, and the optimal
policy of any temperature is known: :func:`optimal_density`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import gymnasium as gym
import numpy as np
from numpy.typing import ArrayLike

from collectors.environments.tasks.modes import FloatArray, nearest_mode

Reward: TypeAlias = Callable[[ArrayLike], FloatArray]
Measure: TypeAlias = Literal["action", "latent"]

_SADDLE = 0.85
_DOUBLE_WELL_PEAK = 0.25  # of u = a^2, so that the maxima are at a = +-0.5
GMM_MEANS = np.array([-0.6, -0.3, 0.0, 0.3, 0.6])
GMM_STD = 0.05


def double_well_reward(action: ArrayLike) -> FloatArray:
    """Reward of TurningDoubleWell, element by element for actions in [-1, 1].

    With u = a^2 and p = 1/4::

        r = 0.85 + 0.15 (1 - (1 - u/p)^2)    u <= p
            1 - ((u - p) / (1 - p))^2        otherwise

    Maxima 1 at a = +-0.5; r(0) = 0.85; r(+-1) = 0.
    """
    square, peak = np.square(np.asarray(action)), _DOUBLE_WELL_PEAK
    inner = _SADDLE + (1 - _SADDLE) * (1 - (1 - square / peak) ** 2)
    outer = 1 - ((square - peak) / (1 - peak)) ** 2
    return np.where(square <= peak, inner, outer)


def well_maxima(wells: int) -> FloatArray:
    """Best actions ``[wells]`` of TurningMultiWell: 90 - 90/n - 180 i/n degrees, over 90."""
    return 1 - (1 + 2 * np.arange(wells)) / wells


def multi_well_reward(action: ArrayLike, wells: int) -> FloatArray:
    """Reward of TurningMultiWell with n wells, element by element for actions in [-1, 1].

    With d the distance to the nearest maximum and s = 2/n that between two of them::

        r = 0.85 + 0.15 (1 + cos(2 pi d / s)) / 2    between the maxima
            1 - (2 d / s)^2                          beyond the outermost

    Maxima 1 at :func:`well_maxima`; 0.85 half-way between two; r(+-1) = 0.
    """
    a = np.asarray(action)
    maxima, spacing = well_maxima(wells), 2 / wells
    distance = np.abs(a[..., None] - maxima).min(-1)
    inner = _SADDLE + (1 - _SADDLE) * (1 + np.cos(2 * np.pi * distance / spacing)) / 2
    outer = 1 - (2 * distance / spacing) ** 2
    return np.where(np.abs(a) <= maxima[0], inner, outer)


def gmm_reward(action: ArrayLike) -> FloatArray:
    """Reward of GMMBandit: log density of five Gaussians of the same weight, element by element.

    ``r = log( 1/5 sum_i N(a; m_i, 0.05^2) )`` with m = -0.6, -0.3, 0, 0.3, 0.6. The outer means
    are eight standard deviations from +-1, so exp(r) integrates to 1 over [-1, 1].
    """
    z = (np.asarray(action)[..., None] - GMM_MEANS) / GMM_STD
    norm = len(GMM_MEANS) * GMM_STD * np.sqrt(2 * np.pi)
    return np.asarray(np.logaddexp.reduce(-0.5 * z**2, axis=-1) - np.log(norm))


def optimal_density(
    reward: Reward, temperature: float, grid: ArrayLike, *, measure: Measure = "action"
) -> FloatArray:
    """Density over actions of the optimal MaxEnt policy, where rewards depend on actions only.

    It maximises ``E[r(a)] + T H``. With the entropy H of the action, as in SAC and DIME, this is
    ``pi(a) ~ exp(r(a) / T)``. With that of the latent x before ``a = tanh(x)``, as in the methods
    of the denoising MDP, ``pi(x) ~ exp(r(tanh x) / T)``, that is ``exp(r(a) / T) / (1 - a^2)`` over
    actions. This cannot be normalised over all x, where r stays finite towards +-1: the grid says
    where to stop, and results depend on that when T is not small against the range of rewards.

    Args:
        reward: element-wise reward of actions.
        temperature: T, positive; in units of ``reward``.
        grid: ``[G]`` increasing actions in [-1, 1], for ``"latent"`` in (-1, 1), for example
            ``tanh(linspace(-4, 4, 2001))``.
        measure: whose entropy it is, ``"action"`` or ``"latent"``.

    Returns:
        ``[G]``; its integral over the grid (trapezoidal rule) is 1.

    Raises:
        ValueError: for an argument out of range.

    Example:
        >>> grid = np.linspace(-1, 1, 2001)
        >>> density = optimal_density(gmm_reward, 1.0, grid)
        >>> bool(np.allclose(density, np.exp(gmm_reward(grid))))
        True
    """
    actions = np.asarray(grid, dtype=np.float64)
    if not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a positive finite number, got {temperature}.")
    if measure not in ("action", "latent"):
        raise ValueError(f"measure must be 'action' or 'latent', got {measure!r}.")
    if actions.ndim != 1 or len(actions) < 2 or not (np.diff(actions) > 0).all():
        raise ValueError(
            f"grid must be one-dimensional, with increasing actions, got {actions.shape}."
        )
    if np.abs(actions).max() > 1 or (measure == "latent" and np.abs(actions).max() == 1):
        limits = "(-1, 1)" if measure == "latent" else "[-1, 1]"
        raise ValueError(
            f"grid must be in {limits} for measure={measure!r}, got values from {actions[0]} to "
            f"{actions[-1]}."
        )
    log_weight = reward(actions) / temperature
    if measure == "latent":
        log_weight = log_weight - np.log1p(-np.square(actions))
    weight = np.exp(log_weight - log_weight.max())
    return np.asarray(weight / np.trapezoid(weight, actions))


@dataclass(frozen=True)
class ActionModes:
    """A task whose reward depends on the action only, in the same way in every state.

    Attributes:
        reward: element-wise reward of actions in [-1, 1].
        maxima: ``[M]`` the best actions.
        observations: ``[K, S]`` what each of the K states looks like.
        turns: by how many states the task moves on, for the maximum nearest to the action.
        one_step: whether an episode ends after its first step.
    """

    reward: Reward
    maxima: FloatArray
    observations: FloatArray
    turns: tuple[int, ...]
    one_step: bool = False


class ActionModesEnv(gym.Env[FloatArray, FloatArray]):
    """A task of :class:`ActionModes`, which starts in any of its states with the same probability.

    The action is one number in [-1, 1] (others are clipped). Infos are empty.

    Args:
        task: the task, kept as the attribute ``task``.
    """

    def __init__(self, task: ActionModes) -> None:
        self.task = task
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        size = task.observations.shape[1:]
        self.observation_space = gym.spaces.Box(-1.0, 1.0, size, np.float32)
        self._state = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[FloatArray, dict[str, Any]]:
        """Draw a state."""
        super().reset(seed=seed, options=options)
        self._state = int(self.np_random.integers(len(self.task.observations)))
        return self._observe(), {}

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict[str, Any]]:
        """Reward the action, then turn."""
        value = np.clip(float(action[0]), -1.0, 1.0)
        turn = self.task.turns[int(nearest_mode(value, self.task.maxima))]
        self._state = (self._state + turn) % len(self.task.observations)
        return self._observe(), float(self.task.reward(value)), self.task.one_step, False, {}

    def _observe(self) -> FloatArray:
        return self.task.observations[self._state].astype(np.float32)


def _turning_task(reward: Reward, wells: int) -> ActionModes:
    """Headings are multiples of 90/n degrees; every maximum turns by its own angle."""
    angle = 2 * np.pi * np.arange(4 * wells) / (4 * wells)
    return ActionModes(
        reward=reward,
        maxima=well_maxima(wells),
        observations=np.stack((np.cos(angle), np.sin(angle)), -1),
        turns=tuple(wells - 1 - 2 * well for well in range(wells)),
    )


class TurningDoubleWellEnv(ActionModesEnv):
    """Turn left or right, both equally well: :func:`double_well_reward`.

    Observes cosine and sine of one of 8 headings, which turns by 45 degrees in the direction of the
    action's sign (0 counts as positive). Registered as ``TurningDoubleWell-v0`` with episodes of
    100 steps; the optimal return is 100.
    """

    def __init__(self) -> None:
        super().__init__(_turning_task(double_well_reward, 2))


class TurningMultiWellEnv(ActionModesEnv):
    """Turn by one of n angles, all equally well: :func:`multi_well_reward`.

    Observes cosine and sine of one of 4n headings, which turns by the angle of the maximum that is
    nearest to the action. Registered as ``TurningMultiWell-v0`` with episodes of 100 steps; the
    optimal return is 100.

    Args:
        wells: number of maxima, n >= 2. The default 3 has a best action at 0, where a policy with
            one mode would be, and two that such a policy loses.

    Raises:
        ValueError: for fewer than two wells.
    """

    def __init__(self, wells: int = 3) -> None:
        if wells < 2:
            raise ValueError(f"wells must be an integer of at least 2, got {wells}.")
        super().__init__(_turning_task(partial(multi_well_reward, wells=wells), wells))


class GMMBanditEnv(ActionModesEnv):
    """One step whose reward is the log density of a mixture: :func:`gmm_reward`.

    At temperature 1 the optimal policy is the mixture, and the entropy-regularised return at most
    ``log Z = 0``, if the entropy is that of the action; see :func:`optimal_density` for that of the
    latent. The observation is the constant 1. Registered as ``GMMBandit-v0``.
    """

    def __init__(self) -> None:
        turns = (0,) * len(GMM_MEANS)
        super().__init__(ActionModes(gmm_reward, GMM_MEANS, np.ones((1, 1)), turns, one_step=True))


# Time limits and arguments of the tasks; without a limit every episode has one step.
_TASKS: dict[str, dict[str, Any]] = {
    "TurningDoubleWell-v0": {
        "entry_point": "collectors.environments.tasks.multimodal:TurningDoubleWellEnv",
        "max_episode_steps": 100,
    },
    "TurningMultiWell-v0": {
        "entry_point": "collectors.environments.tasks.multimodal:TurningMultiWellEnv",
        "max_episode_steps": 100,
    },
    "GMMBandit-v0": {"entry_point": "collectors.environments.tasks.multimodal:GMMBanditEnv"},
    "MultiGoal-v0": {
        "entry_point": "collectors.environments.tasks.multi_goal:MultiGoalEnv",
        "max_episode_steps": 50,
    },
    "MultiGoalAnywhere-v0": {
        "entry_point": "collectors.environments.tasks.multi_goal:MultiGoalEnv",
        "max_episode_steps": 50,
        "kwargs": {"start_anywhere": True},
    },
}


def register_tasks() -> None:
    """Register the tasks with Gymnasium, those that are not registered yet.

    Importing ``collectors`` does so.
    """
    for name, options in _TASKS.items():
        if name not in gym.registry:
            gym.register(name, **options)
