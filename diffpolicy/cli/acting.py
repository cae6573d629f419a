"""Episodes of a trained policy in an environment that is drawn."""

import argparse
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from diffpolicy.cli.arguments import Arguments
from diffpolicy.errors import ArgumentError

if TYPE_CHECKING:
    import gymnasium as gym

    from diffpolicy.policy import Policy

# MuJoCo's own words do not say what would help.
_MUJOCO_HINT = (
    "MuJoCo draws with MUJOCO_GL=egl (a GPU, or Mesa's libEGL), MUJOCO_GL=osmesa (libOSMesa), or "
    "glfw on a display; on Debian: apt install libegl1 libgl1-mesa-dri"
)
_PYGAME_HINT = "pip install 'diffpolicy[video]'"


class Episode(NamedTuple):
    """An episode that has ended.

    Attributes:
        number: 1 for the first.
        reward: its undiscounted return.
        steps: its length.
    """

    number: int
    reward: float
    steps: int


def add_flags(parser: Arguments) -> None:
    """The flags that say which policy acts where, and how."""
    parser.add_argument(
        "policy", metavar="POLICY", help="folder of a run, a checkpoint, or a saved policy"
    )
    parser.add_argument("--env", metavar="ENV", help="another environment with the same spaces")
    parser.add_argument("--max-episode-steps", type=int, metavar="N", help="cut episodes off")
    parser.add_argument("--denoising-steps", type=int, metavar="N", help="other than in training")
    parser.add_argument(
        "--eval-policy",
        choices=["deterministic", "stochastic"],
        help="how to act (default: as in evaluations)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of initial states (default: as in evaluations)"
    )


def load(args: argparse.Namespace) -> "Policy":
    """The policy that the flags name.

    Raises:
        ArgumentError: there is none, or it does not have as many denoising steps.
    """
    from diffpolicy import load_policy

    try:
        return load_policy(args.policy, denoising_steps=args.denoising_steps)
    except ArgumentError as error:
        argument = "policy" if error.argument == "source" else error.argument
        raise ArgumentError(argument, error.value, error.problem) from error


def default_folder(policy: str) -> Path:
    """Where files about a policy go: the folder of its run, or else the current one."""
    path = Path(policy)
    folder = path if path.is_dir() else path.parent
    folder = folder.parent if folder.name == "checkpoints" else folder
    return folder if folder.is_dir() else Path()


def drawn_env(policy: "Policy", args: argparse.Namespace, render_mode: str) -> "gym.Env[Any, Any]":
    """The environment of the policy's training, or another one, which draws itself.

    Raises:
        ArgumentError: it cannot be built, or not be drawn, with what would help.
    """
    config = policy.training.get("config", {})
    name, limit = _task(policy, args)
    arguments = {**_task_arguments(config), "render_mode": render_mode}
    if config.get("env_source") == "envpool":
        sys.stderr.write(f"EnvPool draws nothing here: this is {name} of Gymnasium\n")
    with drawing(name):
        env = _built(name, limit, arguments, config.get("env_wrapper") or ())
        if env.render_mode != render_mode:
            raise RuntimeError("it has no picture of itself")
        if render_mode == "human":
            _check_glfw(env)
            env.reset(seed=0)  # opens the window
    _check_actions(policy, name, env)
    return env


def plain_env(policy: "Policy", args: argparse.Namespace) -> "gym.Env[Any, Any]":
    """The same as :func:`drawn_env` without a picture.

    Raises:
        ArgumentError: it cannot be built.
    """
    config = policy.training.get("config", {})
    name, limit = _task(policy, args)
    try:
        env = _built(name, limit, _task_arguments(config), config.get("env_wrapper") or ())
    except RuntimeError as error:
        raise ArgumentError("env", name, f"cannot be built: {error}.") from error
    _check_actions(policy, name, env)
    return env


def _task(policy: "Policy", args: argparse.Namespace) -> tuple[str, int | None]:
    """Name of the environment, and steps after which episodes are cut off."""
    name = args.env or policy.training.get("env")
    if name is None:
        problem = "does not say which environment it is for; give one with --env."
        raise ArgumentError("policy", args.policy, problem)
    limit = args.max_episode_steps
    return name, limit or policy.training.get("config", {}).get("max_episode_steps")


def _check_actions(policy: "Policy", name: str, env: "gym.Env[Any, Any]") -> None:
    ours, theirs = policy.actions.space, env.action_space
    if ours.shape != theirs.shape:
        problem = f"takes the actions {theirs}, and the policy gives {ours}."
        raise ArgumentError("env", name, problem)


def _built(
    name: str, limit: int | None, arguments: dict[str, Any], wrappers: Sequence[str]
) -> "gym.Env[Any, Any]":
    """One copy of a Gymnasium environment, without histories and chunks: policies remember them."""
    import gymnasium as gym

    from collectors.environments.model_notices import known_notices_hidden
    from collectors.environments.sources import environment_source

    try:
        with known_notices_hidden():
            env = environment_source(name, limit, arguments, wrappers).build(1)
    except ArgumentError as error:
        if error.argument == "name":
            raise ArgumentError("env", error.value, error.problem) from error
        raise RuntimeError(str(error)) from error
    if not isinstance(env, gym.Env):
        raise RuntimeError("it is a TorchRL environment; only Gymnasium's draw themselves")
    return env


def _check_glfw(env: "gym.Env[Any, Any]") -> None:
    """Raise RuntimeError if MuJoCo would end the process because it gets no window."""
    module = sys.modules.get("gymnasium.envs.mujoco.mujoco_rendering")
    if module is None:
        return
    if not any(isinstance(v, module.MujocoRenderer) for v in vars(env.unwrapped).values()):
        return
    import glfw

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        window = None
        if glfw.init():
            glfw.window_hint(glfw.VISIBLE, glfw.FALSE)
            window = glfw.create_window(64, 64, "", None, None)
            glfw.default_window_hints()
    if not window:
        words = "; ".join(str(warning.message) for warning in told)
        raise RuntimeError(f"GLFW opens no window: {words}")
    glfw.destroy_window(window)


def _task_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the environment of a run, without those about EnvPool's threads."""
    from collectors.environments.envpool_env import POOL_ARGUMENTS

    given = config.get("env_kwargs") or {}
    if config.get("env_source") != "envpool":
        return given
    return {key: value for key, value in given.items() if key not in POOL_ARGUMENTS}


class drawing:
    """Turn whatever fails while an environment is built or drawn into an ArgumentError.

    Args:
        env: its name.
    """

    def __init__(self, env: str) -> None:
        self._env = env

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if not isinstance(error, Exception) or isinstance(error, ArgumentError):
            return
        words = f"{type(error).__name__}: {error}"
        hint = ""
        if "pygame" in words:
            hint = f"; {_PYGAME_HINT}"
        elif any(sign in words for sign in ("gl", "GL", "mujoco", "display")):
            hint = f"; {_MUJOCO_HINT}"
        line = " ".join(words.split()).rstrip(".")
        raise ArgumentError("env", self._env, f"cannot be drawn ({line}){hint}.") from error


def episodes(
    policy: "Policy",
    env: "gym.Env[Any, Any]",
    args: argparse.Namespace,
    each_step: Callable[[], None] = lambda: None,
) -> Iterator[Episode]:
    """Endless episodes; with the usual seed they begin as those of the evaluations.

    Args:
        policy: acts.
        env: where.
        args: the flags of :func:`add_flags`.
        each_step: called before every step, and at the end of an episode.
    """
    from collectors import EVALUATION_SEED, RandomStream, derive_seed

    saved = policy.training.get("config", {}).get("eval_policy")
    deterministic = (args.eval_policy or saved) != "stochastic"
    seed = derive_seed(EVALUATION_SEED if args.seed is None else args.seed, 0)
    policy.seed(seed)
    number = 0
    while True:
        # Some environments draw from the global generators.
        with RandomStream(seed + number):
            # Evaluations seed an environment, and then begin an episode.
            env.reset(seed=seed + number)
            observation, _ = env.reset()
            policy.reset()
            total, steps, ended = 0.0, 0, False
            while not ended:
                each_step()
                action = policy.act(observation, deterministic=deterministic)
                observation, reward, terminated, truncated, _ = env.step(action)
                total, steps = total + float(reward), steps + 1
                ended = bool(terminated or truncated)
            each_step()
        number += 1
        yield Episode(number, total, steps)


def line(episode: Episode) -> str:
    """What is printed about an episode."""
    return f"episode {episode.number}: return {episode.reward:.1f}, {episode.steps} steps\n"
