"""Stable-Baselines3's PPO with VecNormalize, as a baseline that is not ours.

    pip install stable-baselines3        # in an environment of its own, with gymnasium[mujoco]
    python examples/benchmarks/sb3_ppo.py --env HalfCheetah-v5 --seeds 0 1 2 --total-frames 300000

Networks, rollouts, epochs, minibatches and Adam are those of Gaussian PPO here (two layers of 64,
16 environments of 128 steps, 10 epochs of 8 minibatches, 1e-3 falling to 0), observations and
rewards are normalised by VecNormalize, and the rest is Stable-Baselines3's. Evaluations are as
everywhere: deterministic, separate environments, 10 episodes, returns of the task itself. Results
go where ``run.py`` puts them, so that ``report.py`` draws them beside the others.
"""

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

RESULTS = Path(__file__).parent / "results"
ENVS, ROLLOUT, EPOCHS, MINIBATCHES = 16, 128, 10, 8


class Evaluations(BaseCallback):
    """The mean and standard deviation of returns, now and then."""

    def __init__(self, env: VecNormalize, every: int, episodes: int) -> None:
        super().__init__()
        self.env, self.every, self.episodes = env, every, episodes
        self.found: list[dict[str, Any]] = []

    def _on_training_start(self) -> None:
        self.evaluate()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        # The policy has moved since the last rollout, by all steps before this one.
        steps = self.num_timesteps - ENVS * ROLLOUT
        if steps // self.every > self.found[-1]["env_steps"] // self.every:
            self.evaluate(steps)

    def evaluate(self, steps: int = 0) -> None:
        sync_envs_normalization(self.training_env, self.env)
        mean, std = evaluate_policy(self.model, self.env, n_eval_episodes=self.episodes)
        self.found.append(
            {"env_steps": steps, "return_mean": mean, "return_std": std, "episodes": self.episodes}
        )


def environments(name: str, number: int, seed: int, *, training: bool) -> VecNormalize:
    """Normalised environments; those of an evaluation keep statistics and rewards as they are."""
    env = make_vec_env(name, n_envs=number, seed=seed)
    return VecNormalize(env, training=training, norm_reward=training)


def train(name: str, seed: int, frames: int, every: int, episodes: int) -> dict[str, Any]:
    """One run, in the format of ``results.json``."""
    start = time.perf_counter()
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
    evaluations = Evaluations(test, every, episodes)
    model.learn(frames, callback=evaluations)
    evaluations.evaluate(model.num_timesteps)
    return {
        "method": "sb3-ppo",
        "env": name,
        "seed": seed,
        "env_steps": model.num_timesteps,
        "gradient_steps": model._n_updates * MINIBATCHES,
        "wall_seconds": round(time.perf_counter() - start, 1),
        "config": {"eval_policy": "deterministic"},
        "versions": {p: version(p) for p in ("stable-baselines3", "torch", "gymnasium", "mujoco")},
        "evaluations": evaluations.found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--env", default="HalfCheetah-v5", help="Gymnasium id")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--total-frames", type=int, default=300_000)
    parser.add_argument("--eval-every", type=int, default=20_000)
    parser.add_argument("--eval-episodes", type=int, default=10)
    parser.add_argument("--results", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.results / args.env
    folder.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        found = train(args.env, seed, args.total_frames, args.eval_every, args.eval_episodes)
        path = folder / f"sb3-ppo-seed{seed}.json"
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(f"{path.name}: {found['evaluations'][-1]['return_mean']:.0f}")


if __name__ == "__main__":
    main()
