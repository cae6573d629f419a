"""Which modes trained policies keep, with sampled actions, and pictures of what they do.

    python examples/benchmarks/multimodal.py runs/benchmarks/MultiGoal-v0/*/checkpoints/last.ckpt

Give checkpoints of all methods and seeds on one task: TurningDoubleWell-v0, TurningMultiWell-v0,
GMMBandit-v0 or MultiGoal-v0. Samples are counted by mode in every heading, or, for MultiGoal-v0, by
goal from each of eight starts. Prints a Markdown table and writes
results/<env>/modes/<run>.json for every checkpoint and results/<env>-modes.png, which has one panel
for each method: its action densities beside the optimal ones, or its trajectories.

Coverage alone does not tell a policy with two modes from one broad mode between them. The distance
from the optimal density does: half the absolute difference, summed over 40 bins (1000 samples of
the optimal policy itself have about 0.07).
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from checkpoints import load  # type: ignore[import-not-found]
from multimodal_plots import (  # type: ignore[import-not-found]
    BINS,
    draw_densities,
    draw_trajectories,
    save_panels,
)
from numpy.typing import NDArray
from run import RESULTS, RUNS  # type: ignore[import-not-found]
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import ExplorationType, set_exploration_type

from collectors import (
    ModeCoverage,
    count_modes,
    evaluate,
    make_env,
    mode_coverage,
    nearest_mode,
    optimal_density,
    reached_goal,
)
from collectors.environments.tasks.modes import NO_MODE
from collectors.environments.tasks.multi_goal import (
    GOAL_RADIUS,
    GOALS,
    MultiGoalEnv,
    multi_goal_step,
)
from collectors.environments.tasks.multimodal import ActionModes, ActionModesEnv, Measure
from diffpolicy.trainers import EVALUATION_SEED, RLModule

# The losses of the denoising MDP measure the entropy before the action is squashed, unless they
# are told otherwise.
LATENT_ENTROPY = ("diffppo", "diffsac", "diffwpo", "gaussian_wpo")
STARTS, START_STD, STEPS = 8, 0.1, 50
LATENT_BOUND = 4.0
DRAWN_TRAJECTORIES = 12

FloatArray = NDArray[np.floating[Any]]
IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """A policy on its task.

    Attributes:
        name: name of the run, ``<method>-seed<k>``.
        config: configuration of the run.
        temperature: weight of the entropy against the task's own rewards; 0 where it has none.
        returns: of sampled episodes.
        samples: ``[K, S, 1]`` actions in each state, or ``[K, S, STEPS + 1, 2]`` positions.
        histogram: ``[K, M]`` samples in each mode.
    """

    name: str
    config: Any
    temperature: float
    returns: list[float]
    samples: FloatArray
    histogram: IntArray

    @property
    def label(self) -> str:
        """The name without the seed."""
        return self.name.rpartition("-seed")[0] or self.name

    def modes(self) -> ModeCoverage:
        """Coverage and entropy of each state ``[K]``; 0 where no sample has a mode."""
        coverage, entropy = np.zeros((2, len(self.histogram)))
        seen = self.histogram.sum(-1) > 0
        if seen.any():
            coverage[seen], entropy[seen] = mode_coverage(self.histogram[seen])
        return ModeCoverage(coverage, entropy)

    def missed(self) -> IntArray:
        """Samples ``[K]`` without a mode."""
        return np.asarray(self.samples.shape[1] - self.histogram.sum(-1))

    def distance(self) -> FloatArray | None:
        """Total variation ``[K]`` from the optimal density; None where none is known."""
        task = make_task(self.config.env)
        if not isinstance(task, ActionModes) or self.temperature == 0:
            return None
        return total_variation(self.samples, *optimal(task, self))


def make_task(env: str) -> ActionModes | MultiGoalEnv:
    """The task behind an environment's id.

    Raises:
        ValueError: for an environment whose modes are not known.
    """
    task = gym.make(env).unwrapped
    if isinstance(task, ActionModesEnv):
        return task.task
    if isinstance(task, MultiGoalEnv):
        return task
    raise ValueError(f"the modes of {env} are not known; see --help for the tasks.")


@torch.no_grad()
def act(policy: TensorDictModuleBase, observation: FloatArray) -> FloatArray:
    """Sampled actions ``[*B, A]`` for observations ``[*B, S]``."""
    values = torch.as_tensor(observation, dtype=torch.float32)
    states = TensorDict({"observation": values}, values.shape[:-1])
    with set_exploration_type(ExplorationType.RANDOM):
        return np.asarray(policy(states)["action"].double().numpy())


def sample_actions(
    policy: TensorDictModuleBase, task: ActionModes, samples: int
) -> tuple[FloatArray, IntArray]:
    """Actions ``[K, samples, 1]`` in every state, and the mode ``[K, samples]`` of each."""
    states = np.repeat(task.observations[:, None], samples, axis=1)
    actions = act(policy, states)
    return actions, nearest_mode(actions[..., 0], task.maxima)


def sample_trajectories(policy: TensorDictModuleBase, samples: int) -> tuple[FloatArray, IntArray]:
    """Positions ``[STARTS, samples, STEPS + 1, 2]`` and the goal ``[STARTS, samples]`` of each.

    Every start is shared by ``samples`` trajectories, so that what is counted is the choice of the
    policy and not that of the start. A trajectory stays where it has reached a goal.
    """
    starts = START_STD * np.random.default_rng(EVALUATION_SEED).standard_normal((STARTS, 1, 2))
    position = np.repeat(starts, samples, axis=1)
    path = [position]
    for _ in range(STEPS):
        running = reached_goal(position, GOALS, GOAL_RADIUS) == NO_MODE
        moved = multi_goal_step(position, act(policy, position)).position
        position = np.where(running[..., None], moved, position)
        path.append(position)
    return np.stack(path, -2), reached_goal(position, GOALS, GOAL_RADIUS)


def temperature(module: RLModule) -> float:
    """The weight of the entropy in the module's loss, 0 if it has none.

    Ours hold a :class:`objectives.Temperature`, TorchRL's SAC ``log_alpha``, and PPO has a bonus.
    """
    loss = module.loss
    if hasattr(loss, "temperature"):
        return float(loss.temperature())
    if hasattr(loss, "log_alpha"):
        return float(loss.log_alpha.detach().exp())
    return float(getattr(module.config, "entropy_coeff", 0.0))


def optimal(task: ActionModes, run: Measured) -> tuple[FloatArray, FloatArray]:
    """Actions ``[G]`` and the density there of the policy that the run should have learned."""
    squashed = getattr(run.config, "squashed_entropy", run.config.method not in LATENT_ENTROPY)
    kind: Measure = "action" if squashed else "latent"
    grid = np.tanh(np.linspace(-LATENT_BOUND, LATENT_BOUND, 4001))
    return grid, optimal_density(task.reward, run.temperature, grid, measure=kind)


def total_variation(actions: FloatArray, grid: FloatArray, density: FloatArray) -> FloatArray:
    """Distance ``[K]`` of samples ``[K, S, 1]`` from a density, both counted in bins."""
    shares = [np.histogram(values, BINS)[0] / values.size for values in actions]
    exact = np.histogram(grid, BINS, weights=density * np.gradient(grid))[0]
    return np.abs(np.array(shares) - exact / exact.sum()).sum(-1) / 2


def sampled_returns(module: RLModule, episodes: int) -> list[float]:
    """Returns of sampled episodes on the evaluation environments of training runs."""
    config = module.config
    env = make_env(config.env, num_envs=episodes, max_episode_steps=config.max_episode_steps)
    random = ExplorationType.RANDOM
    returns, _ = evaluate(
        module.actor, env, episodes, seed=EVALUATION_SEED, exploration_type=random
    )
    env.close()
    return returns


def reward_unit(module: Any) -> float:
    """How much of the task's reward counts as one for the method."""
    scale = module.rewards.scale
    return 1 / module.config.reward_scale if scale is None else float(scale.size)


def measure(checkpoint: str, samples: int, episodes: int) -> Measured:
    """Sample from the policy of a checkpoint; its noise is the same at every call."""
    name, module = load(checkpoint)
    config: Any = module.config
    task = make_task(config.env)
    module.actor.eval()
    torch.manual_seed(EVALUATION_SEED)
    if isinstance(task, ActionModes):
        drawn, modes = sample_actions(module.actor, task, samples)
        count = len(task.maxima)
    else:
        drawn, modes = sample_trajectories(module.actor, samples)
        count = len(GOALS)
    return Measured(
        name=name,
        config=config,
        temperature=temperature(module) * reward_unit(module),
        returns=sampled_returns(module, episodes),
        samples=drawn,
        histogram=count_modes(modes, count),
    )


def write(measured: Measured, folder: Path) -> None:
    """Write what was counted, with the configuration that it was counted for."""
    coverage, entropy = measured.modes()
    distance = measured.distance()
    config = measured.config
    output = str(RUNS / config.env / measured.name)
    content = {
        "method": config.method,
        "env": config.env,
        "seed": config.seed,
        "temperature": measured.temperature,
        "return_mean": float(np.mean(measured.returns)),
        "return_std": float(np.std(measured.returns)),
        "episodes": len(measured.returns),
        "samples": measured.samples.shape[1],
        "histogram": measured.histogram.tolist(),
        "missed": measured.missed().tolist(),
        "coverage": coverage.tolist(),
        "entropy": entropy.tolist(),
        "distance": None if distance is None else distance.tolist(),
        "config": {**vars(config), "output": output},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{measured.name}.json").write_text(json.dumps(content) + "\n", encoding="utf-8")


def table(runs: Sequence[Measured]) -> str:
    """A Markdown table, one row for each run."""
    lines = [
        "| method | seed | return | coverage, worst | mean | entropy | missed | distance |",
        "| --- " * 8 + "|",
    ]
    for run in runs:
        coverage, entropy = run.modes()
        numbers = f"{coverage.min():.2f} | {coverage.mean():.2f} | {entropy.mean():.2f}"
        missed = run.missed().sum() / (len(run.histogram) * run.samples.shape[1])
        start = f"| {run.label} | {run.config.seed} | {np.mean(run.returns):.1f}"
        distance = run.distance()
        cell = "" if distance is None else f"{distance.mean():.2f}"
        lines.append(f"{start} | {numbers} | {missed:.0%} | {cell} |")
    return "\n".join(lines)


def draw(runs: Sequence[Measured], path: Path) -> None:
    """Save a picture with one panel for each method."""
    task = make_task(runs[0].config.env)
    panels = []
    for label in dict.fromkeys(run.label for run in runs):
        shown = [run for run in runs if run.label == label]
        if isinstance(task, ActionModes):
            rows = np.concatenate([run.samples[..., 0] for run in shown])
            weights = [run.temperature for run in shown]
            curves = [optimal(task, run) for run in shown if run.temperature > 0]
            title = f"{label}, T = {np.mean(weights):.2g}"
            panels.append(partial(draw_densities, title=title, samples=rows, optimal=curves))
        else:
            paths = shown[0].samples[:, :DRAWN_TRAJECTORIES]
            title = f"{label}, seed {shown[0].config.seed}"
            panels.append(
                partial(draw_trajectories, title=title, paths=paths.reshape(-1, *paths.shape[2:]))
            )
    save_panels(panels, path)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the results, draw the picture and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", help="of runs on the same task")
    parser.add_argument("--samples", type=int, default=1000, help="per heading or start")
    parser.add_argument("--episodes", type=int, default=10, help="for the return")
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    for name in ("samples", "episodes"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}.")
    try:
        runs = [measure(path, args.samples, args.episodes) for path in args.checkpoints]
    except (ValueError, OSError) as error:
        parser.error(str(error))
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        parser.error(f"runs must have different names, got {', '.join(names)}.")
    envs = {run.config.env for run in runs}
    if len(envs) > 1:
        parser.error(f"checkpoints must be of one task, got {', '.join(sorted(envs))}.")
    (env,) = envs
    for run in runs:
        write(run, args.results / env / "modes")
    draw(runs, args.results / f"{env}-modes.png")
    print(table(runs))


if __name__ == "__main__":
    main()
