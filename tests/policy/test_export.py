"""Exported files do what the policy does; files that would not are never left."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from diffpolicy import ExportError, Policy, load_policy
from diffpolicy.errors import ArgumentError
from diffpolicy.policy import export
from diffpolicy.trainers import METHODS, RLModule

Runs = dict[str, Path]
OBSERVATIONS = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)


def run_onnx(path: Path, **inputs: NDArray[Any]) -> list[NDArray[Any]]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    outputs: list[NDArray[Any]] = session.run(None, inputs)
    return outputs


def run_torch(path: Path, *inputs: NDArray[Any]) -> list[NDArray[Any]]:
    with path.open("rb") as file:
        module = torch.export.load(file).module()
    out = module(*map(torch.from_numpy, inputs))
    return [o.numpy() for o in (out if isinstance(out, tuple) else (out,))]


def noise_for(policy: Policy, rows: int) -> NDArray[np.float32]:
    shape = (rows, *policy.function.noise_shape)
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def test_onnx_with_noise_as_an_input(runs: Runs, tmp_path: Path) -> None:
    policy = load_policy(runs["diffppo"])
    path = policy.export(tmp_path / "policy.onnx", denoising_steps=3)
    assert policy.denoising_steps == 2  # that of the file is another one
    policy.denoising_steps = 3
    for rows in (1, 6):
        observation, noise = OBSERVATIONS[:rows], noise_for(policy, rows)
        (action,) = run_onnx(path, observation=observation, noise=noise)
        expected = policy.act(observation, False, noise=noise)
        np.testing.assert_allclose(action, expected, atol=1e-5)
    model = onnx.load(path)
    assert [i.name for i in model.graph.input] == ["observation", "noise"]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    (entry,) = model.metadata_props
    told = json.loads(entry.value)
    assert (told["mode"], told["denoising_steps"], told["noise_shape"]) == ("sample", 3, [4, 1])
    assert told["action"]["low"] == [-2.0]
    assert [path.name for path in tmp_path.iterdir()] == ["policy.onnx"]


@pytest.mark.parametrize(("name", "mode"), [("dime", "flow"), ("gaussian_ppo", "mean")])
def test_torch_without_noise(name: str, mode: Any, runs: Runs, tmp_path: Path) -> None:
    policy = load_policy(runs[name])
    path = policy.export(tmp_path / "policy.pt2", format="torch", mode=mode)
    policy.deterministic_step = mode
    for rows in (1, 6):
        (action,) = run_torch(path, OBSERVATIONS[:rows])
        np.testing.assert_allclose(action, policy.act(OBSERVATIONS[:rows]), atol=1e-5)


def test_torch_draws_its_noise(runs: Runs, tmp_path: Path) -> None:
    policy = load_policy(runs["sac"])
    path = policy.export(tmp_path / "policy.pt2", format="torch", noise="drawn")
    action, noise = run_torch(path, OBSERVATIONS)
    expected = policy.act(OBSERVATIONS, False, noise=noise)
    np.testing.assert_allclose(action, expected, atol=1e-5)
    assert (run_torch(path, OBSERVATIONS)[0] != action).any()


def test_dictionaries_have_an_input_for_each_entry(
    robot: str,
    make_module: Callable[..., RLModule],
    write_run: Callable[[RLModule, Path], Path],
    tmp_path: Path,
) -> None:
    policy = load_policy(write_run(make_module("gaussian_wpo", env=robot), tmp_path / "run"))
    path = policy.export(tmp_path / "policy.pt2", format="torch", mode="mean")
    extra = {"diffpolicy.json": ""}
    with path.open("rb") as file:
        torch.export.load(file, extra_files=extra)
    told = json.loads(extra["diffpolicy.json"])
    names = ["body_speed", "gear", "keys", "lights", "target"]
    assert told["inputs"] == [f"observation_{name}" for name in names]
    assert [entry["shape"] for entry in told["observation"]] == [[3], [3], [5], [2], [4]]
    target, speed = np.ones((2, 4), np.float32), np.full((2, 3), 0.5, np.float32)
    gear, lights = np.eye(3, dtype=np.float32)[:2], np.zeros((2, 2), np.float32)
    keys = np.array([[1, 0, 1, 0, 0], [0, 1, 0, 0, 1]], np.float32)
    (action,) = run_torch(path, speed, gear, keys, lights, target)
    expected = policy.act(
        {
            "body.speed": speed,
            "gear": np.array([1, 2]),
            "keys": np.array([[0, 0], [1, 2]]),
            "lights": np.zeros((2, 2), int),
            "target": np.ones((2, 2, 2)),
        }
    )
    np.testing.assert_allclose(action, expected[:, 0], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torch"])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_and_mode(name: str, format: Any, runs: Runs, tmp_path: Path) -> None:
    policy = load_policy(runs[name])
    path = tmp_path / ("policy.onnx" if format == "onnx" else "policy.pt2")
    for mode in policy.function.modes:
        for noise in ("input", "drawn") if mode == "sample" else ("input",):
            policy.export(path, format=format, mode=mode, noise=noise)
            if mode == "sample" and noise == "input":
                drawn = [noise_for(policy, 6)]
                expected = policy.act(OBSERVATIONS, False, noise=drawn[0])
            elif mode == "sample":
                continue  # checked before the file takes its place
            else:
                policy.deterministic_step = mode
                drawn, expected = [], policy.act(OBSERVATIONS)
            if format == "torch":
                (action,) = run_torch(path, OBSERVATIONS, *drawn)
            else:
                given = dict(zip(("observation", "noise"), (OBSERVATIONS, *drawn), strict=False))
                (action,) = run_onnx(path, **given)
            np.testing.assert_allclose(action, expected, atol=1e-5)


@pytest.mark.slow
def test_onnx_draws_its_noise(runs: Runs, tmp_path: Path) -> None:
    policy = load_policy(runs["dime"])
    path = policy.export(tmp_path / "policy.onnx", noise="drawn")
    many = np.repeat(OBSERVATIONS, 2_000, 0)
    action, noise = run_onnx(path, observation=many)
    np.testing.assert_allclose(action, policy.act(many, False, noise=noise), atol=1e-5)
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert np.abs(np.corrcoef(noise.reshape(len(noise), -1).T) - np.eye(3)).max() < 0.05


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda action: action + 1e-3, r"differs from the policy by 1.0e-03 on a batch of 1"),
        (lambda action: action * np.nan, "differs from the policy by nan"),
    ],
)
def test_a_file_that_does_something_else_is_not_left(
    fault: Callable[..., Any],
    words: str,
    runs: Runs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write(path: Path, *_: Any) -> Any:
        path.write_text("a file")
        policy = load_policy(runs["sac"])
        return lambda observation: (fault(policy.act(observation)),)

    monkeypatch.setattr(export, "_write_torch", write)
    policy, path = load_policy(runs["sac"]), tmp_path / "policy.pt2"
    with pytest.raises(ExportError, match=words):
        policy.export(path, format="torch", mode="mean")
    assert list(tmp_path.iterdir()) == []
    # An earlier file stays as it was.
    path.write_text("earlier")
    with pytest.raises(ExportError):
        policy.export(path, format="torch", mode="mean")
    assert path.read_text() == "earlier"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "policy.pt2"}, r"must end in \.onnx for onnx"),
        ({"path": "absent/policy.onnx"}, "is in no folder"),
        ({"format": "tflite"}, "format='tflite' must be one of onnx, torch"),
        ({"mode": "mode"}, "must be one of mean, flow, published, sample"),
        ({"noise": "none"}, "must be one of input, drawn"),
        ({"denoising_steps": 0}, "denoising_steps=0 must be a whole number"),
    ],
)
def test_arguments_that_do_not_work(
    options: dict[str, Any], words: str, runs: Runs, tmp_path: Path
) -> None:
    path = tmp_path / options.pop("path", "policy.onnx")
    with pytest.raises(ArgumentError, match=words):
        load_policy(runs["dime"]).export(path, **options)
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_packages(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ArgumentError, match=r"pip install 'diffpolicy\[export\]'"):
        load_policy(runs["dime"]).export(tmp_path / "policy.onnx")
