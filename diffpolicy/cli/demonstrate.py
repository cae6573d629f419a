"""``diffpolicy demonstrate POLICY...``: episodes of trained policies as a data set."""

import argparse
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from diffpolicy.cli import acting
from diffpolicy.cli.arguments import Arguments
from diffpolicy.errors import ArgumentError

if TYPE_CHECKING:
    from tensordict import TensorDictBase

_DESCRIPTION = """\
Record episodes of trained policies as a data set in the layout of TorchRL's: observation, action,
next.reward, next.done and the rest. A set of mixed quality comes from several policies, such as
early checkpoints, and from noise:

  diffpolicy demonstrate runs/ppo/checkpoints/frames_0000010000.ckpt --episodes 50 --output demos
  diffpolicy demonstrate pretrained:sac-Pendulum-v1 --noise 0 0.5 --episodes 20 --output demos

diffpolicy clone demos fits a policy to it."""


def main(words: list[str]) -> int:
    """Record; returns the exit code."""
    parser = Arguments("demonstrate", _DESCRIPTION)
    parser.add_argument(
        "policies",
        nargs="+",
        metavar="POLICY",
        help="folder of a run, a checkpoint, a saved policy, or pretrained:NAME",
    )
    parser.add_argument("--env", metavar="ENV", help="another environment with the same spaces")
    parser.add_argument("--max-episode-steps", type=int, metavar="N", help="cut episodes off")
    parser.add_argument(
        "--episodes",
        type=int,
        default=10,
        metavar="N",
        help="of each policy and noise (default: 10)",
    )
    parser.add_argument(
        "--noise",
        type=float,
        nargs="+",
        default=[0.0],
        metavar="STD",
        help="standard deviation of noise on the actions, as a share of half their range; each "
        "policy acts with each of these (default: 0)",
    )
    parser.add_argument(
        "--eval-policy",
        choices=["deterministic", "stochastic"],
        default="deterministic",
        help="how to act (default: deterministic)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="a new folder")
    args = parser.parse_args(words)
    if args.episodes < 1:
        parser.error(f"--episodes must be at least 1, got {args.episodes}.")
    if args.seed < 0:
        parser.error(f"--seed must be at least 0, got {args.seed}.")
    if min(args.noise) < 0:
        parser.error(f"--noise must be at least 0, got {min(args.noise)}.")
    try:
        _record(args)
    except ArgumentError as error:
        parser.refuse(error)
    return 0


def _record(args: argparse.Namespace) -> None:
    # Here, because these import torch.
    import torch
    from tensordict import TensorDictBase

    from collectors import derive_seed
    from diffpolicy import load_policy
    from diffpolicy.policy.demonstrations import check_new, record_episodes, save_demonstrations

    check_new(args.output)
    policies = []
    for source in args.policies:
        try:
            policies.append(load_policy(source))
        except ArgumentError as error:
            raise ArgumentError("policy", error.value, error.problem) from error
    recorded: list[TensorDictBase] = []
    for index, (source, policy) in enumerate(zip(args.policies, policies, strict=True)):
        env = acting.plain_env(policy, argparse.Namespace(**vars(args), policy=source))
        try:
            for place, noise in enumerate(args.noise):
                episodes = record_episodes(
                    policy,
                    env,
                    seed=derive_seed(args.seed, index, place),
                    deterministic=args.eval_policy == "deterministic",
                    noise=noise,
                )
                for episode in islice(episodes, args.episodes):
                    number = torch.full((len(episode),), len(recorded))
                    recorded.append(episode.set("episode", number))
                _tell(source, noise, recorded[-args.episodes :])
        finally:
            env.close()
    data = torch.cat(recorded)
    save_demonstrations(data, args.output)
    sys.stdout.write(
        f"{len(recorded)} episodes with {len(data)} transitions are in {args.output}\n"
    )


def _tell(source: str, noise: float, episodes: "Sequence[TensorDictBase]") -> None:
    """A line on the returns of a policy."""
    returns = [float(episode["next", "reward"].sum()) for episode in episodes]
    mean, best = sum(returns) / len(returns), max(returns)
    sys.stdout.write(f"{source}, noise {noise:g}: return {mean:.1f}, at best {best:.1f}\n")
    sys.stdout.flush()
