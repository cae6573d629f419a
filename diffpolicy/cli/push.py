"""``diffpolicy push POLICY USER/NAME``: share a policy on the Hugging Face hub."""

import sys

from diffpolicy.cli.arguments import Arguments
from diffpolicy.errors import ArgumentError


def main(words: list[str]) -> int:
    """Upload; returns the exit code."""
    parser = Arguments(
        "push", "Upload a trained policy, with a model card, to the Hugging Face hub."
    )
    parser.add_argument(
        "policy", metavar="POLICY", help="folder of a run, a checkpoint, or a saved policy"
    )
    parser.add_argument("repository", metavar="USER/NAME", help="made if it does not exist")
    parser.add_argument("--private", action="store_true", help="a new repository is private")
    parser.add_argument("--license", metavar="NAME", help="of the policy, such as mit")
    args = parser.parse_args(words)

    # Here, because it imports torch.
    from diffpolicy import load_policy

    try:
        policy = load_policy(args.policy)
        address = policy.push_to_hub(args.repository, private=args.private, license=args.license)
    except ArgumentError as error:
        parser.refuse(error)
    sys.stdout.write(f"{address}\n")
    return 0
