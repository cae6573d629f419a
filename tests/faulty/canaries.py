"""Environments with the habits of real ones, each beside what they should come to.

All are a cart on a line that wants to be at 0.5. ``Plain`` is the well-behaved one.
"""

import random
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

#: Names that components of the library write, or that TorchRL does.
RESERVED = (
    "action",
    "advantage",
    "collector",
    "done",
    "entropy_bound",
    "episode_reward",
    "index",
    "kernel_mean",
    "kernel_std",
    "latent",
    "latents",
    "log_prob",
    "log_ratio",
    "next",
    "next_latent",
    "observation",
    "pixels",
    "priority_weight",
    "reward",
    "state",
    "state_action_value",
    "state_value",
    "step",
    "step_count",
    "td_error",
    "terminated",
    "truncated",
    "value_target",
)
generator = np.random.default_rng(0)


class Plain(gym.Env[Any, Any]):
    """The cart: observes its place, its time and its last move; terminates at the right end."""

    observation_space: spaces.Space[Any] = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space: spaces.Box = spaces.Box(-1.0, 1.0, (1,), np.float32)
    length = 12

    def __init__(self) -> None:
        self.received: list[float] = []

    def start(self) -> float:
        """Where an episode begins."""
        return float(self.np_random.uniform(-1, 1))

    def numbers(self) -> tuple[float, int, float]:
        """Place, time, last move."""
        return self.place, self.time, self.move

    def observe(self) -> Any:
        """What is observed."""
        return np.array(self.numbers(), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        """A new episode."""
        super().reset(seed=seed)
        self.place, self.time, self.move = self.start(), 0, 0.0
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        """Move the cart by a fifth of the action."""
        self.received.append(float(np.ravel(action)[0]))
        self.move = self.received[-1]
        self.time += 1
        self.place += 0.2 * self.move
        reward = -((self.place - 0.5) ** 2)
        return self.observe(), reward, self.place > 1.5, self.time >= self.length, {}


class InPlace(Plain):
    """Rescales and clips the array that it is given."""

    def step(self, action: Any) -> Any:
        result = super().step(action)
        action *= 3.0
        np.clip(action, -0.5, 0.5, out=action)
        return result


class Reused(Plain):
    """Writes every observation into the same array."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = np.zeros(3, np.float32)

    def observe(self) -> Any:
        self.memory[:] = self.numbers()
        return self.memory


class Kinds(Plain):
    """Rewards and flags of all kinds: arrays of one, 0-d arrays, numpy's numbers and Python's."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        kinds = (np.array([reward]), np.array(reward), np.float64(reward), torch.tensor([reward]))
        flags = (
            np.bool_(terminated),
            np.array([terminated]),
            int(terminated),
            np.array(terminated),
        )
        kind = self.time % 4
        return observation, kinds[kind], flags[kind], np.array([truncated]), info


class WholeNumbers(Plain):
    """Rewards are integers."""

    def step(self, action: Any) -> Any:
        observation, _, terminated, truncated, info = super().step(action)
        return observation, self.time, terminated, truncated, info


class Half(Plain):
    """Observes float16."""

    observation_space = spaces.Box(-100, 100, (3,), np.float16)

    def observe(self) -> Any:
        return super().observe().astype(np.float16)


class Strict(Plain):
    """float64 bounds that float32 cannot represent; refuses what is not of its space."""

    action_space = spaces.Box(-0.1, 0.7, (1,), np.float64)

    def step(self, action: Any) -> Any:
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not in {self.action_space}")
        return super().step(action)


class MatrixActions(Plain):
    """The action is a matrix of four numbers; the first counts."""

    action_space = spaces.Box(-1.0, 1.0, (2, 2), np.float32)

    def step(self, action: Any) -> Any:
        assert action.shape == (2, 2)
        return super().step(action)


class Options(Plain):
    """Options of reset are optional, but then complete."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        begin = 0.0 if options is None else options["begin"]
        super().reset(seed=seed)
        self.place += begin
        return self.observe(), {}


class GlobalNumpy(Plain):
    """Starts come from NumPy's global generator."""

    def start(self) -> float:
        return float(np.random.uniform(-1, 1))  # noqa: NPY002


class GlobalPython(Plain):
    """Starts come from Python's global generator, and so does the constructor's offset."""

    def __init__(self) -> None:
        super().__init__()
        self.offset = random.uniform(-0.1, 0.1)

    def start(self) -> float:
        return random.uniform(-1, 1) + self.offset


class GlobalTorch(Plain):
    """Starts come from torch's global generator."""

    def start(self) -> float:
        return float(2 * torch.rand(()) - 1)


class Mixed(Plain):
    """The numbers come in entries of all kinds, and in dictionaries and tuples of them."""

    observation_space = spaces.Dict(
        {
            "bits": spaces.MultiBinary(2),
            "choices": spaces.MultiDiscrete([2, 3]),
            "count": spaces.Box(-100, 100, (1,), np.int32),
            "flag": spaces.Box(0, 1, (1,), np.bool_),
            "grid": spaces.Box(-9, 9, (2, 2), np.float64),
            "inner": spaces.Dict({"pair": spaces.Tuple((spaces.Discrete(3), spaces.Discrete(2)))}),
            "number": spaces.Box(-9, 9, (), np.float32),
            "phase": spaces.Discrete(3, start=-1),
        }
    )

    def observe(self) -> Any:
        time, place = self.time, self.place
        return {
            "bits": np.array([time % 2, 1], np.int8),
            "choices": np.array([time % 2, time % 3]),
            "count": np.array([time], np.int32),
            "flag": np.array([place > 0]),
            "grid": np.array([[place, self.move], [0.0, 1.0]]),
            "inner": {"pair": (time % 3, np.int64(time % 2))},
            "number": np.float32(place),
            "phase": np.array([time % 3 - 1]),
        }

    def flat(self) -> list[float]:
        """The same as one vector: entries in the order of their names."""

        def one_hot(size: int, index: int) -> list[float]:
            return [float(i == index) for i in range(size)]

        time, place = self.time, self.place
        return [
            *(time % 2, 1.0),
            *(*one_hot(2, time % 2), *one_hot(3, time % 3)),
            time,
            float(place > 0),
            *(place, self.move, 0.0, 1.0),
            *(*one_hot(3, time % 3), *one_hot(2, time % 2)),
            place,
            *one_hot(3, time % 3),
        ]


class Flat(Mixed):
    """What ``Mixed`` should come to."""

    observation_space = spaces.Box(-np.inf, np.inf, (22,), np.float32)

    def observe(self) -> Any:
        return np.array(self.flat(), np.float32)


class Reserved(Plain):
    """A dictionary whose entries have the names of everything that the library writes."""

    observation_space = spaces.Dict(
        {name: spaces.Box(-np.inf, np.inf, (1,), np.float32) for name in RESERVED}
    )

    def observe(self) -> Any:
        place, time, move = self.numbers()
        return {
            name: np.array([place + index + time * move], np.float32)
            for index, name in enumerate(RESERVED)
        }


class Single(Plain):
    """A simulator of which only one can run at a time."""

    alive: ClassVar[int] = 0

    def __init__(self) -> None:
        if type(self).alive:
            raise OSError("the port of the simulator is taken")
        super().__init__()
        type(self).alive += 1

    def close(self) -> None:
        type(self).alive -= 1


class Counter(Plain):
    """Counts its steps on the class: a curriculum."""

    steps: ClassVar[int] = 0

    def step(self, action: Any) -> Any:
        type(self).steps += 1
        return super().step(action)


class ModuleGenerator(Plain):
    """Starts come from a generator of its module."""

    def start(self) -> float:
        return float(generator.uniform(-1, 1))


class Unclosable(Plain):
    """Raises when it is closed."""

    def close(self) -> None:
        raise RuntimeError("the simulator has gone away")


class OldReset(Plain):
    """Has the reset of Gym before 0.26."""

    def reset(self) -> Any:  # type: ignore[override]
        return np.zeros(3, np.float32)


class OldStep(Plain):
    """Its step returns four values."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or truncated, info


class Text(Plain):
    """Observes a text beside its numbers."""

    observation_space = spaces.Dict(
        {"numbers": Plain.observation_space, "words": spaces.Text(max_length=9)}
    )

    def observe(self) -> Any:
        return {"numbers": super().observe(), "words": "left"}


class Everything(Mixed):
    """All habits that do not exclude each other; ``Tidy`` is what it should come to."""

    action_space = Strict.action_space
    observation_space = spaces.Dict(
        {
            **Mixed.observation_space.spaces,
            **{name: spaces.Box(-np.inf, np.inf, (1,), np.float64) for name in RESERVED},
        }
    )

    def __init__(self) -> None:
        super().__init__()
        self.memory: dict[str, Any] = {}

    def start(self) -> float:
        return random.uniform(-1, 1) + float(np.random.normal(0, 0.1))  # noqa: NPY002

    def observe(self) -> Any:
        names = {name: np.array([self.place + i]) for i, name in enumerate(RESERVED)}
        fresh = {**super().observe(), **names}
        for name, value in fresh.items():
            old = self.memory.setdefault(name, value)
            if isinstance(old, np.ndarray):
                old[...] = value
            else:
                self.memory[name] = value
        return self.memory

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if options is not None:
            raise KeyError("begin")
        return super().reset(seed=seed)

    def step(self, action: Any) -> Any:
        if not self.action_space.contains(action):
            raise ValueError(f"{action!r} is not in {self.action_space}")
        observation, reward, terminated, truncated, info = super().step(action)
        action *= 3.0
        return observation, np.array([reward]), np.array(terminated), int(truncated), info

    def close(self) -> None:
        raise RuntimeError("the simulator has gone away")


class Tidy(Everything):
    """What ``Everything`` should come to."""

    observation_space = spaces.Box(-np.inf, np.inf, (22 + len(RESERVED),), np.float32)

    def observe(self) -> Any:
        # Entries of a dictionary are in the order of their names.
        parts: dict[str, list[float]] = {
            name: [self.place + index] for index, name in enumerate(RESERVED)
        }
        flat, begin = self.flat(), 0
        for name, space in Mixed.observation_space.spaces.items():
            size = spaces.flatdim(space)
            parts[name] = flat[begin : begin + size]
            begin += size
        return np.array([x for name in sorted(parts) for x in parts[name]], np.float32)

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = Plain.step(self, action.copy())
        return observation, float(reward), bool(terminated), bool(truncated), info

    def close(self) -> None:
        pass


for _class in (
    *(Plain, InPlace, Reused, Kinds, WholeNumbers, Half, Strict, MatrixActions, Options),
    *(GlobalNumpy, GlobalPython, GlobalTorch, Mixed, Flat, Reserved, Single, Counter),
    *(ModuleGenerator, Unclosable, OldReset, OldStep, Text, Everything, Tidy),
):
    gym.register(f"{_class.__name__}-v0", _class, disable_env_checker=True)
