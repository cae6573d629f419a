"""What an update of each off-policy diffusion method costs: rows of its networks, and CPU seconds.

    python examples/benchmarks/update_cost.py

Makes 100 updates of each method with each of its presets, on random transitions, in one thread, and
stops a method after 10 CPU seconds. Seconds are those of the process, which other processes
lengthen little. Writes results/update_cost.json after each method, and prints a table; methods that
are not asked for keep their rows.

Rows are what goes through networks: those of the policy's network, how many of them with a gradient
for its parameters, and those of critics, once for each member of an ensemble.
"""

import argparse
import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from bare_updates import BareUpdates  # type: ignore[import-not-found]
from run import RESULTS, make_folder  # type: ignore[import-not-found]
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from collectors import make_env
from diffpolicy.networks import QEnsemble, ScoreNetwork
from diffpolicy.trainers import METHODS
from diffpolicy.trainers.io.files import versions

Cost = dict[str, Any]


@contextmanager
def counted_rows() -> Iterator[Counter[str]]:
    """Rows that go through networks inside: ``policy``, ``policy_gradient`` and ``critics``."""
    rows: Counter[str] = Counter()

    def policy(latent: Tensor) -> None:
        number = latent.shape[:-1].numel()
        rows["policy"] += number
        rows["policy_gradient"] += number * torch.is_grad_enabled()

    def after(module: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        if isinstance(module, ScoreNetwork):
            policy(inputs[0])
        elif isinstance(module, QEnsemble):
            rows["critics"] += inputs[0].shape[:-1].numel() * module.ensemble_size

    condition = ScoreNetwork.condition

    def counted(network: ScoreNetwork, observation: Tensor) -> Callable[..., Tensor]:
        score = condition(network, observation)

        def of_latent(latent: Tensor, step: Any) -> Tensor:
            policy(latent)
            return score(latent, step)

        return of_latent

    handle = register_module_forward_hook(after)
    with mock.patch.object(ScoreNetwork, "condition", counted):
        yield rows
    handle.remove()


def presets_of(method: str) -> list[str]:
    """Names of the presets of a method; ``default`` where there is nothing to choose."""
    return list(METHODS[method].config.presets) or ["default"]


def measure(method: str, preset: str, env_name: str, updates: int, limit: float) -> Cost | None:
    """What updates cost; None for a policy without a chain."""
    config_class: Any = METHODS[method].config
    make = config_class if preset == "default" else config_class.from_preset
    args = () if preset == "default" else (preset,)
    config = make(*args, env=env_name, total_frames=1_000_000)
    env = make_env(env_name)
    torch.manual_seed(0)
    update = BareUpdates(config, env)
    if not any(
        isinstance(module, ScoreNetwork) for module in update.parts.loss.actor_network.modules()
    ):
        return None
    batch = update.transitions(env, config.batch_size)
    env.close()
    for _ in range(config.policy_delay):  # The first ones import and allocate.
        update(batch.clone())
    with counted_rows() as rows:
        start, made = time.process_time(), 0
        while made < updates and time.process_time() - start < limit:
            for _ in range(config.policy_delay):
                update(batch.clone())
            made += config.policy_delay
        seconds = time.process_time() - start
    return {
        "method": method,
        "preset": preset,
        "batch_size": config.batch_size,
        "denoising_steps": config.denoising_steps,
        "policy_delay": config.policy_delay,
        "updates": made,
        "cpu_seconds_per_update": seconds / made,
        "rows_per_update": {name: rows[name] / made for name in ROWS},
    }


ROWS = ("policy", "policy_gradient", "critics")


def table(costs: Sequence[Cost]) -> str:
    """Markdown; rows are in units of the batch."""
    lines = [
        "| method | preset | batch | $N$ | policy | with gradient | critics | updates "
        "| CPU seconds |",
        "|---" * 9 + "|",
    ]
    for cost in costs:
        units = [cost["rows_per_update"][name] / cost["batch_size"] for name in ROWS]
        cells = [
            METHODS[cost["method"]].config.__name__.removesuffix("Config"),
            cost["preset"],
            str(cost["batch_size"]),
            str(cost["denoising_steps"]),
            *(f"{unit:.3g}" if unit < 100 else f"{unit:.0f}" for unit in units),
            str(cost["updates"]),
            f"{cost['cpu_seconds_per_update']:.2g}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    off_policy = sorted(name for name, found in METHODS.items() if found.kind == "off-policy")
    parser.add_argument("--methods", nargs="+", choices=off_policy, default=off_policy)
    parser.add_argument("--presets", nargs="+", help="only these (default: all)")
    parser.add_argument("--env", default="HalfCheetah-v5", help="whose sizes the networks have")
    parser.add_argument("--updates", type=int, default=100, help="of each method")
    parser.add_argument("--limit", type=float, default=10, help="CPU seconds of each method")
    parser.add_argument("--results", type=Path, default=RESULTS / "update_cost.json")
    args = parser.parse_args(argv)
    if args.updates < 1 or args.limit <= 0:
        parser.error("--updates must be at least 1 and --limit greater than 0.")
    make_folder(parser, args.results.parent)
    torch.set_num_threads(1)
    kept: list[Cost] = []
    if args.results.exists():
        kept = json.loads(args.results.read_text(encoding="utf-8"))["costs"]
    for method in args.methods:
        for preset in presets_of(method):
            if args.presets is not None and preset not in args.presets:
                continue
            cost = measure(method, preset, args.env, args.updates, args.limit)
            if cost is None:
                continue
            others = [c for c in kept if (c["method"], c["preset"]) != (method, preset)]
            kept = sorted([*others, cost], key=lambda c: (c["method"], c["preset"]))
            machine = {"processor": platform.machine(), "threads": 1, "versions": versions()}
            content = {"env": args.env, **machine, "costs": kept}
            args.results.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
            print(table([cost]).splitlines()[-1], flush=True)
    print(table(kept))


if __name__ == "__main__":
    main()
