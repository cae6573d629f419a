"""Errors that every layer may raise, and their words; the standard library only."""

import difflib
import importlib.util
from collections.abc import Iterable
from pathlib import Path


class ArgumentError(ValueError):
    """An argument has a value that does not work.

    It is raised where the rule is known, by the name that the argument has there. The command line
    shows the flag instead.

    Args:
        argument: name of the argument.
        value: what was given.
        problem: what is wrong with it and what would work; it continues the sentence that begins
            with the argument and its value.

    Attributes:
        argument: name of the argument.
        value: what was given.
        problem: what is wrong with it and what would work.

    Examples:
        >>> print(ArgumentError("num_envs", 0, "must be at least 1."))
        num_envs=0 must be at least 1.
    """

    def __init__(self, argument: str, value: object, problem: str) -> None:
        # The arguments themselves, so that the error can be pickled: workers raise it, too.
        super().__init__(argument, value, problem)
        self.argument = argument
        self.value = value
        self.problem = problem

    def __str__(self) -> str:
        """The sentence, in the words of Python."""
        return f"{self.argument}={self.value!r} {self.problem}"


def did_you_mean(word: str, known: Iterable[str], otherwise: str) -> str:
    """The end of a sentence about a word that is not known.

    Args:
        word: what was given.
        known: what could have been meant.
        otherwise: what to say where nothing is like it.

    Examples:
        >>> did_you_mean("tarin", ["train", "eval"], "--help lists all commands.")
        'did you mean train?'
    """
    names = list(known)
    close = [name for name in names if name.startswith(word)]
    close += difflib.get_close_matches(word, names, 1)
    return f"did you mean {close[0]}?" if close else otherwise


# What has to be installed for a module, by its name on the registry.
_INSTALLED_BY = {
    **dict.fromkeys(
        ("lightning", "jsonargparse", "tensorboard", "tqdm", "matplotlib"), "diffpolicy[lightning]"
    ),
    **dict.fromkeys(("imageio", "imageio_ffmpeg", "pygame"), "diffpolicy[video]"),
    **dict.fromkeys(("huggingface_hub", "safetensors"), "diffpolicy[hub]"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "diffpolicy[export]"),
    **dict.fromkeys(("dm_control", "shimmy"), "diffpolicy[dmc]"),
    "optuna": "diffpolicy[sweep]",
    "ray": "diffpolicy[ray]",
    "wandb": "diffpolicy[wandb]",
    "Box2D": "gymnasium[box2d]",
}


def how_to_install(error: ImportError) -> str | None:
    """One sentence on a module that is not there; None where we do not know what it belongs to.

    Examples:
        >>> how_to_install(ModuleNotFoundError(name="optuna"))
        "optuna is not installed; pip install 'diffpolicy[sweep]'."
    """
    module = (error.name or "").partition(".")[0]
    if module not in _INSTALLED_BY:
        return None
    return f"{module} is not installed; pip install '{_INSTALLED_BY[module]}'."


def check_not_hidden() -> None:
    """Make sure that ``objectives`` and ``collectors`` are those that came with this library.

    Raises:
        ImportError: a module of the same name, for example in the current folder, hides one.
    """
    ours = Path(__file__).resolve().parents[1]
    for name in ("objectives", "collectors"):
        spec = importlib.util.find_spec(name)
        origin = None if spec is None else spec.origin
        if origin is not None and Path(origin).resolve() == ours / name / "__init__.py":
            continue
        # A folder without __init__.py has no origin.
        folders = [] if spec is None else list(spec.submodule_search_locations or ())
        raise ImportError(
            f"{origin or ', '.join(folders) or 'nothing'} is where Python finds the package {name} "
            "that diffpolicy needs; rename it, or start Python in another folder."
        )
