"""Policies as folders in the convention of Hugging Face, and on its hub.

A folder holds ``model.safetensors`` (the parameters), ``config.json`` (everything else) and
``README.md`` (the model card).
"""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save

from diffpolicy.errors import ArgumentError
from diffpolicy.files import PLOT_FILE, write_atomically, write_json
from diffpolicy.policy.card import model_card
from diffpolicy.policy.spec import PolicySpec

if TYPE_CHECKING:
    from diffpolicy.policy.policy import Policy

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
CARD_FILE = "README.md"
_FORMAT = 1
# Options of a run that say something about the machine it ran on, and nothing about the policy.
_LOCAL_OPTIONS = ("output", "resume")


def save_pretrained(policy: "Policy", folder: str | Path, license: str | None = None) -> Path:
    """Write a policy into a folder; see :meth:`diffpolicy.Policy.save_pretrained`."""
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ArgumentError("folder", str(folder), "is a file; give a folder.")
    if (folder / CONFIG_FILE).exists() and not is_pretrained(folder):
        raise ArgumentError("folder", str(folder), "holds a run; give another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    training = dict(policy.training)
    if "config" in training:
        options = training["config"].items()
        training["config"] = {k: v for k, v in options if k not in _LOCAL_OPTIONS}
    content = {
        "library_name": "diffpolicy",
        "format": _FORMAT,
        "policy": policy.spec.plain(),
        "training": training,
    }
    weights = save({k: v.cpu().contiguous() for k, v in policy.state_dict().items()})
    plot = None if policy.run_folder is None else policy.run_folder / PLOT_FILE
    if plot is not None and plot.exists() and plot.parent != folder:
        shutil.copyfile(plot, folder / PLOT_FILE)
    card = model_card(policy, training, license, has_plot=(folder / PLOT_FILE).exists())
    write_atomically(folder / WEIGHTS_FILE, lambda path: path.write_bytes(weights))
    write_atomically(folder / CARD_FILE, lambda path: path.write_text(card, encoding="utf-8"))
    write_json(folder / CONFIG_FILE, content)
    return folder


def is_pretrained(folder: Path) -> bool:
    """Whether a folder is one of :func:`save_pretrained`."""
    return (folder / WEIGHTS_FILE).exists() and (folder / CONFIG_FILE).exists()


def read_pretrained(folder: Path, device: torch.device | str) -> "Policy":
    """The policy in a folder of :func:`save_pretrained`.

    Raises:
        ArgumentError: if it is damaged, or of another version or library.
    """
    from diffpolicy.policy.policy import Policy

    try:
        content = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        if content.get("library_name") != "diffpolicy":
            raise ValueError("its config.json is not one of diffpolicy")
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}, and this version reads {_FORMAT}")
        spec = PolicySpec.from_plain(content["policy"])
        state = load_file(folder / WEIGHTS_FILE)
        return Policy(spec, state, training=content["training"], device=device)
    except ArgumentError:  # says what is missing here
        raise
    except Exception as error:  # damaged files fail in many ways
        problem = f"is not a policy that this version reads: {error}."
        raise ArgumentError("source", str(folder), problem) from error


def push_to_hub(
    policy: "Policy",
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    license: str | None = None,
) -> str:
    """Upload a policy; see :meth:`diffpolicy.Policy.push_to_hub`."""
    hub = _hub("repo_id", repo_id)
    api = hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(policy, folder, license)
        with _hub_errors(hub, "repo_id", repo_id):
            api.create_repo(repo_id, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message="A policy of diffpolicy"
            )
    return str(commit.commit_url)


def pull_from_hub(repo_id: str, revision: str | None = None, token: str | None = None) -> Path:
    """Download a policy, or take it from the cache, and return its folder.

    Raises:
        ArgumentError: if the hub or the repository is out of reach, or huggingface_hub missing.
    """
    hub = _hub("source", repo_id)
    with _hub_errors(hub, "source", repo_id):
        files = [WEIGHTS_FILE, CONFIG_FILE, CARD_FILE, PLOT_FILE]
        folder = Path(
            hub.snapshot_download(repo_id, revision=revision, allow_patterns=files, token=token)
        )
    if not is_pretrained(folder):
        problem = f"is a repository without {WEIGHTS_FILE} and {CONFIG_FILE}: not a policy."
        raise ArgumentError("source", repo_id, problem)
    return folder


def _hub(argument: str, value: str) -> Any:
    try:
        return import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        problem = "needs huggingface_hub: pip install 'diffpolicy[hub]'."
        raise ArgumentError(argument, value, problem) from error


@contextmanager
def _hub_errors(hub: Any, argument: str, repo_id: str) -> Iterator[None]:
    """Say in one line what the hub, or the way to it, has against a request."""
    try:
        yield
    except hub.errors.RepositoryNotFoundError as error:
        problem = "is not on the hub, or private; check its name, or log in: hf auth login."
        raise ArgumentError(argument, repo_id, problem) from error
    except hub.errors.HFValidationError as error:
        problem = "is no name of a repository; it looks like user/name."
        raise ArgumentError(argument, repo_id, problem) from error
    except Exception as error:  # its client for HTTP has errors of its own
        words = " ".join(f"{type(error).__name__}: {error}".split())
        problem = f"cannot be reached on the hub: {words}"
        raise ArgumentError(argument, repo_id, problem) from error
