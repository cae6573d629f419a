"""DiffPPO and DIME in plain TorchRL loops, without Lightning.

python examples/plain_loop.py --method diffppo --env InvertedPendulum-v5 --total-frames 50000
python examples/plain_loop.py --method dime --env Pendulum-v1 --total-frames 8000
"""

import argparse
from collections.abc import Sequence
from functools import partial

import torch
from tensordict.nn import TensorDictModule
from torchrl.envs import ExplorationType

from collectors import episode_stats, evaluate, make_collector, make_env, make_replay_buffer
from diffpolicy.actors import build_dime_networks, build_ppo_networks
from objectives import DiffPPOLoss, DIMELoss, LearnedTemperature


def diffppo(args: argparse.Namespace) -> TensorDictModule:
    """Rollouts, epochs over their denoising steps, the next rollout."""
    num_envs, rollout_steps, epochs, minibatches = 16, 64, 10, 8
    env_fn = partial(make_env, args.env, num_envs=num_envs)
    actor, critic, normalizer = build_ppo_networks(env_fn(), denoising_steps=4)
    loss = DiffPPOLoss(actor, critic, temperature=0.0)
    loss.make_value_estimator(gamma=0.99, lmbda=0.95)
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-4, eps=1e-5)

    frames = num_envs * rollout_steps
    total_frames = -(-args.total_frames // frames) * frames
    collector = make_collector(
        env_fn, actor, frames_per_batch=frames, total_frames=total_frames, seed=args.seed
    )
    for iteration, rollout in enumerate(collector, start=1):  # [environments, time]
        loss.value_estimator(rollout)
        rows = loss.chain_rows(rollout).reshape(-1)  # one row per denoising step
        for _ in range(epochs):
            for index in torch.randperm(len(rows)).chunk(minibatches):
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
    return actor


def dime(args: argparse.Namespace) -> TensorDictModule:
    """Random steps into a replay buffer, then one update for every step."""
    num_envs, random_frames = 4, 1000
    env_fn = partial(make_env, args.env, num_envs=num_envs)
    actor, critic, _ = build_dime_networks(env_fn(), denoising_steps=8)
    temperature = LearnedTemperature(1.0, target_entropy=-4.0 * actor.process.action_dim)
    loss = DIMELoss(actor, critic, temperature=temperature).train()
    loss.make_value_estimator(gamma=0.99)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3, betas=(0.5, 0.999))

    buffer = make_replay_buffer(args.total_frames, batch_size=256, seed=args.seed)
    collector = make_collector(
        env_fn,
        actor,
        frames_per_batch=num_envs,
        random_frames=random_frames,
        total_frames=-(-args.total_frames // num_envs) * num_envs,
        seed=args.seed,
    )
    for iteration, rollout in enumerate(collector, start=1):  # one step of every environment
        buffer.extend(rollout.select(*loss.in_keys).reshape(-1))
        frames = iteration * num_envs
        if frames == random_frames:
            loss.derive_value_range(buffer[:], margin=4.0)
        for _ in range(num_envs if frames > random_frames else 0):
            terms = loss(buffer.sample())
            optimizer.zero_grad()
            sum(value for key, value in terms.items() if key.startswith("loss_")).backward()
            torch.nn.utils.clip_grad_value_(loss.actor_network_params.parameters(), 1.0)
            optimizer.step()
        stats = episode_stats(rollout)
        if stats.count:
            mean = stats.return_sum / stats.count
            print(f"{frames} frames, mean return {mean:.1f}, alpha {loss.temperature():.3f}")
    collector.shutdown()
    return actor


def main(argv: Sequence[str] | None = None) -> float:
    """Train on a Gymnasium task and return the mean evaluation return."""
    parser = argparse.ArgumentParser(description="DiffPPO and DIME in plain TorchRL loops.")
    parser.add_argument("--method", choices=["diffppo", "dime"], default="diffppo")
    parser.add_argument("--env", default="InvertedPendulum-v5")
    parser.add_argument("--total-frames", type=int, default=51_200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)

    torch.manual_seed(args.seed)
    methods = {"diffppo": diffppo, "dime": dime}
    policies = {"diffppo": ExplorationType.DETERMINISTIC, "dime": ExplorationType.RANDOM}
    actor = methods[args.method](args)
    evaluation_env = make_env(args.env, num_envs=10)
    returns, _ = evaluate(
        actor,
        evaluation_env,
        episodes=10,
        seed=args.seed + 1,
        exploration_type=policies[args.method],
    )
    result = sum(returns) / len(returns)
    print(f"evaluation return {result:.1f}")
    return result


if __name__ == "__main__":
    main()
