"""Runs on environments from anywhere: factories, instances, TorchRL's, chunks, histories."""

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import torch
import yaml
from gymnasium.wrappers import ClipReward
from small_methods import small_config, small_words
from tensordict import TensorDict
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import EnvBase

from diffpolicy.errors import ArgumentError
from diffpolicy.names import UNNAMED
from diffpolicy.trainers import METHODS, OffPolicyModule, prepare, train
from diffpolicy.trainers.io.checkpoint import Checkpoint
from diffpolicy.trainers.run.cli import parse_config, run_script
from diffpolicy.trainers.run.parser import Parser

MODULE = """
import gymnasium as gym

def make(g=10.0):
    return gym.make("Pendulum-v1", g=g)

class Louder(gym.RewardWrapper):
    def reward(self, reward):
        return 2 * reward
"""


class Point(EnvBase):
    """Moves to the origin; a batch of any size."""

    def __init__(self, num_envs: int = 2) -> None:
        super().__init__(batch_size=[num_envs])
        self.action_spec = Bounded(-1.0, 1.0, (num_envs, 2))
        self.observation_spec = Composite(
            position=Unbounded((num_envs, 2)),
            goal=Composite(place=Unbounded((num_envs, 2)), shape=[num_envs]),
            shape=[num_envs],
        )
        self.reward_spec = Unbounded((num_envs, 1))
        self.done_spec = Categorical(2, shape=(num_envs, 1), dtype=torch.bool)

    def _entries(self, position: Any) -> Any:
        never = torch.zeros(*self.batch_size, 1, dtype=torch.bool)
        entries = {"position": position, "goal": {"place": 0 * position}, "done": never}
        return TensorDict(entries, self.batch_size)

    def _reset(self, tensordict: Any = None, **options: Any) -> Any:
        return self._entries(torch.rand(*self.batch_size, 2))

    def _step(self, tensordict: Any) -> Any:
        position = tensordict["position"] + 0.1 * tensordict["action"]
        return self._entries(position).set("reward", -position.norm(dim=-1, keepdim=True))

    def _set_seed(self, seed: Any) -> None:
        pass


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current folder, which is not on the path."""
    (tmp_path / "own_task.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p])
    return "own_task"


def test_flags_name_factories_arguments_and_wrappers(own_module: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    flags = ["--env", f"{own_module}:make", "--env-kwargs", '{"g": 3}', "--output", str(output)]
    wrappers = ["--env-wrapper", f"{own_module}:Louder"]
    words = [w for w in small_words("diffppo", total_frames=40) if w != "Pendulum-v1"]
    words.remove("--env")
    assert run_script(METHODS["diffppo"], [*words, *flags, *wrappers]) == 0
    saved = yaml.safe_load((output / "config.yaml").read_text())
    assert saved["env"] == "own_task:make"
    assert saved["env_kwargs"] == {"g": 3}
    assert saved["env_wrapper"] == ["own_task:Louder"]
    again = ["--resume", str(output / "checkpoints" / "last.ckpt"), "--total-frames", "80"]
    given = Parser(type_of("diffppo")).parse_options(again)
    config, _ = parse_config(type_of("diffppo"), given)
    assert (config.env, config.env_kwargs) == ("own_task:make", {"g": 3})
    assert prepare(config).frames == 40


def type_of(method: str) -> Any:
    return METHODS[method].config


def test_arguments_come_from_files_too(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"env_kwargs": {"g": 3, "deep": {"a": [1]}}}))
    given = Parser(type_of("dime")).parse_options(["--config", str(tmp_path / "run.yaml")])
    assert given == {"env_kwargs": {"g": 3, "deep": {"a": [1]}}}


def test_arguments_that_are_none_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        Parser(type_of("dime")).parse_options(["--env-kwargs", "3"])
    line = capsys.readouterr().err
    assert "--env-kwargs must be names and values in YAML or JSON, got" in line
    with pytest.raises(ArgumentError, match=r"^env_kwargs=\{'speed': 1\} do not suit Pendulum-v1"):
        prepare(small_config("dime", env_kwargs={"speed": 1}))


def test_a_named_factory_of_python_is_resumed_by_the_command_line(tmp_path: Path) -> None:
    config = small_config("dime", env=Point, output=str(tmp_path / "run"), total_frames=80)
    run = prepare(config)
    assert run.module.notes.interface.startswith("reads position (2), goal.place (2); drives 2 ")
    assert "TorchRL environments cannot be saved" in run.module.notes.inexact
    assert train(run)
    saved = Checkpoint.find(str(tmp_path / "run/checkpoints/last.ckpt"), None, "dime")
    assert saved is not None
    # Tests are no module that other processes find by this name, but it is a name.
    assert saved.state["config"]["env"].endswith(("test_env_sources:Point", "python object Point"))


def test_an_object_without_a_name_is_said_to_end_resuming(tmp_path: Path) -> None:
    def local() -> Any:
        return gym.make("Pendulum-v1")

    options = {"output": str(tmp_path / "run"), "total_frames": 80, "env_wrapper": (clipped,)}
    assert train(prepare(small_config("dime", env=local, **options)))
    last = str(tmp_path / "run/checkpoints/last.ckpt")
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert saved["env"].startswith(UNNAMED)
    given = {"resume": last, "total_frames": 120}
    message = r"^--env was a Python object without a name \(.*local\), which no file holds"
    with pytest.raises(ValueError, match=message):
        parse_config(type_of("dime"), given)
    options |= {"resume": last, "total_frames": 120, "output": None}
    run = prepare(small_config("dime", env=local, **options))
    assert run.frames == 80
    assert not run.module.notes.inexact


def test_envpool_is_trained_on_and_a_resumed_run_begins_new_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("envpool")
    options = {"env_source": "envpool", "env_kwargs": {"num_threads": 1}, "total_frames": 80}
    run = prepare(small_config("diffppo", output=str(tmp_path / "run"), **options))
    assert "new episodes, because those of EnvPool cannot be saved" in run.module.notes.inexact
    assert train(run)
    again = {**options, "resume": str(tmp_path / "run/checkpoints/last.ckpt"), "total_frames": 120}
    run = prepare(small_config("diffppo", **again))
    assert run.frames == 80
    assert train(run)
    assert run.module.progress.frames == 120
    message = r"^env_source='envpool' needs EnvPool, .*pip install 'diffpolicy\[envpool\]'"
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ArgumentError, match=message):
        prepare(small_config("dime", env_source="envpool"))


def clipped(env: Any) -> Any:
    return ClipReward(env, -5.0, 0.0)


@pytest.mark.parametrize("env", [lambda: gym.make("Pendulum-v1"), lambda: Point(1)])
def test_an_instance_is_trained_on_and_stays_open(env: Any, tmp_path: Path) -> None:
    instance = env()
    options = {"env": instance, "output": str(tmp_path / "run"), "total_frames": 80}
    with pytest.raises(ArgumentError, match=r"is one environment .*\(num_envs is 2 and must be 1"):
        prepare(small_config("dime", **options))
    config = small_config("dime", **options, num_envs=1, eval_env="training", eval_every=20)
    run = prepare(config)
    assert train(run)
    assert len(run.module.progress.evaluations) > 1
    instance.reset()


@pytest.mark.parametrize("method", ["dime", "diffsac", "sac", "diffppo", "gaussian_ppo", "diffwpo"])
def test_chunks_and_histories_train_with_every_kind_of_loss(method: str, tmp_path: Path) -> None:
    own = {"action_chunk": 5, "frame_stack": 2, "max_episode_steps": 18, "total_frames": 60}
    if method in ("diffppo", "gaussian_ppo", "diffwpo"):
        own["rollout_steps"] = 4
    run = prepare(small_config(method, **own, output=str(tmp_path / "run")))
    assert run.module.notes.interface.startswith("reads observation (6); drives 5 action(s)")
    assert train(run)
    progress = run.module.progress
    # Chunks of 5, 5, 5 and 3 steps: an iteration of four is 36 steps of both environments; those of
    # off-policy runs are four, too, after eight rows that act at random.
    assert progress.frames == 72
    if isinstance(run.module, OffPolicyModule):
        lengths = run.module.stream.buffer[:]["steps_to_next_obs"].flatten().tolist()
        assert lengths == 2 * ([5] * 6 + [3] * 2)


def test_chunks_need_whole_numbers_of_them() -> None:
    message = "--learning-starts must be a multiple of --num-envs 2 times --action-chunk 3, got 40"
    with pytest.raises(ValueError, match=message):
        small_config("dime", action_chunk=3)
