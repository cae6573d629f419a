"""How far DIME's entropy bound is from the truth, against the number of denoising steps.

    python examples/benchmarks/entropy_gap.py

Measures ``log Z - ELBO`` for two targets whose normaliser Z is known: a Gaussian with the exact
reversal of the noising process, in closed form, and a mixture of four Gaussians in the square
[-1, 1]^2 that policies are trained on, with frozen and with learned step sizes and with a wider
network. Writes results/entropy_gap.json and draws results/entropy_gap.png; takes half an hour.
"""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn

from diffpolicy.actors import DIME_PROCESS, ActionSquash, DenoisingActor
from diffpolicy.networks import ScoreNetwork, StepEmbedding
from diffpolicy.sde import (
    DenoisingProcess,
    Gaussian,
    gaussian_log_prob,
    prior_log_prob,
    rollout_chain,
    schedule_factors,
)
from objectives import DIMELoss

matplotlib.use("Agg")
from matplotlib import pyplot as plt

RESULTS = Path(__file__).parent / "results"
EXACT_STEPS = (4, 8, 16, 32, 64, 128, 256)
HORIZON, TARGET_STD = 3.0, 0.5

MODES = torch.tensor([[0.5, 0.5], [0.5, -0.5], [-0.5, 0.5], [-0.5, -0.5]])
MODE_STD = 0.15
# A mode is kept if it gets at least this share of the actions; its share of the target is 1/4.
KEPT = 0.1


class Variant(NamedTuple):
    """How a policy is trained on the four modes."""

    label: str
    learned: bool
    width: int
    iterations: int


VARIANTS = {
    "frozen": Variant("frozen step sizes", False, 32, 1500),
    "learned": Variant("learned step sizes", True, 32, 1500),
    "wide": Variant("learned, 128 wide, 6000 updates", True, 128, 6000),
}


def exact_reversal_gap(steps: int) -> float:
    """``log Z - ELBO`` for N(0, 0.25) with the exact continuous-time reversal, prior std 1.

    The chain is linear in its noise and the bound quadratic, so that its mean follows from its
    values at zero and at plus and minus one unit of each noise variable.
    """
    step_size = HORIZON / schedule_factors("cosine", steps).sum().item()
    process = DenoisingProcess(
        1, steps, prior_std=1.0, schedule="cosine", step_size=step_size, noising_step="same"
    ).double()
    eta = process.step_sizes().detach().squeeze(-1)
    remaining = (eta.sum() - eta.cumsum(0) + eta).tolist()

    def score(latent: Tensor, step: int) -> Tensor:
        variance = 1 + (TARGET_STD**2 - 1) * math.exp(-2 * remaining[step])
        return 2 * latent * (1 - 1 / variance)

    unit = torch.eye(steps + 1, dtype=torch.float64)
    noise = torch.cat((torch.zeros_like(unit[:1]), unit, -unit)).unsqueeze(-1)
    with torch.no_grad():
        chain = rollout_chain(process, score, noise)
        first, last = chain.latents[:, 0], chain.latents[:, -1]
        target = gaussian_log_prob(last, Gaussian(torch.zeros(1), torch.tensor([TARGET_STD])))
        bound = target - chain.log_ratio.sum(-2) - prior_log_prob(first, process.prior_std)
    return -(bound[0] + 0.5 * (bound[1:] - bound[0]).sum(0)).item()


class FourModes(nn.Module):
    """The log density of four Gaussians with the same weight, not normalised, as a critic."""

    def forward(self, action: Tensor) -> Tensor:
        """Value ``[*B, 1]`` of actions ``[*B, 2]``."""
        square = (action.unsqueeze(-2) - MODES).square().sum(-1)
        return (-0.5 * square / MODE_STD**2).logsumexp(-1, keepdim=True)


def log_normaliser() -> float:
    """``log Z`` of :class:`FourModes` on the square, by quadrature."""
    axis = torch.linspace(-1, 1, 801, dtype=torch.float64)
    density = FourModes()(torch.cartesian_prod(axis, axis)).exp().reshape(801, 801)
    return math.log(torch.trapezoid(torch.trapezoid(density, axis), axis))


def states(rows: int) -> TensorDict:
    return TensorDict({"observation": torch.ones(rows, 1)}, [rows])


def train(steps: int, variant: Variant, seed: int) -> DenoisingActor:
    """A policy with DIME's process, trained on the exact critic with temperature 1."""
    torch.manual_seed(seed)
    learn = {"learn_step_size": variant.learned, "learn_friction": variant.learned}
    hidden, embedding = (variant.width, variant.width), StepEmbedding(steps, 16, 16, 8)
    actor = DenoisingActor(
        DenoisingProcess(2, steps, **{**vars(DIME_PROCESS), **learn}),
        ScoreNetwork(2, 1, steps, hidden_sizes=hidden, embedding=embedding),
        ActionSquash(-torch.ones(2), torch.ones(2)),
    )
    critic = TensorDictModule(FourModes(), ["action"], ["state_action_value"])
    loss = DIMELoss(actor, critic, temperature=1.0)
    optimizer = torch.optim.Adam(actor.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, variant.iterations)
    for _ in range(variant.iterations):
        value, _ = loss.actor_loss(states(128))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return actor


@torch.no_grad()
def measure(actor: DenoisingActor, log_z: float, rows: int = 20_000) -> dict[str, Any]:
    """Gap with its standard error, modes kept, and the diffusion time of a policy."""
    path = actor.sample_path(states(rows))
    weight = FourModes()(path.action) - path.running_cost - path.terminal_cost
    nearest = (path.action.unsqueeze(-2) - MODES).square().sum(-1).argmin(-1)
    shares = torch.bincount(nearest, minlength=4) / rows
    assert isinstance(actor.process, DenoisingProcess)
    time = actor.process.step_sizes().sum(0).mean() / actor.process.prior_std.square()
    return {
        "gap": log_z - weight.mean().item(),
        "standard_error": weight.std().item() / math.sqrt(rows),
        "log_mean_weight": (weight.logsumexp(0) - math.log(rows)).item(),
        "mode_shares": shares.tolist(),
        "modes_kept": int((shares >= KEPT).sum()),
        "diffusion_time": time.item(),
    }


def draw(results: dict[str, Any], path: Path) -> None:
    """Save both panels as a picture; dots are seeds, lines their means."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    exact = results["exact_reversal"]
    left.plot([row["steps"] for row in exact], [row["gap"] for row in exact], ".-")
    left.set(title="Gaussian target, exact reversal", yscale="log", ylabel="log Z - ELBO in nats")
    runs = results["four_modes"]
    counts = sorted({run["steps"] for run in runs})
    for name in dict.fromkeys(run["variant"] for run in runs):
        rows = [run for run in runs if run["variant"] == name]
        gaps = [[row["gap"] for row in rows if row["steps"] == count] for count in counts]
        means = [sum(gap) / len(gap) for gap in gaps]
        (line,) = right.plot(counts, means, label=VARIANTS[name].label)
        points = ([row["steps"] for row in rows], [row["gap"] for row in rows])
        right.plot(*points, ".", color=line.get_color())
    top = 1.35 * max(run["gap"] for run in runs)  # leaves room for the legend
    right.set(title="four modes in the square, trained", ylim=(0, top))
    right.legend()
    for axes, steps in ((left, [row["steps"] for row in exact]), (right, counts)):
        axes.set_xscale("log", base=2)
        axes.set_xticks(steps, labels=[str(count) for count in steps])
        axes.set(xlabel="denoising steps N")
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def table(runs: list[dict[str, Any]]) -> str:
    """A Markdown table of the mean gap over seeds."""
    counts = sorted({run["steps"] for run in runs})
    lines = ["| | " + " | ".join(f"N = {count}" for count in counts) + " |"]
    lines.append("| --- " * (len(counts) + 1) + "|")
    for name in dict.fromkeys(run["variant"] for run in runs):
        rows = [run for run in runs if run["variant"] == name]
        gaps = [[row["gap"] for row in rows if row["steps"] == count] for count in counts]
        cells = " | ".join(f"{sum(gap) / len(gap):.2f}" for gap in gaps)
        lines.append(f"| {VARIANTS[name].label} | {cells} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the results and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS, help="output folder")
    args = parser.parse_args(argv)
    try:
        # Before half an hour of work.
        args.results.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--results {args.results} cannot be written to: {error.strerror}.")
    log_z = log_normaliser()
    runs = []
    for name, variant in VARIANTS.items():
        for steps in args.steps:
            for seed in args.seeds:
                measured = measure(train(steps, variant, seed), log_z)
                runs.append({"variant": name, "steps": steps, "seed": seed, **measured})
                print(f"{name}, N = {steps}, seed {seed}: {measured['gap']:.3f}", flush=True)
    results = {
        "versions": {"torch": torch.__version__},
        "exact_reversal": [{"steps": n, "gap": exact_reversal_gap(n)} for n in EXACT_STEPS],
        "log_z": log_z,
        "variants": {name: variant._asdict() for name, variant in VARIANTS.items()},
        "four_modes": runs,
    }
    (args.results / "entropy_gap.json").write_text(
        json.dumps(results, indent=1) + "\n", encoding="utf-8"
    )
    draw(results, args.results / "entropy_gap.png")
    print(table(runs))


if __name__ == "__main__":
    main()
