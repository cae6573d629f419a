"""Policies that remember: histories, chunks, and what else stands before and behind a network."""

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from policy_tasks import TAKEN, Branching, Cart, Everything, Eye, Recorder, make_eye
from tensordict import TensorDict
from torchrl.envs.utils import ExplorationType, set_exploration_type

from collectors import EVALUATION_SEED, derive_seed, evaluate, make_env
from diffpolicy import ExportError, Policy, load_policy
from diffpolicy.actors import NetworkConfig, build_dime_networks
from diffpolicy.errors import ArgumentError
from diffpolicy.trainers import RLModule
from diffpolicy.trainers.loops.evaluation import Evaluation, Evaluator

SEED = derive_seed(EVALUATION_SEED, 0)
PENDULUM: dict[str, Any] = {"env_wrapper": (Recorder,)}
EVERYTHING: dict[str, Any] = {"env": Everything, "max_episode_steps": None, **PENDULUM}
CART: dict[str, Any] = {"env": Cart, "max_episode_steps": None}
EYE = functools.partial(Eye, features=4, scale=0.5)
# What stands before and behind the networks; 20 or 7 steps are no whole number of chunks.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "frames": ("dime", {**PENDULUM, "frame_stack": 3}),
    "chunks": ("diffppo", {**PENDULUM, "action_chunk": 3}),
    "both": ("gaussian_wpo", {**PENDULUM, "frame_stack": 2, "action_chunk": 6}),
    "spaces": ("sac", {**EVERYTHING, "frame_stack": 3, "action_chunk": 2, "encoder": "cnn"}),
    "encoder": ("dime", {**EVERYTHING, "encoder": EYE}),
    "encoder_name": ("sac", {**EVERYTHING, "encoder": "policy_tasks:Eye", "frame_stack": 2}),
    "torchrl": ("diffsac", {**CART, "encoder": "cnn"}),
    "torchrl_both": ("diffppo", {**CART, "encoder": EYE, "frame_stack": 3, "action_chunk": 2}),
    "torchrl_vector": ("gaussian_ppo", {**CART, "observation_keys": ("place",), "frame_stack": 2}),
}
# Exported as torch files; the others, as ONNX files, in slow tests.
FAST = ("spaces",)
SLOW = [pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind not in FAST]
Actions = list[NDArray[Any]]


def moved_actor(env: Any, **options: Any) -> Any:
    """An actor whose actions are not 0 everywhere, the same in each call."""
    torch.manual_seed(0)
    keys = [("observation", "camera")] if "network" in options else ["observation"]
    actor = build_dime_networks(env, denoising_steps=2, observation_keys=keys, **options).actor
    with torch.no_grad():
        for parameter in actor.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return actor


def gymnasium_episode(policy: Policy, env: gym.Env[Any, Any]) -> None:
    env.reset(seed=SEED)
    observation, _ = env.reset()
    policy.reset()
    ended = False
    while not ended:
        observation, _, terminated, truncated, _ = env.step(policy.act(observation))
        ended = bool(terminated or truncated)


def torchrl_episode(policy: Policy) -> None:
    env = Cart(1)
    env.set_seed(SEED)
    rows = env.reset()
    policy.reset()
    while not rows["done"].all():
        rows = env.step(rows.set("action", torch.from_numpy(policy.act(rows))))["next"]


def episode(policy: Policy, env: str | type) -> Actions:
    """What the simulator is given by a policy in the first episode of evaluations."""
    TAKEN.clear()
    if env is Cart:
        torchrl_episode(policy)
    elif env is Everything:
        gymnasium_episode(policy, Recorder(Everything()))
    else:
        gymnasium_episode(policy, Recorder(gym.make("Pendulum-v1", max_episode_steps=20)))
    return list(TAKEN)


def evaluation(module: RLModule) -> Actions:
    """The same of the trainer's own evaluation."""
    TAKEN.clear()
    evaluator = Evaluator(replace(module.config, eval_episodes=1, eval_policy="deterministic"))
    assert isinstance(evaluator.evaluate(module.actor, 0), Evaluation)
    evaluator.close()
    return list(TAKEN)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_policy_acts_as_in_the_evaluation_of_its_run(
    kind: str, make_module: Callable[..., RLModule], write_run: Callable[..., Path], tmp_path: Path
) -> None:
    name, options = KINDS[kind]
    module = make_module(name, **options)
    expected = evaluation(module)
    policy = load_policy(write_run(module, tmp_path / "run"))
    env = options.get("env", "Pendulum-v1")
    found = episode(policy, env)
    assert len(found) == len(expected) == (20 if env == "Pendulum-v1" else 7)
    assert np.std(expected, 0).min() > 0.003  # the observations matter
    np.testing.assert_allclose(found, expected, atol=1e-4)
    # Through a folder; and with a reset, an episode is the same again.
    again = Policy.from_pretrained(policy.save_pretrained(tmp_path / "shared"))
    assert again.interface.plain() == policy.interface.plain()
    for _ in range(2):
        np.testing.assert_array_equal(episode(again, env), found)


@pytest.mark.parametrize("kind", [*FAST, *SLOW])
def test_an_exported_file_takes_histories_and_returns_chunks(
    kind: str, make_module: Callable[..., RLModule], write_run: Callable[..., Path], tmp_path: Path
) -> None:
    name, options = KINDS[kind]
    module = make_module(name, **options)
    policy = load_policy(write_run(module, tmp_path / "run"))
    rows = made(options).rollout(4)[0]
    keys = [entry.key for entry in policy.interface.entries]
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        expected = module.actor(rows.select(*keys))["action"]
    given = [rows[key].numpy() for key in keys]
    if kind in FAST:
        path = policy.export(tmp_path / "policy.pt2", format="torch", mode="mean")
        found, told = run_torch(path, given)
    else:
        path = policy.export(tmp_path / "policy.onnx", mode="mean")
        found, told = run_onnx(path, given)
    frames, chunk = (options.get(key, 1) for key in ("frame_stack", "action_chunk"))
    assert (told["frames"], told["chunk"]) == (frames, chunk)
    shapes = [list(array.shape[1:]) for array in given]
    assert shapes == [entry["shape"] for entry in told["observation"]]
    actions = expected.shape[1] // chunk
    assert found.shape == ((4, actions) if chunk == 1 else (4, chunk, actions))
    np.testing.assert_allclose(found.reshape(4, -1), expected, atol=2e-5)


def run_torch(path: Path, inputs: Actions) -> tuple[NDArray[Any], Any]:
    """Actions of a file, and what it says about itself."""
    extra = {"diffpolicy.json": ""}
    with path.open("rb") as file:
        exported = torch.export.load(file, extra_files=extra).module()
    return exported(*map(torch.from_numpy, inputs)).numpy(), json.loads(extra["diffpolicy.json"])


def run_onnx(path: Path, inputs: Actions) -> tuple[NDArray[Any], Any]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    told = json.loads(session.get_modelmeta().custom_metadata_map["diffpolicy"])
    return session.run(None, dict(zip(told["inputs"], inputs, strict=True)))[0], told


def made(options: dict[str, Any]) -> Any:
    given = {key: v for key, v in options.items() if key not in ("env", "env_wrapper", "encoder")}
    return make_env(options.get("env", "Pendulum-v1"), seed=0, **given)


def test_rescaled_actions_are_those_of_the_environment(tmp_path: Path) -> None:
    options: dict[str, Any] = {"rescale_actions": True, "max_episode_steps": 20}
    env = make_env("Pendulum-v1", wrappers=[Recorder], action_chunk=3, frame_stack=2, **options)
    actor = moved_actor(env)
    TAKEN.clear()
    evaluate(actor, env, 1, seed=EVALUATION_SEED)
    expected = list(TAKEN)
    policy = Policy.of(actor, env)
    assert (policy.actions.low, policy.actions.high) == (-2.0, 2.0)
    assert repr(policy) == (
        "Policy(untrained; reads the last 2 of observation (3,), plans 3 actions at once; "
        "2 denoising steps)"
    )
    found = episode(policy, "Pendulum-v1")
    np.testing.assert_allclose(found, expected, atol=1e-5)
    again = load_policy(policy.save_pretrained(tmp_path / "shared"))
    np.testing.assert_array_equal(episode(again, "Pendulum-v1"), found)
    # The file rescales, too.
    path = policy.export(tmp_path / "policy.pt2", format="torch", mode="mean")
    rows = env.rollout(3)["observation"][0]
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        unit = actor(TensorDict({"observation": rows}, [len(rows)]))["action"]
    action, _ = run_torch(path, [rows.numpy()])
    np.testing.assert_allclose(action[..., 0], 2 * unit, atol=1e-5)


# ---------------------------------------------------------------------------------------
# Batches, rows and plans


@pytest.fixture(scope="module")
def remembers() -> Policy:
    """A policy on Pendulum that reads three observations and plans two actions."""
    env = make_env("Pendulum-v1", frame_stack=3, action_chunk=2)
    return Policy.of(moved_actor(env), env)


OBSERVATIONS = np.random.default_rng(0).normal(size=(9, 2, 3)).astype(np.float32)


def test_rows_of_a_batch_begin_their_episodes_by_themselves(remembers: Policy) -> None:
    ends = (3, 4)  # row 0 begins anew in the middle of a plan, row 1 at the end of one
    expected = np.zeros((9, 2, 1))
    for row, end in enumerate(ends):
        remembers.reset()
        for step, observation in enumerate(OBSERVATIONS[:, row]):
            if step == end:
                remembers.reset()
            expected[step, row] = remembers.act(observation)
    remembers.reset()
    found = []
    for step, observations in enumerate(OBSERVATIONS):
        remembers.reset(np.array([step == end for end in ends]))
        found.append(remembers.act(observations))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.unique(np.round(expected, 6)).size == expected.size


def test_another_batch_needs_a_reset(remembers: Policy) -> None:
    remembers.reset()
    remembers.act(OBSERVATIONS[0])
    for other in (OBSERVATIONS[0, 0], OBSERVATIONS[0, :1], OBSERVATIONS[:4]):
        with pytest.raises(
            ArgumentError, match=r"batch shape \(2,\) .*call policy\.reset\(\) when"
        ):
            remembers.act(other)
    for rows in ([True], [0, 1], True):
        with pytest.raises(ArgumentError, match=r"must be booleans of the shape \(2,\)"):
            remembers.reset(rows)
    remembers.reset()
    assert remembers.act(OBSERVATIONS[0, 0]).shape == (1,)
    remembers.reset()
    assert remembers.act(OBSERVATIONS[0, :0]).shape == (0, 1)
    remembers.reset()
    remembers.reset([True])  # there is nothing left to forget
    assert remembers.act(OBSERVATIONS[:4]).shape == (4, 2, 1)


def test_a_refused_observation_leaves_the_memory_alone(remembers: Policy) -> None:
    remembers.reset()
    expected = [remembers.act(row) for row in OBSERVATIONS[:6, 0]]
    remembers.reset()
    found = []
    for row in OBSERVATIONS[:6, 0]:
        for wrong in (np.full(3, np.nan), np.zeros(4)):
            with pytest.raises(ArgumentError):
                remembers.act(wrong)
        found.append(remembers.act(row))
    np.testing.assert_array_equal(found, expected)


def test_without_a_reset_the_old_episode_goes_on(remembers: Policy) -> None:
    remembers.reset()
    first = remembers.act(OBSERVATIONS[0, 0])
    assert (remembers.act(OBSERVATIONS[0, 0]) != first).all()
    remembers.reset()
    np.testing.assert_array_equal(remembers.act(OBSERVATIONS[0, 0]), first)


def test_the_plan_is_there_and_may_be_made_anew(remembers: Policy) -> None:
    remembers.reset()
    assert remembers.planned is None
    first = remembers.act(OBSERVATIONS[0])
    plan: Any = remembers.planned
    assert plan.shape == (2, 2, 1)
    np.testing.assert_array_equal(plan[:, 0], first)
    np.testing.assert_array_equal(remembers.act(OBSERVATIONS[1]), plan[:, 1])
    np.testing.assert_array_equal(remembers.planned, plan)
    plan[:] = 0  # a copy
    remembers.act(OBSERVATIONS[2])
    second: Any = remembers.planned
    assert (second != plan).all()
    # Three observations are all that the next plan depends on.
    remembers.replan()
    third = remembers.act(OBSERVATIONS[3])
    assert (third != second[:, 1]).all()
    remembers.reset()
    for step in (0, 1, 1, 2):
        remembers.act(OBSERVATIONS[step])
    np.testing.assert_allclose(remembers.act(OBSERVATIONS[3]), third, atol=1e-5)


def test_noise_is_drawn_for_plans_only(remembers: Policy) -> None:
    remembers.reset()
    remembers.seed(3)
    drawn = [remembers.act(row, False) for row in OBSERVATIONS[:4]]
    noise = [remembers.seed(3).draw_noise((2,)).numpy(), remembers.draw_noise((2,)).numpy()]
    assert noise[0].shape == (2, 3, 2)
    remembers.reset()
    ignored = np.full_like(noise[0], 9.0)
    given = [
        remembers.act(row, False, noise=own)
        for row, own in zip(OBSERVATIONS[:4], (noise[0], ignored, noise[1], ignored), strict=True)
    ]
    np.testing.assert_array_equal(given, drawn)
    with pytest.raises(ArgumentError, match=r"must have the shape \(2, 3, 2\)"):
        remembers.act(OBSERVATIONS[0], False, noise=noise[0][0])


# ---------------------------------------------------------------------------------------
# Encoders of one's own


def test_an_encoder_is_imported_by_its_name(
    make_module: Callable[..., RLModule],
    write_run: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Path(sys.modules[Eye.__module__].__file__ or "").read_text()
    (tmp_path / "own_eyes.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    module = make_module("sac", **{**EVERYTHING, "encoder": "own_eyes:Eye"})
    run = write_run(module, tmp_path / "run")
    folder = load_policy(run).save_pretrained(tmp_path / "shared")
    monkeypatch.delitem(sys.modules, "own_eyes")
    (tmp_path / "own_eyes.py").write_text(source.replace("Eye", "Nose"))
    for place in (run, folder):
        with pytest.raises(
            ArgumentError, match=r"encoder='own_eyes:Eye' names 'Eye', which own_ey"
        ):
            load_policy(place)
    monkeypatch.delitem(sys.modules, "own_eyes")
    (tmp_path / "own_eyes.py").unlink()
    for place in (run, folder):
        with pytest.raises(ArgumentError, match=r"'own_eyes:Eye' names the module 'own_eyes', whi"):
            load_policy(place)


def test_nothing_but_modules_of_torch_is_called(remembers: Policy, tmp_path: Path) -> None:
    folder = remembers.save_pretrained(tmp_path)
    content = json.loads((folder / "config.json").read_text())
    network = content["policy"]["actor"]["network"]
    network["encoder"] = {"name": "os:mkdir", "args": [str(tmp_path / "made")], "kwargs": {}}
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ArgumentError, match=r"encoder='os:mkdir' is no class of torch\.nn\.Module"):
        load_policy(folder)
    assert not (tmp_path / "made").exists()


class InMain(Eye):
    """What a script defines."""

    __module__ = "__main__"


@pytest.mark.parametrize(
    ("encoder", "words"),
    [
        (Eye((8, 8, 3)), r"is no class of torch\.nn\.Module; give a class that is built from"),
        (make_eye, r"encoder='policy_tasks:make_eye' is no class of torch\.nn\.Module"),
        (InMain, "cannot be imported by its name; define it at the top of a module"),
        (functools.partial(Eye, scale=torch.ones(1)), "arguments that are neither numbers nor"),
    ],
)
def test_encoders_that_no_file_describes(
    encoder: Any,
    words: str,
    make_module: Callable[..., RLModule],
    write_run: Callable[..., Path],
    tmp_path: Path,
) -> None:
    keys = ("camera",)
    module = make_module("sac", **{**EVERYTHING, "observation_keys": keys, "encoder": encoder})
    run = write_run(module, tmp_path / "run")  # the run itself goes on
    with pytest.raises(ArgumentError, match=f"holds a policy that no file describes: .*{words}"):
        load_policy(run)


def test_networks_that_cannot_be_exported_are_an_error_of_one_line(tmp_path: Path) -> None:
    env = make_env(Everything, observation_keys=["camera"])
    policy = Policy.of(moved_actor(env, network=NetworkConfig(encoder=Branching)), env)
    with pytest.raises(ExportError, match=r"policy\.pt2 cannot be written: ") as raised:
        policy.export(tmp_path / "policy.pt2", format="torch", mode="mean")
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
