"""Policies as files that other programs run: ONNX and torch.export.

A file holds the policy as a function of tensors, with its number of denoising steps fixed and the
batch size open. It remembers nothing: where the policy reads histories and plans several actions,
the file takes whole histories and returns whole chunks. As by TorchRL's ``export_onnx_policy``,
inputs and outputs have the names of the policy's keys, joined by ``_`` where they are nested. Every
file is run and compared with the policy before it takes its place.
"""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffpolicy.errors import ArgumentError
from diffpolicy.files import write_atomically
from diffpolicy.policy.functions import ActionFunction, Mode
from diffpolicy.policy.interface import Interface
from diffpolicy.policy.spaces import plain_space

if TYPE_CHECKING:
    from diffpolicy.policy.policy import Policy

Format = Literal["onnx", "torch"]
Noise = Literal["input", "drawn"]
#: Largest difference to the policy, for actions in [-1, 1].
TOLERANCE = 1e-5
#: Where a file says what it is: a metadata entry of ONNX, an extra file of torch.export.
METADATA_KEY = "diffpolicy"
_SUFFIX = {"onnx": ".onnx", "torch": ".pt2"}
_BATCHES = (1, 2, 7)
Run = Callable[..., tuple[NDArray[np.float32], ...]]


class ExportError(RuntimeError):
    """An exported file does not do what the policy does; it has been removed."""


@dataclass(frozen=True)
class _Graph:
    """What is exported: a module, and the names of its inputs and outputs."""

    module: "_Exported"
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]

    def examples(self, batch: int, generator: np.random.Generator) -> tuple[NDArray[Any], ...]:
        """Inputs of a batch: observations, and noise where it is one of them."""
        entries = self.module.interface.entries
        inputs: list[NDArray[Any]] = []
        for entry in entries:
            if entry.dtype is np.uint8:
                inputs.append(generator.integers(0, 256, (batch, *entry.shape), np.uint8))
            else:
                inputs.append(generator.standard_normal((batch, *entry.shape), np.float32))
        if len(self.inputs) > len(entries):
            shape = (batch, *self.module.function.noise_shape)
            inputs.append(generator.standard_normal(shape, np.float32))
        return tuple(inputs)


class _Exported(nn.Module):
    """The function of a policy with its mode fixed."""

    def __init__(
        self, function: ActionFunction, mode: Mode, interface: Interface, *, draws: bool
    ) -> None:
        super().__init__()
        self.function = function
        self.mode: Mode = mode
        self.interface = interface
        self.draws = draws

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """The action; with noise of its own that noise as well, so that it can be checked."""
        count = len(self.interface.entries)
        observations, noise = inputs[:count], inputs[count] if len(inputs) > count else None
        if not self.draws:
            return self._action(observations, noise)
        shape = (inputs[0].shape[0], *self.function.noise_shape)
        drawn = torch.randn_like(torch.zeros(shape))
        return self._action(observations, drawn), drawn

    def _action(self, observations: Sequence[Tensor], noise: Tensor | None) -> Tensor:
        """The action ``[batch, A]``, or a chunk of them, ``[batch, chunk, A]``."""
        plan: Tensor = self.function(observations, noise, self.mode)
        chunk = self.interface.chunk
        return plan if chunk == 1 else plan.unflatten(-1, (chunk, -1))


def export_policy(
    policy: "Policy",
    path: str | Path,
    *,
    format: Format = "onnx",
    mode: Mode = "sample",
    denoising_steps: int | None = None,
    noise: Noise = "input",
) -> Path:
    """Write a policy to a file and check it; see :meth:`diffpolicy.Policy.export`."""
    path = Path(path)
    _check(path, format, noise)
    policy.function.check_mode("mode", mode)
    graph = _graph(policy, mode, denoising_steps, noise)
    write = {"onnx": _write_onnx, "torch": _write_torch}[format]
    metadata = json.dumps(_metadata(policy, graph, mode))

    def write_and_check(temporary: Path) -> None:
        try:
            with _quiet(), torch.no_grad():
                run = write(temporary, graph, metadata)
        except OSError:
            raise
        except Exception as error:  # of exporters, about networks that they cannot follow
            words = " ".join(f"{type(error).__name__}: {error}".split())
            raise ExportError(f"{path} cannot be written: {words}") from error
        _compare(path, graph, run)

    write_atomically(path, write_and_check)
    return path


def _check(path: Path, format: str, noise: str) -> None:
    """Refuse what cannot work before any work is done."""
    if format not in get_args(Format):
        raise ArgumentError("format", format, f"must be one of {', '.join(get_args(Format))}.")
    if noise not in get_args(Noise):
        raise ArgumentError("noise", noise, f"must be one of {', '.join(get_args(Noise))}.")
    if path.suffix != _SUFFIX[format]:
        raise ArgumentError("path", str(path), f"must end in {_SUFFIX[format]} for {format}.")
    if not path.parent.is_dir():
        raise ArgumentError("path", str(path), f"is in no folder: make {path.parent} first.")
    if format == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ModuleNotFoundError as error:
            problem = f"needs {error.name}: pip install 'diffpolicy[export]'."
            raise ArgumentError("format", format, problem) from error


def _graph(policy: "Policy", mode: Mode, denoising_steps: int | None, noise: Noise) -> _Graph:
    own = type(policy)(policy.spec, policy.state_dict())
    own.denoising_steps = policy.denoising_steps if denoising_steps is None else denoising_steps
    keys = [entry.key for entry in own.interface.entries]
    names = [key if isinstance(key, str) else "_".join(key) for key in keys]
    samples, draws = mode == "sample", mode == "sample" and noise == "drawn"
    if samples and not draws:
        names.append("noise")
    module = _Exported(own.function, mode, own.interface, draws=draws).eval()
    return _Graph(module, tuple(names), ("action", "noise") if draws else ("action",))


def _metadata(policy: "Policy", graph: _Graph, mode: Mode) -> dict[str, Any]:
    """What a program that runs the file may want to know."""
    function = graph.module.function
    return {
        **{key: policy.training.get(key) for key in ("method", "env", "seed", "env_steps")},
        "mode": mode,
        "denoising_steps": function.denoising_steps,
        "noise_shape": list(function.noise_shape) if mode == "sample" else None,
        "inputs": list(graph.inputs),
        "frames": policy.interface.frames,
        "chunk": policy.interface.chunk,
        "observation": [
            {
                "name": entry.name,
                "shape": list(entry.shape),
                "type": np.dtype(entry.dtype).name,
                "space": plain_space(entry.space),
            }
            for entry in policy.interface.entries
        ],
        "action": plain_space(policy.actions.space, bounds=True),
    }


def _write_onnx(path: Path, graph: _Graph, metadata: str) -> Run:
    import onnx

    program = torch.onnx.export(
        graph.module,
        _tensors(graph),
        input_names=list(graph.inputs),
        output_names=list(graph.outputs),
        dynamic_shapes=_dynamic(graph),
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, metadata
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())
    return partial(_run_onnx, _session(path), graph.inputs)


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _run_onnx(
    session: Any, names: Sequence[str], *inputs: NDArray[Any]
) -> tuple[NDArray[np.float32], ...]:
    return tuple(session.run(None, dict(zip(names, inputs, strict=True))))


def _write_torch(path: Path, graph: _Graph, metadata: str) -> Run:
    program = torch.export.export(
        graph.module, _tensors(graph), dynamic_shapes=_dynamic(graph), strict=False
    )
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={f"{METADATA_KEY}.json": metadata})
    path.write_bytes(buffer.getvalue())
    loaded = torch.export.load(io.BytesIO(path.read_bytes())).module()

    def run(*inputs: NDArray[Any]) -> tuple[NDArray[np.float32], ...]:
        out = loaded(*map(torch.from_numpy, inputs))
        return tuple(o.numpy() for o in (out if isinstance(out, tuple) else (out,)))

    return run


def _tensors(graph: _Graph) -> tuple[Tensor, ...]:
    return tuple(map(torch.from_numpy, graph.examples(3, np.random.default_rng(0))))


def _dynamic(graph: _Graph) -> dict[str, Any]:
    batch = torch.export.Dim("batch")
    return {"inputs": tuple({0: batch} for _ in graph.inputs)}


def _compare(path: Path, graph: _Graph, run: Run) -> None:
    """Run the file on batches of several sizes and compare it with the policy.

    Raises:
        ExportError: if they differ, saying by how much.
    """
    generator = np.random.default_rng(1)
    for batch in _BATCHES:
        inputs = graph.examples(batch, generator)
        try:
            action, *drawn = run(*inputs)
        except Exception as error:
            raise ExportError(f"{path} does not run on a batch of {batch}: {error}") from error
        checked = _Exported(
            graph.module.function, graph.module.mode, graph.module.interface, draws=False
        )
        with torch.no_grad():
            expected = checked(*map(torch.from_numpy, (*inputs, *drawn)))
        assert isinstance(expected, Tensor)
        scale = max(1.0, float(expected.abs().max()))
        difference = float(np.abs(action - expected.numpy()).max())
        if not difference <= TOLERANCE * scale:
            raise ExportError(
                f"{path} differs from the policy by {difference:.1e} on a batch of {batch}, more "
                f"than {TOLERANCE * scale:.0e}; it has been removed."
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the notes of torch's exporters, which are about their own parts, to themselves."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
