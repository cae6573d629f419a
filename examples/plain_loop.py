"""DiffPPO in a plain TorchRL loop, without Lightning.

python examples/plain_loop.py --env InvertedPendulum-v5 --total-frames 50000
"""

import argparse
from collections.abc import Sequence
from functools import partial

import torch

from collectors import episode_stats, evaluate, make_collector, make_env
from diffpolicy.actors import build_ppo_networks
from objectives import DiffPPOLoss


def main(argv: Sequence[str] | None = None) -> float:
    """Train on a Gymnasium task and return the mean evaluation return."""
    parser = argparse.ArgumentParser(description="DiffPPO in a plain TorchRL loop.")
    parser.add_argument("--env", default="InvertedPendulum-v5")
    parser.add_argument("--total-frames", type=int, default=51_200)
    parser.add_argument("--num-envs", type=int, default=16)
    parser.add_argument("--rollout-steps", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--minibatches", type=int, default=8)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    torch.manual_seed(args.seed)
    env_fn = partial(make_env, args.env, num_envs=args.num_envs)
    evaluation_env = make_env(args.env, num_envs=10)
    actor, critic, normalizer = build_ppo_networks(evaluation_env, denoising_steps=4)
    loss = DiffPPOLoss(actor, critic, temperature=args.temperature)
    loss.make_value_estimator(gamma=0.99, lmbda=0.95)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-4, eps=1e-5)

    frames = args.num_envs * args.rollout_steps
    collector = make_collector(
        env_fn,
        actor,
        frames_per_batch=frames,
        total_frames=-(-args.total_frames // frames) * frames,
        seed=args.seed,
    )
    for iteration, rollout in enumerate(collector, start=1):  # [environments, time]
        loss.value_estimator(rollout)
        rows = loss.chain_rows(rollout).reshape(-1)  # one row per denoising step
        for _ in range(args.epochs):
            for index in torch.randperm(len(rows)).chunk(args.minibatches):
                terms = loss(rows[index])
                optimizer.zero_grad()
                sum(value for key, value in terms.items() if key.startswith("loss_")).backward()
                torch.nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
        if normalizer is not None:
            normalizer.update(rollout["observation"])
        stats = episode_stats(rollout)
        mean = stats.return_sum / max(stats.count, 1)
        print(f"{iteration * frames} frames, {stats.count} episodes, mean return {mean:.1f}")
    collector.shutdown()

    returns, _ = evaluate(actor, evaluation_env, episodes=10, seed=args.seed + 1)
    result = sum(returns) / len(returns)
    print(f"evaluation return {result:.1f}")
    return result


if __name__ == "__main__":
    main()
