"""``diffpolicy record POLICY``: a video of its episodes."""

import argparse
import os
import sys
from itertools import islice
from pathlib import Path
from typing import Any

from diffpolicy.cli import acting
from diffpolicy.cli.arguments import Arguments
from diffpolicy.errors import ArgumentError

_DESCRIPTION = """\
Film the episodes of a trained policy, by default the first ones of its evaluations.

  diffpolicy record runs/pendulum                        -> runs/pendulum/episodes.mp4
  diffpolicy record runs/pendulum --output pendulum.gif

MuJoCo draws without a display if MUJOCO_GL is egl, which is the default here, or osmesa."""
_KINDS = (".mp4", ".gif")
_FPS = 30


def main(words: list[str]) -> int:
    """Film; returns the exit code."""
    parser = Arguments("record", _DESCRIPTION)
    acting.add_flags(parser)
    parser.add_argument("--episodes", type=int, default=3, metavar="N", help="default: 3")
    parser.add_argument("--fps", type=int, metavar="N", help="default: that of the environment")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help=".mp4 or .gif (default: episodes.mp4 in the folder of the run)",
    )
    args = parser.parse_args(words)
    if args.episodes < 1:
        parser.error(f"--episodes must be at least 1, got {args.episodes}.")
    output = args.output or acting.default_folder(args.policy) / "episodes.mp4"
    if output.suffix not in _KINDS:
        parser.error(f"--output must end with {' or '.join(_KINDS)}, got {output}.")
    # MuJoCo reads it when it is imported.
    if sys.platform == "linux" and not _display():
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    try:
        _film(args, output)
    except ArgumentError as error:
        parser.refuse(error)
    except OSError as error:
        parser.error(f"--output {output} cannot be written: {error}.")
    sys.stdout.write(f"the video is in {output}\n")
    return 0


def _film(args: argparse.Namespace, output: Path) -> None:
    import imageio.v2 as imageio

    if output.suffix == ".mp4":
        import imageio_ffmpeg  # noqa: F401 -- imageio's own words on it are several lines

    policy = acting.load(args)
    env = acting.drawn_env(policy, args, "rgb_array")
    fps = args.fps or int(env.metadata.get("render_fps") or _FPS)
    name = args.env or policy.training["env"]
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with imageio.get_writer(output, **_settings(output, fps)) as opened:
            writer: Any = opened

            def take() -> None:
                with acting.drawing(name):
                    frame: Any = env.render()
                writer.append_data(frame)

            for episode in islice(acting.episodes(policy, env, args, take), args.episodes):
                sys.stdout.write(acting.line(episode))
    finally:
        env.close()


def _settings(output: Path, fps: int) -> dict[str, Any]:
    if output.suffix == ".gif":
        return {"duration": 1000 / fps, "loop": 0}
    # Codecs want even sizes; imageio would scale to multiples of 16.
    return {"fps": fps, "macro_block_size": 2}


def _display() -> bool:
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
