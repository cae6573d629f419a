"""The policies that come with the package are as good as their cards say."""

import importlib.util
import shlex
from types import ModuleType

import pytest
import torch
from project import ROOT
from tensordict.nn import TensorDictModule

from collectors import EVALUATION_SEED, evaluate, make_env
from diffpolicy import load_policy, pretrained
from diffpolicy.trainers import METHODS
from diffpolicy.trainers.run.parser import Parser


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "examples" / "train_pretrained.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_methods_have_a_command_and_a_policy(script: ModuleType) -> None:
    shipped = {load_policy(f"pretrained:{name}").training["method"] for name in pretrained()}
    assert set(script.COMMANDS) == shipped == set(METHODS) - set(script.WITHOUT)
    for method, line in script.COMMANDS.items():
        assert line.startswith(f"diffpolicy train {method} --env ")


@pytest.mark.parametrize("name", pretrained())
def test_a_policy_was_made_by_its_command(name: str, script: ModuleType) -> None:
    training = load_policy(f"pretrained:{name}").training
    flags = shlex.split(script.COMMANDS[training["method"]])[3:]
    given = Parser(METHODS[training["method"]].config).parse_options(flags)
    found = {key: training["config"].get(key) for key in given}
    assert found == {key: list(v) if isinstance(v, tuple) else v for key, v in given.items()}


@pytest.mark.parametrize("name", pretrained())
def test_a_policy_returns_what_its_card_says(name: str, script: ModuleType) -> None:
    policy = load_policy(f"pretrained:{name}")
    env, last = policy.training["env"], policy.training["evaluations"][-1]
    act = TensorDictModule(
        lambda observation: torch.from_numpy(policy.act(observation.numpy())),
        in_keys=["observation"],
        out_keys=["action"],
    )
    episodes = last["episodes"]
    returns, _ = evaluate(act, make_env(env, num_envs=episodes), episodes, seed=EVALUATION_SEED)
    mean = sum(returns) / episodes
    # Rounding differs between processors.
    assert mean == pytest.approx(last["return_mean"], rel=0.02)
    assert mean >= script.SOLVED[env]


@pytest.mark.parametrize("name", pretrained())
def test_a_policy_is_small(name: str) -> None:
    folder = ROOT / "diffpolicy" / "pretrained" / name
    assert sum(path.stat().st_size for path in folder.iterdir()) < 300_000
