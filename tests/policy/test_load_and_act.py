"""A loaded policy acts as the trained actor does, without its trainer."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from pixel_tasks import Mixed
from small_methods import DIFFUSION, small_config
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.envs import ActionScaling, CatFrames, GymEnv, TransformedEnv
from torchrl.envs.utils import ExplorationType, set_exploration_type

from collectors import evaluate, make_env
from diffpolicy import Policy, load_policy
from diffpolicy.actors import (
    DenoisingActor,
    NetworkConfig,
    build_dime_networks,
    build_gaussian_sac_networks,
)
from diffpolicy.errors import ArgumentError
from diffpolicy.files import read_plain, write_plain
from diffpolicy.policy.checkpoints import described_policy
from diffpolicy.trainers import EVALUATION_SEED, METHODS, RLModule, prepare, train

Runs = dict[str, Path]
Modules = dict[str, RLModule]
OBSERVATIONS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def actions_of(module: RLModule, exploration: ExplorationType) -> Tensor:
    """What the trained actor itself does, from a fixed seed."""
    torch.manual_seed(3)
    with set_exploration_type(exploration), torch.no_grad():
        rows = TensorDict({"observation": torch.from_numpy(OBSERVATIONS)}, [7])
        action: Tensor = module.actor(rows)["action"]
    return action


@pytest.mark.parametrize("name", METHODS)
def test_acts_as_the_trained_actor(name: str, runs: Runs, modules: Modules) -> None:
    policy = load_policy(runs[name])
    expected = actions_of(modules[name], ExplorationType.DETERMINISTIC).numpy()
    assert expected.std() > 0.005  # the observations matter
    np.testing.assert_allclose(policy.act(OBSERVATIONS), expected, atol=2e-6)


@pytest.mark.parametrize("name", METHODS)
def test_samples_as_the_trained_actor(name: str, runs: Runs, modules: Modules) -> None:
    policy = load_policy(runs[name])
    expected = actions_of(modules[name], ExplorationType.RANDOM).numpy()
    torch.manual_seed(3)
    noise = torch.randn(7, *policy.function.noise_shape).numpy()
    found = policy.act(OBSERVATIONS, deterministic=False, noise=noise)
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert np.abs(found - policy.act(OBSERVATIONS)).max() > 0.01


@pytest.mark.parametrize("name", METHODS)
def test_images_and_vectors(
    name: str, make_module: Callable[..., RLModule], write_run: Callable[..., Path], tmp_path: Path
) -> None:
    module = make_module(name, env=Mixed, encoder="cnn", max_episode_steps=None)
    policy = load_policy(write_run(module, tmp_path / "run"))
    generator = np.random.default_rng(0)
    rows = {
        "camera": generator.integers(0, 256, (5, 1, 16, 16), np.uint8),
        "height": generator.uniform(-1, 1, (5, 1)).astype(np.float32),
    }
    batch = TensorDict({"observation": TensorDict(rows, [5])}, [5])
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        expected = module.actor(batch)["action"].numpy()
    assert expected.std() > 0.005
    np.testing.assert_allclose(policy.act(rows), expected, atol=2e-5)
    one = {key: value[3] for key, value in rows.items()}
    np.testing.assert_allclose(policy.act(one), expected[3], atol=2e-5)


@pytest.mark.parametrize("name", ["dime", "sac"])
def test_single_observations_and_batches_of_any_shape(name: str, runs: Runs) -> None:
    policy = load_policy(runs[name])
    batch = policy.act(OBSERVATIONS)
    assert batch.shape == (7, 1)
    assert batch.dtype == np.float32
    single = policy.act(OBSERVATIONS[2])
    assert single.shape == (1,)
    np.testing.assert_allclose(single, batch[2], atol=1e-6)
    # Environments give float64, integers and lists, too.
    np.testing.assert_allclose(policy.act(OBSERVATIONS[2].tolist()), batch[2], atol=1e-6)
    cube = policy.act(OBSERVATIONS[:6].reshape(1, 2, 3, 3).astype(np.float64))
    assert cube.shape == (1, 2, 3, 1)
    np.testing.assert_allclose(cube.reshape(6, 1), batch[:6], atol=1e-6)
    assert policy.act(OBSERVATIONS[:0]).shape == (0, 1)


@pytest.mark.parametrize("name", METHODS)
def test_a_seed_repeats_samples(name: str, runs: Runs) -> None:
    policy, other = load_policy(runs[name]), load_policy(runs[name])
    first = [policy.seed(5).act(OBSERVATIONS, False), policy.act(OBSERVATIONS, False)]
    again = [other.seed(5).act(OBSERVATIONS, False), other.act(OBSERVATIONS, False)]
    np.testing.assert_array_equal(first, again)
    assert (first[0] != first[1]).any()
    # The global generator is left alone.
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    policy.act(OBSERVATIONS, False)
    assert torch.rand(1) == expected


@pytest.mark.parametrize("name", [name for name in DIFFUSION if name != "diffwpo"])
def test_any_number_of_denoising_steps(name: str, runs: Runs, modules: Modules) -> None:
    actor = modules[name].actor
    trained = load_policy(runs[name]).act(OBSERVATIONS)
    for steps in (1, 2, 5):
        policy = load_policy(runs[name], denoising_steps=steps)
        assert policy.denoising_steps == steps
        assert policy.act(OBSERVATIONS, False).shape == (7, 1)
        assert (policy.act(OBSERVATIONS) == trained).all() == (steps == 2)
    assert actor.denoising_steps == 2  # that of the run is another one


def test_the_ways_to_act_without_noise(runs: Runs, modules: Modules) -> None:
    policy = load_policy(runs["dime"])
    actor = modules["dime"].actor
    assert policy.deterministic_step == "mean"
    observation = torch.from_numpy(OBSERVATIONS)
    for step in ("flow", "published", "mean"):
        policy.deterministic_step = step
        own = DenoisingActor(
            actor.process, actor.score_network, actor.squash, deterministic_step=step
        )
        with torch.no_grad():
            expected = actor.squash(own.sample_latent(observation, deterministic=True))
        np.testing.assert_allclose(policy.act(OBSERVATIONS), expected, atol=2e-6)
    with pytest.raises(ArgumentError, match="deterministic_step='sample' must be one of mean"):
        policy.deterministic_step = "sample"
    with pytest.raises(ArgumentError, match="must be one of mean here"):
        load_policy(runs["sac"]).deterministic_step = "flow"


@pytest.mark.parametrize(
    ("name", "steps", "words"),
    [
        ("dime", 0, "must be a whole number of at least 1"),
        ("dime", 2.0, "must be a whole number"),
        ("dime", True, "must be a whole number"),
        ("diffwpo", 3, "fix their number to 2"),
        ("sac", 2, "this policy is a Gaussian"),
    ],
)
def test_impossible_numbers_of_steps(name: str, steps: Any, words: str, runs: Runs) -> None:
    with pytest.raises(ArgumentError, match=words):
        load_policy(runs[name], denoising_steps=steps)


@pytest.mark.parametrize(
    ("observation", "words"),
    [
        (np.zeros(4), r"shape \(4,\).* must be numbers of the shape \(3\), or \(\*batch, 3\)"),
        (np.zeros((3, 1)), r"observation of the shape \(3, 1\)"),
        (3.0, r"shape \(\)"),
        ("left", "observation of the shape"),
        ({"position": np.zeros(3)}, "a dictionary with position' lacks observation"),
        (np.array([0.0, np.nan, 0.0]), "must be finite"),
        (np.array([0.0, 1e300, 0.0]), "must be finite"),
    ],
)
def test_observations_that_do_not_fit(observation: Any, words: str, runs: Runs) -> None:
    policy = load_policy(runs["dime"])
    with pytest.raises(ArgumentError, match=words):
        policy.act(observation)


def test_noise_that_does_not_fit(runs: Runs) -> None:
    policy = load_policy(runs["dime"])
    with pytest.raises(ArgumentError, match=r"\(2, 1\)' must have the shape \(3, 1\)"):
        policy.act(OBSERVATIONS[0], False, noise=np.zeros((2, 1), np.float32))
    with pytest.raises(ArgumentError, match="give deterministic=False"):
        policy.act(OBSERVATIONS[0], noise=np.zeros((3, 1), np.float32))


def test_dictionaries(
    robot: str,
    make_module: Callable[..., RLModule],
    write_run: Callable[[RLModule, Path], Path],
    tmp_path: Path,
) -> None:
    module = make_module("diffppo", env=robot)
    policy = load_policy(write_run(module, tmp_path / "run"))
    assert [e.name for e in policy.entries] == ["body.speed", "gear", "keys", "lights", "target"]
    own = gym.make(robot)
    space = own.observation_space
    space.seed(0)
    samples: list[Any] = [space.sample() for _ in range(3)]
    # What the environment makes of the same observations.
    env = make_env(robot, num_envs=3)
    for copy, sample in zip(env.base_env.envs, samples, strict=True):
        copy.unwrapped.observation = sample
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        expected = module.actor(env.reset())["action"].numpy()
    found = np.stack([policy.act(sample) for sample in samples])
    assert found.shape == (3, 1, 2)
    assert found.dtype == np.float64
    assert found[0] in own.action_space
    np.testing.assert_allclose(found[:, 0], expected, atol=2e-6)

    flat = {
        "body.speed": np.stack([s["body"]["speed"] for s in samples]),
        **{k: np.stack([s[k] for s in samples]) for k in ("gear", "keys", "lights", "target")},
    }
    np.testing.assert_allclose(policy.act(flat), found, atol=2e-6)
    with pytest.raises(ArgumentError, match=r"lacks body\.speed.* body -> speed"):
        policy.act({k: v for k, v in flat.items() if k != "body.speed"})
    with pytest.raises(ArgumentError, match=r"gear \(2,\).* same batch shape"):
        policy.act({**flat, "gear": flat["gear"][:2]})
    with pytest.raises(ArgumentError, match=r"gear 0' is not in Discrete"):
        policy.act({**flat, "gear": np.zeros(3, int)})
    with pytest.raises(ArgumentError, match="ndarray of the shape"):
        policy.act(np.zeros(3))


def test_chosen_entries_of_a_dictionary(
    robot: str,
    make_module: Callable[..., RLModule],
    write_run: Callable[[RLModule, Path], Path],
    tmp_path: Path,
) -> None:
    module = make_module("sac", env=robot, observation_keys=("target", "body.speed"))
    policy = load_policy(write_run(module, tmp_path / "run"))
    assert [entry.name for entry in policy.entries] == ["target", "body.speed"]
    target, speed = np.arange(4.0).reshape(2, 2), np.array([1.0, 0.0, -1.0])
    rows = TensorDict(
        {
            ("observation", "target"): torch.tensor(target).reshape(4).float(),
            ("observation", "body", "speed"): torch.tensor(speed).float(),
        }
    )
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        expected = module.actor(rows)["action"].numpy()
    found = policy.act({"body": {"speed": speed}, "target": target})
    np.testing.assert_allclose(found[0], expected, atol=2e-6)


def test_an_actor_of_a_loop_of_ones_own() -> None:
    env = make_env("Pendulum-v1", num_envs=2, seed=0)
    actor = build_dime_networks(env, denoising_steps=3).actor
    policy = Policy.of(actor, env, training={"method": "mine"})
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        rows = env.reset()
        np.testing.assert_allclose(
            policy.act(rows["observation"].numpy()), actor(rows)["action"], atol=1e-6
        )
    assert "mine" in repr(policy)
    with pytest.raises(ArgumentError, match=r"actor='Linear' must come from a builder"):
        Policy.of(torch.nn.Linear(3, 1), env)
    # Transforms of one's own that change observations or actions.
    frames = CatFrames(2, -1, ["observation"])
    for transform in (frames, ActionScaling()):
        other = TransformedEnv(make_env("Pendulum-v1"), transform, auto_unwrap=False)
        with pytest.raises(ArgumentError, match="has transforms around it that change what is"):
            Policy.of(build_dime_networks(other).actor, other)
    with pytest.raises(ArgumentError, match=r"env='GymEnv' must be an environment of collectors"):
        Policy.of(actor, GymEnv("Pendulum-v1"))


def test_entries_in_the_order_of_the_actor(robot: str) -> None:
    env = make_env(robot)
    keys = [("observation", "target"), ("observation", "gear"), ("observation", "body", "speed")]
    actor = build_gaussian_sac_networks(env, observation_keys=keys).actor
    policy = Policy.of(actor, env)
    assert [entry.name for entry in policy.entries] == ["target", "gear", "body.speed"]
    rows = env.reset()
    with set_exploration_type(ExplorationType.DETERMINISTIC), torch.no_grad():
        expected = actor(rows.clone())["action"].numpy()
    values = {key[1:]: rows[key].numpy() for key in keys}
    given = {
        "target": values["target",].reshape(1, 2, 2),
        "gear": values["gear",].argmax(-1) + 1,
        "body": {"speed": values["body", "speed"]},
    }
    np.testing.assert_allclose(policy.act(given)[:, 0], expected, atol=2e-6)


def test_a_network_that_no_file_describes_leaves_checkpoints_without_a_policy(
    make_module: Callable[..., RLModule],
    write_run: Callable[[RLModule, Path], Path],
    tmp_path: Path,
) -> None:
    module = make_module("diffppo")
    env = make_env("Pendulum-v1")
    network = dataclasses.replace(NetworkConfig(), step_activation=torch.nn.GELU())
    actor = build_dime_networks(env, network=network).actor
    module.described_policy = described_policy(actor, env)
    with pytest.raises(ArgumentError, match=r"no file describes: .* has a network of your own"):
        load_policy(write_run(module, tmp_path / "run"))


@pytest.mark.gpu
@pytest.mark.parametrize("name", METHODS)
def test_on_a_gpu(name: str, runs: Runs) -> None:
    policy, other = load_policy(runs[name], device="cuda"), load_policy(runs[name])
    np.testing.assert_allclose(policy.act(OBSERVATIONS), other.act(OBSERVATIONS), atol=1e-4)
    noise = other.draw_noise((7,)).numpy()
    pair = [p.act(OBSERVATIONS, False, noise=noise) for p in (policy, other)]
    np.testing.assert_allclose(*pair, atol=1e-4)
    first = policy.seed(1).act(OBSERVATIONS, False)
    assert (policy.seed(1).act(OBSERVATIONS, False) == first).all()


def test_a_device_that_is_not_there(runs: Runs) -> None:
    with pytest.raises(ArgumentError, match="device='cuda:77' is no device of this machine"):
        load_policy(runs["sac"], device="cuda:77")


def test_what_a_checkpoint_says_of_its_training(runs: Runs) -> None:
    policy = load_policy(runs["diffppo"])
    known = {key: policy.training[key] for key in ("method", "env", "seed", "env_steps")}
    assert known == {"method": "diffppo", "env": "Pendulum-v1", "seed": 0, "env_steps": 0}
    assert policy.training["versions"]["torch"]


def test_sources_without_a_policy(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="is neither a file nor a folder"):
        load_policy(tmp_path / "absent")
    with pytest.raises(ArgumentError, match="holds no policy"):
        load_policy(tmp_path)
    (tmp_path / "text").write_text("no checkpoint")
    with pytest.raises(ArgumentError, match="is not readable"):
        load_policy(tmp_path / "text")
    write_plain(tmp_path / "other.ckpt", {"state_dict": {}})
    with pytest.raises(ArgumentError, match="is not a checkpoint of a diffpolicy run"):
        load_policy(tmp_path / "other.ckpt")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state, _: state.pop("policy"), "does not say how its policy is built.*--resume"),
        (lambda state, _: state["policy"]["actor"].update(kind="x"), "kind of its actor is 'x'"),
        (lambda state, _: state["policy"]["actor"]["network"].update(x=1), "does not know x of"),
        (lambda state, _: state["policy"]["action"].update(type="Graph"), "spaces of the type"),
        (lambda _, parameters: parameters.clear(), "parameters are not those of its actor"),
    ],
)
def test_checkpoints_of_other_versions(
    change: Callable[..., Any], words: str, runs: Runs, tmp_path: Path
) -> None:
    content = read_plain(runs["dime"] / "checkpoints" / "last.ckpt")
    change(content["diffpolicy"], content["state_dict"])
    write_plain(tmp_path / "other.ckpt", content)
    with pytest.raises(ArgumentError, match=words):
        load_policy(tmp_path / "other.ckpt")


def test_the_newest_checkpoint_of_a_run(runs: Runs, tmp_path: Path) -> None:
    content = read_plain(runs["sac"] / "checkpoints" / "last.ckpt")
    for frames in (40, 120):
        content["diffpolicy"]["frames"] = frames
        write_plain(tmp_path / f"frames_{frames:010d}.ckpt", content)
    assert load_policy(tmp_path).training["env_steps"] == 120
    assert load_policy(tmp_path / "frames_0000000040.ckpt").training["env_steps"] == 40


def test_a_trained_run_acts_as_in_its_evaluation(tmp_path: Path) -> None:
    config = small_config("diffppo", output=str(tmp_path / "run"))
    train(prepare(config))
    policy = load_policy(tmp_path / "run")
    (reported,) = (e for e in policy.training["evaluations"] if e["env_steps"] == 120)

    actor = TensorDictModule(
        lambda observation: torch.from_numpy(policy.act(observation.numpy())),
        in_keys=["observation"],
        out_keys=["action"],
    )
    env = make_env("Pendulum-v1", num_envs=2, max_episode_steps=20)
    returns, _ = evaluate(actor, env, 2, seed=EVALUATION_SEED)
    assert np.mean(returns) == pytest.approx(reported["return_mean"], abs=1e-3)


def test_nothing_needs_lightning_and_the_package_alone_not_even_torch(runs: Runs) -> None:
    code = (
        "import sys\n"
        "import diffpolicy\n"
        "assert 'load_policy' in dir(diffpolicy) and 'torch' not in sys.modules\n"
        "for name in ('lightning', 'pytorch_lightning', 'lightning_fabric'):\n"
        "    sys.modules[name] = None\n"
        "from diffpolicy import load_policy\n"
        "for run in sys.argv[1:]:\n"
        "    print(load_policy(run).act([1.0, 0.0, 0.5]))\n"
        "assert 'diffpolicy.trainers' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, *map(str, runs.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == len(METHODS)
    with pytest.raises(AttributeError, match="has no attribute 'load'"):
        sys.modules["diffpolicy"].load  # noqa: B018
