"""What make_env takes besides ids: factories, environments, TorchRL's, names of wrappers."""

import ctypes
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.wrappers import ClipReward, TransformReward
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.data import Bounded, Categorical, Composite, OneHot, Unbounded
from torchrl.envs import EnvBase, RewardScaling, TransformedEnv

from collectors import evaluate, make_collector, make_env
from collectors.environments.model_notices import known_notices_hidden
from collectors.environments.observed import observed_entries
from diffpolicy.errors import ArgumentError
from diffpolicy.names import UNNAMED, name_of, plain, shown, unnamed


class Point(EnvBase):
    """Moves by its actions; a step costs 1. Every reset draws a place."""

    def __init__(self, num_envs: int = 3, batched: bool = True) -> None:
        batch = [num_envs] if batched else []
        super().__init__(batch_size=batch)
        self.action_spec = Bounded(-1.0, 1.0, (*batch, 2))
        self.observation_spec = Composite(
            place=Unbounded((*batch, 2)),
            count=Unbounded((*batch, 1), dtype=torch.int64),
            pixels=Unbounded((*batch, 3, 8, 8), dtype=torch.uint8),
            shape=batch,
        )
        self.reward_spec = Unbounded((*batch, 1))
        self.done_spec = Categorical(2, shape=(*batch, 1), dtype=torch.bool)
        self.closed = False
        self.generator = torch.Generator()

    def _entries(self, place: Any) -> Any:
        count = torch.zeros(*self.batch_size, 1, dtype=torch.int64)
        pixels = torch.zeros(*self.batch_size, 3, 8, 8, dtype=torch.uint8)
        entries = {"place": place, "count": count, "pixels": pixels, "done": count > 0}
        return TensorDict(entries, self.batch_size)

    def _reset(self, tensordict: Any = None, **options: Any) -> Any:
        return self._entries(torch.rand(*self.batch_size, 2, generator=self.generator))

    def _step(self, tensordict: Any) -> Any:
        following = self._entries(tensordict["place"] + tensordict["action"])
        return following.set("reward", -torch.ones(*self.batch_size, 1))

    def _set_seed(self, seed: Any) -> None:
        self.generator.manual_seed(seed)

    def close(self, *, raise_if_closed: bool = True) -> None:
        super().close(raise_if_closed=raise_if_closed)
        self.closed = True


class Reach(gym.Env[Any, Any]):
    """Observes a goal like the tasks of Gymnasium-Robotics."""

    action_space = gym.spaces.Box(-1.0, 1.0, (4,))
    observation_space = gym.spaces.Dict(
        {
            key: gym.spaces.Box(-np.inf, np.inf, (size,), np.float64)
            for key, size in {"observation": 10, "achieved_goal": 3, "desired_goal": 3}.items()
        }
    )

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        spaces = self.observation_space.spaces.items()
        return {key: self.np_random.normal(size=space.shape) for key, space in spaces}, {}

    def step(self, action: Any) -> Any:
        return self.reset()[0], -1.0, False, False, {}


def single() -> EnvBase:
    return Point(batched=False)


def pendulum(g: float = 10.0) -> gym.Env[Any, Any]:
    return gym.make("Pendulum-v1", g=g)


def doubled(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return TransformReward(env, lambda reward: 2 * reward)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder that is not on the path, as of an installed command."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    return tmp_path


@pytest.mark.parametrize("source", [pendulum, lambda: gym.make("Pendulum-v1"), Point, single])
def test_factories_give_as_many_copies_as_are_wanted(source: Any) -> None:
    env = make_env(source, num_envs=2, seed=0, max_episode_steps=3)
    rows = env.rollout(4, break_when_any_done=False)
    assert rows.shape == (2, 4)
    assert rows["next", "truncated"].squeeze(-1).tolist() == [[False, False, True, False]] * 2
    assert rows["next", "step_count"][0].flatten().tolist() == [1, 2, 3, 1]
    again = make_env(source, num_envs=2, seed=0).reset()
    key = "place" if again.get("place", None) is not None else "observation"
    assert torch.equal(again[key], rows[key][:, 0])
    assert not torch.equal(again[key][0], again[key][1])
    env.close()


def test_factories_of_a_module_in_the_current_folder(folder: Path) -> None:
    (folder / "own_pendulum.py").write_text(
        "import gymnasium as gym\n"
        "def make(g=10.0):\n    return gym.make('Pendulum-v1', g=g)\n"
        "gym.register('OwnPendulum-v0', make)\n"
        "number = 3\n"
    )
    rows = make_env("own_pendulum:make", seed=0, g=3.0).rollout(5)
    state, action = rows["observation"][0, -2], rows["action"][0, -2]
    # The acceleration of a pendulum with this gravity.
    faster = 0.05 * (1.5 * 3.0 * state[1] + 3.0 * action[0])
    assert rows["observation"][0, -1, 2] == pytest.approx(float(state[2] + faster), abs=1e-5)
    by_id = make_env("own_pendulum:OwnPendulum-v0", seed=0)
    assert by_id.reset()["observation"].shape == (1, 3)
    message = r"neither a registered .* of own_pendulum; close .*make"
    with pytest.raises(ArgumentError, match=message):
        make_env("own_pendulum:maker")
    with pytest.raises(ArgumentError, match="neither a registered"):
        make_env("own_pendulum:number")


def test_the_current_folder_hides_no_installed_module(folder: Path) -> None:
    (folder / "numpy.py").write_text("raise RuntimeError('hides numpy')\n")
    assert make_env("gymnasium.envs.classic_control.pendulum:PendulumEnv").batch_size == (1,)


def test_wrappers_are_callables_or_names_and_the_first_is_innermost() -> None:
    plain_rows = make_env(pendulum, seed=0).rollout(3)
    wrappers = [doubled, lambda env: ClipReward(env, -1.0, 0.0)]
    rows = make_env(pendulum, seed=0, wrappers=wrappers).rollout(3)
    assert rows["next", "reward"].min() == -1.0
    assert plain_rows["next", "reward"].min() < -1.0
    triple = [lambda env: TransformedEnv(env, RewardScaling(0.0, 3.0))]
    scaled = make_env(Point, num_envs=2, wrappers=triple)
    assert scaled.rollout(2)["next", "episode_reward"][0, -1] == -6.0
    with pytest.raises(ArgumentError, match=r"^wrappers='gymna.*RescaleAction' cannot be called"):
        make_env(pendulum, wrappers=["gymnasium.wrappers:RescaleAction"])
    with pytest.raises(ArgumentError, match=r"^wrappers='gymnasium.wrappers:ClipRewrd' .*ClipRew"):
        make_env(pendulum, wrappers=["gymnasium.wrappers:ClipRewrd"])


@pytest.mark.parametrize("make", [pendulum, Point, single])
def test_an_environment_stays_its_owners(make: Any) -> None:
    instance = make()
    size = 3 if make is Point else 1
    for _ in range(2):
        env = make_env(instance, num_envs=size)
        assert env.rollout(2).shape == (size, 2)
        env.close()
    assert not getattr(instance, "closed", False)
    with pytest.raises(ArgumentError, match=r"num_envs=2 must be"):
        make_env(instance, num_envs=2)
    with pytest.raises(ArgumentError, match="has been built"):
        make_env(instance, num_envs=size, g=3.0)


def test_batches_of_a_fixed_size_keep_it() -> None:
    with pytest.raises(ArgumentError, match="num_envs=2 must be 3, the number of copies in"):
        make_env(lambda: Point(3), num_envs=2)
    assert make_env(lambda: Point(3), num_envs=2, keep_batch=True).batch_size == (3,)


def test_what_torchrl_environments_observe() -> None:
    env = make_env(Point, num_envs=2)
    names = [(entry.name, entry.shape, entry.is_image) for entry in observed_entries(env)]
    assert sorted(names) == [("pixels", (3, 8, 8), True), ("place", (2,), False)]
    assert [entry.key for entry in observed_entries(env, ["count"])] == ["count"]
    with pytest.raises(ArgumentError, match="'speed' is not observed; choose from"):
        observed_entries(env, ["speed"])


def test_torchrl_environments_are_collected_and_evaluated() -> None:
    def build() -> EnvBase:
        return make_env(Point, num_envs=2, max_episode_steps=4)

    collector = make_collector(build, None, frames_per_batch=12, seed=0)
    rollout = next(iter(collector))
    assert rollout["next", "truncated"].sum() == 2
    collector.shutdown()
    policy = TensorDictModule(torch.nn.Linear(2, 2), ["place"], ["action"])
    assert evaluate(policy, build(), 3, seed=0) == ([-4.0] * 3, [4] * 3)


class Discrete(Point):
    """Has actions that are no vectors of floats."""

    def __init__(self) -> None:
        super().__init__()
        self.action_spec = OneHot(4, (3, 4))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (lambda: 3, "builds int, but must build a gymnasium.Env"),
        (lambda: gym.make_vec("Pendulum-v1", 2), "builds a vector environment, but must build"),
        (7, "must be an id, module:factory, .* got int"),
        (Discrete, "only bounded continuous actions"),
        ("no_module:make", "names the module 'no_module', which cannot be imported"),
    ],
)
def test_what_is_no_environment_is_refused(source: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make_env(source, num_envs=3)


def test_goals_are_entries_of_the_observation() -> None:
    observation = make_env(Reach, num_envs=2).reset()["observation"]
    sizes = {key: tuple(value.shape) for key, value in observation.items()}
    assert sizes == {"observation": (2, 10), "achieved_goal": (2, 3), "desired_goal": (2, 3)}


def test_known_notices_about_models_are_hidden(capsys: pytest.CaptureFixture[str]) -> None:
    before, heard = mujoco.get_mju_user_warning(), []
    of_c = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(lambda text: heard.append(text.decode()))
    try:
        for others in (None, heard.append, of_c):
            mujoco.set_mju_user_warning(others)
            with known_notices_hidden():
                say = mujoco.get_mju_user_warning()
                say("compiler attribute 'settotalmass' is deprecated and will be removed")
                say("the model is unstable")
            assert mujoco.get_mju_user_warning() is others
    finally:
        mujoco.set_mju_user_warning(before)
    assert capsys.readouterr().err == "WARNING: the model is unstable\n"
    assert heard == ["the model is unstable"] * 2


def test_objects_are_plain_data_by_their_names() -> None:
    assert plain({"a": (1, None, [np.float32(0.5)])}) == {"a": (1, None, [0.5])}
    assert plain(make_env) == name_of(make_env) == "collectors.environments.factory:make_env"
    local = plain(lambda: 0)
    assert local.startswith(UNNAMED)
    assert unnamed({"x": (local,)}) == shown(lambda: 0)
    assert unnamed({"x": ("y", 3)}) is None
