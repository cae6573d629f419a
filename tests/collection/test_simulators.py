"""States of environments as plain data: what is kept, and what is refused."""

import enum
import io
import random
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.wrappers import (
    ClipAction,
    FrameStackObservation,
    NormalizeObservation,
    RecordEpisodeStatistics,
    TransformReward,
)

from collectors import UnsupportedStateError
from collectors.state.simulators import load_simulator_state, simulator_state


class Phase(enum.Enum):
    REST = 1
    RUN = 2


class Wheel:
    """A helper object that an environment may be made of."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator
        self.angle = np.float32(0.0)


def gain(value: float, factor: float) -> float:
    return value * factor


class Machine(gym.Env[Any, Any]):
    """Keeps its state in every way that can be saved, and shows that it is all there."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (6,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.memory = np.zeros((4, 3), order="F")
        self.row = self.memory[1]  # a view
        self.history: deque[float] = deque([0.0], maxlen=3)
        self.table: OrderedDict[Any, Any] = OrderedDict({("a", 1): [1, {2.5}]})
        self.phase = Phase.REST
        self.draws = random.Random(3)
        self.legacy = np.random.RandomState(4)
        self.gain = partial(gain, factor=2.0)
        self.cut = slice(0, 2)
        self.names = np.array(["left", "right"])
        self.again = self  # a cycle
        self.count = self.make_counter()
        self.lazy: Any = None

    def make_counter(self) -> Callable[[], int]:
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return steps

        return count

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.wheels = (Wheel(self.np_random), Wheel(self.np_random))
        self.memory[:] = self.np_random.normal(size=(4, 3))
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.row += action  # seen in memory, too
        self.lazy = {"late": np.arange(self.count())}
        self.history.append(float(self.memory.sum()) + len(self.lazy["late"]))
        self.table["b", 2] = self.table.pop(("a", 1), [0])
        self.phase = Phase.RUN if self.draws.random() < 0.5 else Phase.REST
        for wheel in self.wheels:
            wheel.angle += np.float32(wheel.generator.normal() + self.legacy.normal())
        return self.observe(), self.gain(sum(self.history)), False, False, {}

    def observe(self) -> Any:
        angles = [float(wheel.angle) for wheel in self.wheels]
        return np.array([*angles, *self.row, float(self.phase.value)])


def written(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def through_a_file(state: Any) -> Any:
    return torch.load(io.BytesIO(written(state)), weights_only=True)


def run(env: gym.Env[Any, Any], steps: int) -> list[list[float]]:
    """Observations and rewards of a few episodes of at most 7 steps."""
    seen = []
    for step in range(steps):
        observation, reward, terminated, truncated, _ = env.step(np.array([np.cos(step)]))
        seen.append([*np.ravel(observation), float(reward)])
        if terminated or truncated or step % 7 == 6:
            seen.append([*np.ravel(env.reset()[0])])
    return seen


def assert_continued(build: Callable[[], gym.Env[Any, Any]], used: int) -> None:
    first, second = build(), build()
    first.reset(seed=0)
    second.reset(seed=1)
    run(first, used)
    load_simulator_state(second, through_a_file(simulator_state(first)))
    expected = run(first, 20)
    assert run(second, 20) == expected


@pytest.mark.parametrize("used", [0, 5])
def test_an_environment_in_plain_python(used: int) -> None:
    assert_continued(Machine, used)


def test_views_cycles_and_types_are_kept() -> None:
    first, second = Machine(), Machine()
    first.reset(seed=0)
    second.reset(seed=1)
    run(first, 5)
    load_simulator_state(second, through_a_file(simulator_state(first)))
    assert np.shares_memory(second.row, second.memory)
    assert not np.shares_memory(second.memory, first.memory)
    assert second.memory.flags.f_contiguous
    assert second.row.strides == first.row.strides
    assert second.again is second
    assert second.wheels[0].generator is second.wheels[1].generator is second.np_random
    assert type(second.wheels[0].angle) is np.float32
    assert second.history.maxlen == 3
    assert type(second.table) is OrderedDict
    assert second.table == first.table
    assert second.names.tolist() == ["left", "right"]
    assert second.names.dtype == first.names.dtype


def test_a_state_does_not_change_with_its_environment() -> None:
    env = Machine()
    env.reset(seed=0)
    state = simulator_state(env)
    expected = run(env, 9)
    for _ in range(2):
        load_simulator_state(env, state)
        assert run(env, 9) == expected


def wrapped() -> gym.Env[Any, Any]:
    env = gym.make("Pendulum-v1", max_episode_steps=5)
    env = NormalizeObservation(RecordEpisodeStatistics(env))
    total = 0.0

    def running_sum(reward: Any) -> float:
        nonlocal total
        total += float(reward)
        return total

    return FrameStackObservation(TransformReward(ClipAction(env), running_sum), 3)


def test_wrappers_with_state_of_their_own() -> None:
    assert_continued(wrapped, 8)


def test_a_sampled_space_samples_on() -> None:
    first, second = (gym.make("Pendulum-v1") for _ in range(2))
    for seed, env in enumerate((first, second)):
        env.reset(seed=seed)
        env.action_space.seed(seed)
    load_simulator_state(second, through_a_file(simulator_state(first)))
    assert first.action_space.sample() == second.action_space.sample()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (threading.Lock(), r"state of Machine.extra cannot be saved: it is a _thread.lock"),
        (
            [1, {"deep": object()}],
            r"state of Machine.extra\[1\]\['deep'\] cannot .* builtins.object",
        ),
        (b"bytes", r"state of Machine.extra cannot be saved: it is a builtins.bytes"),
        (torch.zeros(2), r"state of Machine.extra cannot be saved: it is a torch.Tensor"),
        (torch.nn.Linear(1, 1), r"state of Linear._parameters\['weight'\] cannot be saved"),
        (np.array([None]), r"state of Machine.extra cannot .* an array of the type object; keep"),
        (
            torch.zeros(2).numpy(),
            r"state of Machine.extra cannot .* memory of a Tensor; keep a copy",
        ),
        (np.random.default_rng(0).normal, r"state of Machine.extra cannot be saved: it is a "),
        (iter([1]), r"state of Machine.extra cannot be saved: it is a builtins.list_iterator"),
        ((i for i in range(3)), r"state of Machine.extra cannot be saved: it is a .*generator"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_saved_is_named(value: object, message: str) -> None:
    env = Machine()
    env.reset(seed=0)
    env.extra = value
    with pytest.raises(UnsupportedStateError, match=message):
        simulator_state(env)


def test_mujoco_memory_held_by_an_environment_is_named() -> None:
    env = gym.make("HalfCheetah-v5")
    env.reset(seed=0)
    env.unwrapped.positions = env.unwrapped.data.qpos
    with pytest.raises(UnsupportedStateError, match=r"HalfCheetahEnv.positions .* keep a copy"):
        simulator_state(env)


class Elsewhere(gym.vector.VectorEnv):
    """Its copies are not in this process."""


def test_copies_in_other_processes_are_refused() -> None:
    with pytest.raises(UnsupportedStateError, match=r"Elsewhere cannot be saved.*SyncVectorEnv"):
        simulator_state(Elsewhere())


class Other(Machine):
    """Not the same class."""


def other_helper(env: Machine) -> None:
    env.wheels = (env.wheels[0],)


def other_function(env: Machine) -> None:
    env.gain = partial(run, factor=1.0)


def shared_helper(env: Machine) -> None:
    env.wheels = (env.wheels[0], env.wheels[0])


@pytest.mark.parametrize(
    ("build", "change", "message"),
    [
        (Other, None, "Other was a .*Machine, but is a .*Other here; load it into an environment"),
        (Machine, other_helper, r"Machine.wheels\[1\] was a .*Wheel, but is missing here"),
        (Machine, other_function, r"Machine.gain\[0\] was a .*gain, but is a .*run here"),
        (Machine, shared_helper, r"Machine.wheels\[1\] was an object of its own"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(
    build: Callable[[], Machine], change: Callable[[Machine], None] | None, message: str
) -> None:
    first, second = Machine(), build()
    first.reset(seed=0)
    second.reset(seed=1)
    run(first, 5)
    if change is not None:
        change(second)
    before = written(simulator_state(second))
    with pytest.raises(UnsupportedStateError, match=message):
        load_simulator_state(second, simulator_state(first))
    assert written(simulator_state(second)) == before


def test_another_mujoco_model_is_refused() -> None:
    first, second = gym.make("Hopper-v5"), gym.make("Hopper-v5", xml_file="walker2d_v5.xml")
    first.reset(seed=0)
    second.reset(seed=0)
    with pytest.raises(UnsupportedStateError, match="that of another MuJoCo model"):
        load_simulator_state(second, simulator_state(first))


def test_a_task_that_varies_its_physics() -> None:
    def build() -> gym.Env[Any, Any]:
        return gym.make("HalfCheetah-v5")

    first, second = build(), build()
    for env in (first, second):
        env.reset(seed=0)
    model = first.unwrapped.model
    model.body_mass[1] *= 2
    model.opt.gravity[2] = -3.0
    model.opt.timestep = 0.002
    load_simulator_state(second, through_a_file(simulator_state(first)))
    action = np.full(6, 0.5)
    for _ in range(5):
        assert np.array_equal(first.step(action)[0], second.step(action)[0])
    assert not np.array_equal(first.step(action)[0], build().reset(seed=0)[0])
    assert second.unwrapped.model.opt.timestep == 0.002


@pytest.mark.parametrize("name", ["memory", "row"])  # an array, a view
def test_addresses_cannot_be_smuggled_in(name: str) -> None:
    env = Machine()
    env.reset(seed=0)
    state = simulator_state(env)
    saved = state["environment"]["attributes"][name]
    (saved["leaf"] if "leaf" in saved else saved["view"])["dtype"] = "|O"
    with pytest.raises(UnsupportedStateError, match="damaged: it holds an array of the type obj"):
        load_simulator_state(env, state)


def test_only_known_generators_are_made() -> None:
    env = Machine()
    env.reset(seed=0)
    state = simulator_state(env)
    state["environment"]["attributes"]["_np_random"]["leaf"]["generator"]["bit_generator"] = "seed"
    with pytest.raises(KeyError, match="seed"):
        load_simulator_state(env, state)


def test_sleeping_bodies_are_refused() -> None:
    env = gym.make("Hopper-v5")
    env.reset(seed=0)
    env.unwrapped.model.opt.enableflags |= int(mujoco.mjtEnableBit.mjENBL_SLEEP)
    with pytest.raises(UnsupportedStateError, match="MuJoCo model with sleeping bodies cannot"):
        simulator_state(env)
