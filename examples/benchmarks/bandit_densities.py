"""Densities of all off-policy diffusion methods beside the exact one, on a bandit with four modes.

    python examples/benchmarks/bandit_densities.py

A bandit with one state, whose values are known and have four maxima of the same height. Every
method of the registry with a chain is trained with the same network, number of steps and updates;
critics of actions are the exact values, so that only the policy differs (those that judge steps of
chains, as DiffSAC's, or distributions have to be learned). Replay starts with uniform actions and
goes over to the policy's own. Writes results/bandit_densities.json after each method (methods that
are not asked for keep their rows), results/bandit-densities.png, and prints a table.

The distance is half the absolute difference from the density exp(Q / T) / Z in 40 bins.
"""

import argparse
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from bare_updates import BareUpdates  # type: ignore[import-not-found]
from multimodal_plots import BINS  # type: ignore[import-not-found]
from run import RESULTS, make_folder  # type: ignore[import-not-found]
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type

from collectors import count_modes, make_env, mode_coverage, nearest_mode, optimal_density
from collectors.environments.tasks.multimodal import multi_well_reward, well_maxima
from diffpolicy.networks import DenoisingQEnsemble, QEnsemble, ScoreNetwork
from diffpolicy.trainers import METHODS
from diffpolicy.trainers.config.options import fields_of
from diffpolicy.trainers.io.files import versions

matplotlib.use("Agg")
from matplotlib import pyplot as plt

# Its observation (the number 1) and its action in [-1, 1] are those of the bandit.
SPACES = "GMMBandit-v0"
WELLS = 4
MAXIMA = well_maxima(WELLS)
TEMPERATURE = 0.05
BUFFER, FRESH, SAMPLES = 2048, 16, 20_000
OPTIONS: dict[str, Any] = {
    "denoising_steps": 8,
    "actor_hidden_sizes": (64, 64),
    "batch_size": 128,
    "lr_actor": 2e-3,
    "lr_critic": 2e-3,
    "policy_delay": 1,
    "temperature": TEMPERATURE,
    "learn_temperature": False,
    "squashed_entropy": True,
    "critic_head": "scalar",
    "critic_hidden_sizes": (64, 64),
}
# Beside the registry, whose methods have one variant each.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {"fpmd, mean flow": ("fpmd", {"flow": "mean"})}

Found = dict[str, Any]


def exact_value(action: Tensor) -> Tensor:
    """:func:`multi_well_reward` of tensors ``[*B, 1]``, with a gradient."""
    maxima, spacing = torch.as_tensor(MAXIMA, dtype=action.dtype), 2 / WELLS
    distance = (action - maxima).abs().amin(-1, keepdim=True)
    inner = 0.85 + 0.15 * (1 + torch.cos(2 * torch.pi * distance / spacing)) / 2
    return torch.where(action.abs() <= maxima[0], inner, 1 - (2 * distance / spacing).square())


def use_exact_values(loss: Any) -> bool:
    """Let the critics of actions say the exact values; whether there were any."""
    networks = list(loss.qvalue_network.modules())
    if any(isinstance(network, DenoisingQEnsemble) for network in networks):
        return False
    found = [each for each in networks if isinstance(each, QEnsemble) and each.support is None]
    for network in found:
        network.forward = partial(_exact, network.ensemble_size)  # type: ignore[method-assign]
    return bool(found)


def _exact(members: int, observation: Tensor, action: Tensor) -> Tensor:
    value = exact_value(action).unsqueeze(-2)
    return value.expand(*value.shape[:-2], members, 1)


class Bandit:
    """Replay of the bandit: random actions at first, then more and more of the policy's own.

    Args:
        update: of a method.
        env: only its first step is taken, for the entries of a transition.
        exact: whether its critics have nothing to learn.
    """

    def __init__(self, update: BareUpdates, env: EnvBase, exact: bool) -> None:
        self.update = update
        # What a method writes back comes with the update of everything.
        alone = exact and not update.parts.write_back
        self.learn = update.move_policy if alone else update
        self.rows = update.transitions(env, 2)[:1].expand(BUFFER).clone()
        self._act(torch.arange(BUFFER), update.parts.warm_up or _uniform)

    def step(self) -> None:
        """An update, and some fresh actions in the place of old ones."""
        parts = self.update.parts
        place = torch.randint(BUFFER, (self.update.config.batch_size,))
        batch = self.rows[place]
        self.learn(batch)
        for name in parts.write_back:
            self.rows[name][place] = batch[name]
        self._act(torch.randint(BUFFER, (FRESH,)), parts.policy or parts.loss.actor_network)

    @torch.no_grad()
    def _act(self, place: Tensor, policy: Any) -> None:
        with set_exploration_type(ExplorationType.RANDOM):
            acted = policy(self.rows[place].select("observation"))
        for key in set(self.rows.keys()) & set(acted.keys()):
            self.rows[key][place] = acted[key].to(self.rows[key].dtype)
        self.rows["next", "reward"][place] = exact_value(acted["action"])
        for name, source in self.update.parts.write_back.items():
            self.rows[name][place] = acted[source]


def _uniform(rows: TensorDictBase) -> TensorDictBase:
    return rows.set("action", 2 * torch.rand(*rows.batch_size, 1) - 1)


def has_temperature(method: str) -> bool:
    """Whether the density exp(Q / T) / Z is what the method is after."""
    return any(field.name == "temperature" for field in fields_of(METHODS[method].config))


def train(name: str, updates: int, seed: int) -> Found | None:
    """Train a method and count its actions in bins; None for a policy without a chain."""
    method, extra = VARIANTS.get(name, (name, {}))
    config_class: Any = METHODS[method].config
    known = {field.name for field in fields_of(config_class)}
    options = {key: value for key, value in OPTIONS.items() if key in known}
    env = make_env(SPACES)
    torch.manual_seed(seed)
    update = BareUpdates(config_class(env=SPACES, total_frames=100_000, **options, **extra), env)
    loss: Any = update.parts.loss
    if not any(isinstance(module, ScoreNetwork) for module in loss.actor_network.modules()):
        return None
    exact, start = use_exact_values(loss), time.process_time()
    bandit = Bandit(update, env, exact)
    for _ in range(updates):
        bandit.step()
    env.close()
    rows = TensorDict({"observation": torch.ones(SAMPLES, 1)}, [SAMPLES])
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        action = loss.actor_network(rows)["action"].squeeze(-1).double().numpy()
    shares = np.histogram(action, BINS)[0] / SAMPLES
    modes = count_modes(nearest_mode(action, MAXIMA)[None], WELLS)[0]
    return {
        "name": name,
        "method": method,
        "temperature": TEMPERATURE if has_temperature(method) else None,
        "exact_values": exact,
        "updates": updates,
        "seed": seed,
        "cpu_seconds": round(time.process_time() - start, 1),
        "modes": round(float(mode_coverage(modes).coverage) * WELLS),
        "mode_shares": np.round(modes / SAMPLES, 3).tolist(),
        "distance": round(float(np.abs(shares - exact_shares()).sum() / 2), 3),
        "shares": np.round(shares, 5).tolist(),
    }


def exact_shares() -> Any:
    """Shares ``[40]`` of exp(Q / T) / Z in the bins."""
    grid = np.linspace(-1, 1, 4001)
    density = optimal_density(partial(multi_well_reward, wells=WELLS), TEMPERATURE, grid)
    weight = np.histogram(grid, BINS, weights=density)[0]
    return weight / weight.sum()


def title(name: str) -> str:
    """Name of a loss class: ``DiffSAC`` for ``diffsac``."""
    method, _, variant = name.partition(",")
    return METHODS[method].config.__name__.removesuffix("Config") + (variant and f",{variant}")


def draw(found: Sequence[Found], path: Path) -> None:
    """A panel for each method: its density, and the exact one as a line."""
    columns, width = 4, BINS[1] - BINS[0]
    lines = -(-len(found) // columns)
    figure, grid = plt.subplots(
        lines,
        columns,
        figsize=(2.7 * columns, 2.1 * lines),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes in grid.flat[len(found) :]:
        axes.set_axis_off()
    for axes, one in zip(grid.flat, found, strict=False):
        colour = "tab:blue" if one["temperature"] is not None else "tab:gray"
        axes.stairs(np.array(one["shares"]) / width, BINS, fill=True, color=colour, alpha=0.7)
        axes.stairs(exact_shares() / width, BINS, color="black", lw=0.9)
        axes.set_title(f"{title(one['name'])}: {one['distance']:.2f}", fontsize=10)
        axes.set(xlim=(-1, 1), ylim=(0, 2.5), xticks=[-1, -0.5, 0, 0.5, 1])
    figure.supxlabel("action (number: distance from the exact density, the black line)", fontsize=9)
    figure.supylabel("density", fontsize=9)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def table(found: Sequence[Found]) -> str:
    """Markdown, the closest first."""
    lines = ["| method | T | modes | shares of the modes | distance |", "|---" * 5 + "|"]
    for one in sorted(found, key=lambda one: one["distance"]):
        shares = ", ".join(f"{share:.2f}" for share in one["mode_shares"])
        weight = "none" if one["temperature"] is None else one["temperature"]
        cells = (title(one["name"]), weight, f"{one['modes']} of {WELLS}", shares, one["distance"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, write, draw, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted([*VARIANTS, *(n for n, found in METHODS.items() if found.kind == "off-policy")])
    parser.add_argument("--methods", nargs="*", choices=names, default=names, metavar="NAME")
    parser.add_argument("--updates", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    if args.updates < 1:
        parser.error(f"--updates must be at least 1, got {args.updates}.")
    make_folder(parser, args.results)
    torch.set_num_threads(1)
    file, kept = args.results / "bandit_densities.json", []
    if file.exists():
        kept = json.loads(file.read_text(encoding="utf-8"))["policies"]
    for name in args.methods:
        found = train(name, args.updates, args.seed)
        if found is None:
            continue
        kept = sorted([*(o for o in kept if o["name"] != name), found], key=lambda o: o["name"])
        options = {key: value for key, value in OPTIONS.items() if key != "temperature"}
        content = {"wells": WELLS, "options": options, "versions": versions(), "policies": kept}
        file.write_text(json.dumps(content) + "\n", encoding="utf-8")
        print(name, found["modes"], found["distance"], found["cpu_seconds"], flush=True)
    draw(kept, args.results / "bandit-densities.png")
    print(table(kept))


if __name__ == "__main__":
    main()
