"""Where policies come from: runs, checkpoints, folders, the hub, this package."""

import difflib
import re
from importlib import resources
from pathlib import Path

import torch

from diffpolicy.errors import ArgumentError
from diffpolicy.files import CHECKPOINT_FOLDER
from diffpolicy.policy.checkpoints import newest_checkpoint, policy_from_checkpoint
from diffpolicy.policy.policy import Policy
from diffpolicy.policy.sharing import is_pretrained, pull_from_hub, read_pretrained

_SHIPPED = "pretrained:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def load_policy(
    source: str | Path,
    *,
    denoising_steps: int | None = None,
    device: torch.device | str = "cpu",
) -> Policy:
    """A trained policy that acts, without its trainer and without Lightning.

    Args:
        source: one of

            * the folder of a run, for its newest checkpoint, or a checkpoint file;
            * a folder that :meth:`Policy.save_pretrained` has written;
            * ``"pretrained:NAME"``, a policy that comes with this package, see :func:`pretrained`;
            * ``"user/name"``, a repository of the Hugging Face hub (extra ``hub``), where there is
              no such path.
        denoising_steps: act with another number of denoising steps than in training.
        device: where it acts.

    Raises:
        ArgumentError: if there is no policy at ``source``, it cannot act with this number of
            steps, or there is no such device.

    Examples:
        >>> policy = load_policy("pretrained:diffppo-InvertedPendulum-v5")
        >>> policy.act([0.0, 0.1, 0.0, 0.0]).shape
        (1,)
    """
    _check_device(device)
    policy = _load(source, device)
    if denoising_steps is not None:
        policy.denoising_steps = denoising_steps
    return policy


def _check_device(device: torch.device | str) -> None:
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        problem = f"is no device of this machine: {str(error).splitlines()[0]}"
        raise ArgumentError("device", str(device), problem) from error


def pretrained() -> list[str]:
    """Names of the policies that come with this package.

    Examples:
        >>> "diffppo-InvertedPendulum-v5" in pretrained()
        True
    """
    folder = _shipped()
    return sorted(path.name for path in folder.iterdir() if is_pretrained(path))


def _shipped() -> Path:
    return Path(str(resources.files("diffpolicy") / "pretrained"))


def _load(source: str | Path, device: torch.device | str) -> Policy:
    text, path = str(source), Path(source)
    if text.startswith(_SHIPPED):
        return _load_shipped(text, device)
    if path.is_file():
        return policy_from_checkpoint(path, device)
    if path.is_dir():
        return _load_folder(path, device)
    # A path with a typing error is no business of the hub.
    if isinstance(source, str) and _HUB_ID.fullmatch(text) and not path.parent.exists():
        return read_pretrained(pull_from_hub(text), device)
    raise ArgumentError(
        "source",
        text,
        "is neither a file nor a folder; give a run, a checkpoint, a folder of save_pretrained, "
        f"user/name on the hub, or one of {', '.join(_SHIPPED + name for name in pretrained())}.",
    )


def _load_shipped(source: str, device: torch.device | str) -> Policy:
    name, known = source.removeprefix(_SHIPPED), pretrained()
    if name not in known:
        lower = {own.lower(): own for own in known}
        close = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.4)
        hint = f"did you mean {_SHIPPED}{lower[close[0]]}? " if close else ""
        problem = f"does not come with this package; {hint}There are: {', '.join(known)}."
        raise ArgumentError("source", source, problem)
    return read_pretrained(_shipped() / name, device)


def _load_folder(folder: Path, device: torch.device | str) -> Policy:
    if is_pretrained(folder):
        return read_pretrained(folder, device)
    checkpoint = newest_checkpoint(folder / CHECKPOINT_FOLDER) or newest_checkpoint(folder)
    if checkpoint is None:
        problem = (
            f"holds no policy: a run has checkpoints in {CHECKPOINT_FOLDER}/, a shared policy "
            "config.json and model.safetensors."
        )
        raise ArgumentError("source", str(folder), problem)
    return policy_from_checkpoint(checkpoint, device)
