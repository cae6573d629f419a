"""``diffpolicy pull USER/NAME``: a policy from the Hugging Face hub, in a folder."""

import sys
from pathlib import Path

from diffpolicy.cli.arguments import Arguments
from diffpolicy.errors import ArgumentError


def main(words: list[str]) -> int:
    """Download; returns the exit code."""
    parser = Arguments("pull", "Download a policy from the Hugging Face hub into a folder.")
    parser.add_argument("repository", metavar="USER/NAME", help="what is downloaded")
    parser.add_argument("folder", nargs="?", type=Path, metavar="FOLDER", help="default: NAME")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit")
    args = parser.parse_args(words)
    folder = args.folder or Path(args.repository.rpartition("/")[2])
    if folder.exists():
        parser.error(f"{folder} exists; give another FOLDER.")

    # Here, because it imports torch.
    from diffpolicy import Policy

    try:
        policy = Policy.from_pretrained(args.repository, revision=args.revision)
        policy.save_pretrained(folder)
    except ArgumentError as error:
        parser.refuse(error)
    sys.stdout.write(f"{policy!r} is in {folder}\n")
    return 0
