"""``diffpolicy play POLICY``: watch it in a window."""

import os
import sys
from itertools import islice

from diffpolicy.cli import acting
from diffpolicy.cli.arguments import Arguments
from diffpolicy.errors import ArgumentError


def main(words: list[str]) -> int:
    """Play until Ctrl-C; returns the exit code."""
    parser = Arguments("play", "Watch a trained policy in a window, until Ctrl-C.")
    acting.add_flags(parser)
    parser.add_argument("--episodes", type=int, metavar="N", help="default: until Ctrl-C")
    args = parser.parse_args(words)
    # Pygame knows others.
    displays = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    if sys.platform == "linux" and not any(os.environ.get(name) for name in displays):
        parser.error(
            "there is no display to open a window on (DISPLAY is not set); make a video instead: "
            f"diffpolicy record {args.policy}"
        )
    try:
        policy = acting.load(args)
        env = acting.drawn_env(policy, args, "human")
        try:
            for episode in islice(acting.episodes(policy, env, args), args.episodes):
                sys.stdout.write(acting.line(episode))
                sys.stdout.flush()
        finally:
            env.close()
    except ArgumentError as error:
        parser.refuse(error)
    except KeyboardInterrupt:
        pass
    return 0
