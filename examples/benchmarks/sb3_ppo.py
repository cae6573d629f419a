"""Stable-Baselines3's PPO with VecNormalize, as a baseline that is not ours.

    pip install stable-baselines3        # in an environment of its own, with gymnasium[mujoco]
    python examples/benchmarks/sb3_ppo.py --env HalfCheetah-v5 --seeds 0 1 2 --total-frames 300000

Networks, rollouts, epochs, minibatches and Adam are those of Gaussian PPO here (two layers of 64,
16 environments of 128 steps, 10 epochs of 8 minibatches, 1e-3 falling to 0), observations and
rewards are normalised by VecNormalize, and the rest is Stable-Baselines3's. Evaluations are as
everywhere: deterministic, separate environments, 10 episodes, returns of the task itself. Results
go where ``run.py`` puts them, so that ``report.py`` draws them beside the others. ``protocol.py
--list`` prints the commands for docs/results.md; sb3_sac.py shares what is not PPO's alone.
"""

import argparse
import importlib
import json
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, sync_envs_normalization

RESULTS = Path(__file__).parent / "results"
ENVS, ROLLOUT, EPOCHS, MINIBATCHES = 16, 128, 10, 8
SUITE = "dmc:"


class Evaluations(BaseCallback):
    """The mean and standard deviation of returns, now and then.

    Args:
        env: where episodes are played.
        every: steps between evaluations.
        episodes: of each.
        rollout: steps of all environments between updates.
    """

    def __init__(self, env: VecEnv, every: int, episodes: int, rollout: int) -> None:
        super().__init__()
        self.env, self.every, self.episodes, self.rollout = env, every, episodes, rollout
        self.found: list[dict[str, Any]] = []

    def _on_training_start(self) -> None:
        self.evaluate()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        # The policy has moved since the last rollout, by all steps before this one.
        steps = self.num_timesteps - self.rollout
        if steps // self.every > self.found[-1]["env_steps"] // self.every:
            self.evaluate(steps)

    def evaluate(self, steps: int = 0) -> None:
        sync_envs_normalization(self.training_env, self.env)
        mean, std = evaluate_policy(self.model, self.env, n_eval_episodes=self.episodes)
        self.found.append(
            {"env_steps": steps, "return_mean": mean, "return_std": std, "episodes": self.episodes}
        )


def plain_environments(name: str, number: int, seed: int) -> VecEnv:
    """Environments of Gymnasium, or of the DeepMind Control Suite with one vector of numbers."""
    if not name.startswith(SUITE):
        return make_vec_env(name, n_envs=number, seed=seed)
    importlib.import_module("shimmy")  # registers the tasks with Gymnasium

    def build() -> gym.Env[Any, Any]:
        env = gym.make(f"dm_control/{name.removeprefix(SUITE)}-v0")
        return gym.wrappers.FlattenObservation(env)

    return make_vec_env(build, n_envs=number, seed=seed)


def environments(name: str, number: int, seed: int, *, training: bool) -> VecNormalize:
    """Normalised environments; those of an evaluation keep statistics and rewards as they are."""
    env = plain_environments(name, number, seed)
    return VecNormalize(env, training=training, norm_reward=training)


def train(name: str, seed: int, frames: int, every: int, episodes: int) -> dict[str, Any]:
    """One run, in the format of ``results.json``."""
    model = PPO(
        "MlpPolicy",
        environments(name, ENVS, seed, training=True),
        learning_rate=lambda remaining: 1e-3 * remaining,
        n_steps=ROLLOUT,
        batch_size=ENVS * ROLLOUT // MINIBATCHES,
        n_epochs=EPOCHS,
        seed=seed,
        device="cpu",
    )
    test = environments(name, episodes, seed + 10_000, training=False)
    found = learned(model, frames, Evaluations(test, every, episodes, ENVS * ROLLOUT))
    # Stable-Baselines3 counts epochs.
    gradient_steps = model._n_updates * MINIBATCHES
    return {
        "method": "sb3-ppo",
        "env": name,
        "seed": seed,
        **found,
        "gradient_steps": gradient_steps,
    }


def learned(model: Any, frames: int, evaluations: Evaluations) -> dict[str, Any]:
    """Train, and evaluate at last; returns what all of these results have."""
    start = time.perf_counter()
    model.learn(frames, callback=evaluations)
    evaluations.evaluate(model.num_timesteps)
    return {
        "env_steps": model.num_timesteps,
        "gradient_steps": model._n_updates,
        "wall_seconds": round(time.perf_counter() - start, 1),
        "config": {"eval_policy": "deterministic"},
        "versions": {p: version(p) for p in ("stable-baselines3", "torch", "gymnasium", "mujoco")},
        "evaluations": evaluations.found,
    }


def run(
    description: str | None,
    label: str,
    train: Callable[[str, int, int, int, int], dict[str, Any]],
    frames: int,
) -> None:
    """The command line of a program: train every seed and write its results.

    Args:
        description: for ``--help``.
        label: of the results, unless another is given.
        train: makes the results of a run from the task, the seed, environment steps, steps
            between evaluations, and episodes of each.
        frames: environment steps, unless others are given.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", default="HalfCheetah-v5", help="Gymnasium id or dmc:domain-task")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--label", default=label, help="name of the results")
    parser.add_argument("--total-frames", type=int, default=frames)
    parser.add_argument("--eval-every", type=int, default=20_000)
    parser.add_argument("--eval-episodes", type=int, default=10)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.results / args.env.replace(":", "-")
    folder.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        found = train(args.env, seed, args.total_frames, args.eval_every, args.eval_episodes)
        path = folder / f"{args.label}-seed{seed}.json"
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(f"{path.name}: {found['evaluations'][-1]['return_mean']:.0f}")


if __name__ == "__main__":
    run(__doc__, "sb3-ppo", train, 300_000)
