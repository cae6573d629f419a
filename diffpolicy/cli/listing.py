"""``diffpolicy list``: what can be trained, on what, and what comes with the package.

Methods and tasks are read from the source files in which they are declared, because importing them
imports torch, which takes seconds.
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from diffpolicy.cli.arguments import Arguments

_ROOT = Path(__file__).resolve().parents[2]
_METHODS = _ROOT / "diffpolicy" / "trainers" / "methods"
_TASKS = _ROOT / "collectors" / "environments" / "tasks" / "multimodal.py"
_PRETRAINED = _ROOT / "diffpolicy" / "pretrained"
# Of Gymnasium's ids these have bounded continuous actions and vectors as observations.
_CLASSIC = ("Pendulum-v1", "MountainCarContinuous-v0")
_BOX2D = ("BipedalWalker-v3", "BipedalWalkerHardcore-v3", "LunarLanderContinuous-v3")


class ListedMethod(NamedTuple):
    """A method.

    Attributes:
        name: what ``diffpolicy train`` calls it.
        summary: what it is.
        presets: values of ``--preset``; empty if it has no such flag.
    """

    name: str
    summary: str
    presets: tuple[str, ...]


def main(words: list[str]) -> int:
    """Print the lists; returns the exit code."""
    parser = Arguments("list", "Print all methods, tasks, presets and policies, or one list.")
    kinds = {
        "methods": _method_lines,
        "tasks": _task_lines,
        "presets": _preset_lines,
        "policies": _policy_lines,
    }
    parser.add_argument("kind", nargs="?", choices=list(kinds), help="what to list (default: all)")
    chosen = parser.parse_args(words).kind
    for kind in [chosen] if chosen else kinds:
        title = [] if chosen else [f"{kind}:"]
        lines = kinds[kind]()
        sys.stdout.write("\n".join([*title, *(f"  {line}" for line in lines), ""]))
    return 0


def _method_lines() -> list[str]:
    found = methods()
    width = max(len(method.name) for method in found) + 2
    return [f"{method.name:{width}}{method.summary}" for method in found]


def _preset_lines() -> list[str]:
    return [
        f"diffpolicy train {method.name} --preset {preset}"
        for method in methods()
        for preset in method.presets
    ]


def _policy_lines() -> list[str]:
    names = sorted(path.parent.name for path in _PRETRAINED.glob("*/config.json"))
    return [f"diffpolicy play pretrained:{name}" for name in names]


def _task_lines() -> list[str]:
    import gymnasium as gym

    newest: dict[str, int] = {}
    for spec in gym.registry.values():
        if str(spec.entry_point).startswith("gymnasium.envs.mujoco"):
            newest[spec.name] = max(newest.get(spec.name, 0), spec.version or 0)
    return [
        f"Gymnasium:          {', '.join(_CLASSIC)}",
        f"MuJoCo:             {', '.join(f'{name}-v{n}' for name, n in sorted(newest.items()))}",
        f"Box2D:              {', '.join(_BOX2D)} (pip install 'gymnasium[box2d]')",
        f"several best ways:  {', '.join(own_tasks())}",
        "DeepMind Control:   dmc:cheetah-run, dmc:walker-walk, dmc:humanoid-run and the others of "
        "the suite",
        "                    (pip install 'diffpolicy[dmc]')",
        "your own:           module:Id-v0; the module registers the id with Gymnasium",
    ]


def own_tasks() -> list[str]:
    """Ids of the tasks of this library."""
    for node in ast.parse(_TASKS.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "_TASKS":
            return list(ast.literal_eval(node.value))  # type: ignore[arg-type]
    raise LookupError(f"{_TASKS} declares no _TASKS")


def methods() -> list[ListedMethod]:
    """All registered methods, in the order of their files."""
    found = (_method(path) for path in sorted(_METHODS.glob("*.py")))
    return [method for method in found if method is not None]


def _method(path: Path) -> ListedMethod | None:
    """The method that a file declares by ``NAME = Method(config, parts, summary)``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body:
        value = node.value if isinstance(node, ast.Assign) else None
        if isinstance(value, ast.Call) and ast.unparse(value.func) == "Method":
            summary = ast.literal_eval(value.args[2])
            config = ast.unparse(value.args[0])
            declared = dict(_class_variables(tree, config))
            presets = declared.get("presets")
            keys = presets.keys if isinstance(presets, ast.Dict) else []
            names = tuple(str(ast.literal_eval(key)) for key in keys if key is not None)
            return ListedMethod(ast.literal_eval(declared["method"]), summary, names)
    return None


def _class_variables(tree: ast.Module, name: str) -> Iterator[tuple[str, ast.expr]]:
    """Names and values of the annotated assignments in a class."""
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and line.value is not None:
                    yield ast.unparse(line.target), line.value
