"""Demonstrations: data sets of transitions that somebody else has made.

They have the layout of TorchRL's offline data sets: rows ``[R]``, one after the other in each
episode, with the observation and the ``action``, and usually ``next`` with the reward and the ends
of episodes.
"""

import importlib.util
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor

from diffpolicy.errors import ArgumentError
from diffpolicy.files import read_plain


class Loader(NamedTuple):
    """A loader of TorchRL for a kind of data set.

    Attributes:
        load: all rows of the data set of a name.
        needs: packages that TorchRL wants for it.
        install: what pip is told.
    """

    load: Callable[[str], TensorDictBase]
    needs: tuple[str, ...]
    install: str


def _minari(name: str) -> TensorDictBase:
    from torchrl.data.datasets import MinariExperienceReplay

    return MinariExperienceReplay(name, batch_size=1)[:]


def _lerobot(name: str) -> TensorDictBase:
    from torchrl.data.datasets import LeRobotExperienceReplay

    return LeRobotExperienceReplay(name, batch_size=1, decode_video=False)[:]


#: By what is written before the name: ``minari:mujoco/hopper/medium-v0``.
LOADERS: dict[str, Loader] = {
    "minari": Loader(_minari, ("minari",), "'minari[hf,hdf5]'"),
    "lerobot": Loader(_lerobot, ("huggingface_hub", "datasets"), "huggingface_hub datasets"),
}


def load_demonstrations(source: str | Path) -> TensorDictBase:
    """A data set of transitions ``[R]``.

    Args:
        source: one of

            * a folder with a memory-mapped TensorDict, as ``diffpolicy demonstrate`` and
              ``TensorDict.memmap`` write it;
            * a file ``.pt`` of ``torch.save`` with a dictionary of tensors, or ``.npz`` with arrays
              (``observation``, ``action``; dots lead into dictionaries: ``next.reward``);
            * ``minari:NAME`` or ``lerobot:NAME``, through TorchRL's loaders, which download.

    Raises:
        ArgumentError: naming ``data``, if there is none, it cannot be read, it lacks an action, or
            a package is missing.
    """
    kind, _, name = str(source).partition(":")
    data = _loaded(kind, name) if kind in LOADERS and name else _read(Path(source))
    if data.get("action", None) is None:
        raise _wrong(source, f"has no action; it holds {shown_keys(data)}.")
    if data.batch_dims != 1 or not len(data):
        problem = f"must have one batch dimension with rows, got {list(data.batch_size)}."
        raise _wrong(source, problem)
    return data


def episode_returns(data: TensorDictBase) -> list[float]:
    """Returns of the episodes of a data set that have ended; empty without rewards or ends.

    Args:
        data: transitions ``[R]``.
    """
    reward, done = data.get(("next", "reward"), None), data.get(("next", "done"), None)
    if reward is None or done is None:
        return []
    ends = done.reshape(-1).nonzero().squeeze(-1)
    total = reward.reshape(-1).double().cumsum(0)[ends]
    return torch.diff(total, prepend=total.new_zeros(1)).tolist()


def finite_entry(data: TensorDictBase, key: NestedKey, source: str | Path) -> Tensor:
    """An entry of a data set.

    Raises:
        ArgumentError: naming ``data``, if it is not there, or holds NaN or infinity.
    """
    value = data.get(key, None)
    if value is None:
        problem = f"lacks {key!r}, which the environment has; it holds {shown_keys(data)}."
        raise _wrong(source, problem)
    if not bool(value.isfinite().all()):
        raise _wrong(source, f"has NaN or infinity in {key!r}.")
    return value


def bounded_actions(
    action: Tensor, low: Tensor, high: Tensor, source: str | Path, hint: str | None
) -> Tensor:
    """Actions ``[R, A]``, cut off at the bounds ``[A]``.

    Args:
        action: of a data set.
        low: smallest actions.
        high: largest actions.
        source: the data set.
        hint: what would help where actions are farther outside than they would be by rounding;
            None allows that.

    Raises:
        ArgumentError: naming ``data``, for another number of dimensions, or actions outside.
    """
    if action.shape[1:] != low.shape:
        problem = f"has actions {list(action.shape[1:])}, and the environment {list(low.shape)}."
        raise _wrong(source, problem)
    clipped = action.clamp(low, high)
    outside = float(((action - clipped).abs() > 1e-4 * (high - low)).any(-1).float().mean())
    if outside and hint is not None:
        problem = (
            f"has actions from {float(action.min()):g} to {float(action.max()):g}, {outside:.1%} "
            f"of them outside of {low.tolist()} and {high.tolist()}, the bounds of the "
            f"environment; {hint}."
        )
        raise _wrong(source, problem)
    return clipped


def shown_keys(data: TensorDictBase) -> str:
    """The entries of a data set, for messages."""
    keys = data.keys(True, True)
    return ", ".join(sorted(k if isinstance(k, str) else ".".join(k) for k in keys)) or "nothing"


def _wrong(source: str | Path, problem: str) -> ArgumentError:
    return ArgumentError("data", str(source), problem)


def _loaded(kind: str, name: str) -> TensorDictBase:
    """A data set of one of TorchRL's loaders."""
    loader, source = LOADERS[kind], f"{kind}:{name}"
    missing = [package for package in loader.needs if importlib.util.find_spec(package) is None]
    if missing:
        problem = f"needs {' and '.join(missing)}: pip install {loader.install}."
        raise _wrong(source, problem)
    try:
        return loader.load(name)
    except Exception as error:  # the network, the hub and files fail in many ways
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise _wrong(source, f"cannot be loaded: {words}") from error


def _read(path: Path) -> TensorDictBase:
    """A data set of our own, by what its path is."""
    if path.is_dir():
        return _read_folder(path)
    if not path.exists():
        kinds = " or ".join(f"{kind}:NAME" for kind in LOADERS)
        raise _wrong(path, f"does not exist; give a folder, a .pt or .npz file, or {kinds}.")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                content: Any = {name: torch.from_numpy(file[name]) for name in file.files}
        else:
            content = read_plain(path)
        return _tensordict(content)
    except (OSError, RuntimeError, ValueError, zipfile.BadZipFile) as error:
        words = str(error).rstrip(".")
        hint = "a .pt file holds a dictionary of tensors (data.to_dict()), an .npz file arrays"
        raise _wrong(path, f"is not readable ({words}); {hint}.") from error


def _read_folder(path: Path) -> TensorDictBase:
    if not (path / "meta.json").exists():
        raise _wrong(path, "is a folder without a data set: there is no meta.json in it.")
    try:
        data: TensorDictBase = TensorDict.load_memmap(path)
    except Exception as error:  # damaged files fail in many ways
        words = " ".join(f"{type(error).__name__}: {error}".split())
        raise _wrong(path, f"is damaged: {words}.") from error
    return data


def _tensordict(content: Any) -> TensorDictBase:
    """Rows of a dictionary of tensors, nested or with dots in its names."""
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}")
    action = content.get("action")
    if not isinstance(action, torch.Tensor):
        raise ValueError(f"there is no action in it, but {', '.join(map(str, content))}")
    data = TensorDict(batch_size=action.shape[:1])
    for name, value in content.items():
        keys = tuple(str(name).split("."))
        data.set(keys if len(keys) > 1 else keys[0], value)
    return data
