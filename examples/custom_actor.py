"""Your own actor with DiffPPOLoss: first a score network, then a whole actor written by hand.

python examples/custom_actor.py
"""

import argparse
from collections.abc import Sequence
from functools import partial

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, exploration_type

from collectors import evaluate, make_collector, make_env
from diffpolicy.actors import ActionSquash, ActorKeys, DenoisingActor
from diffpolicy.sde import DenoisingProcess, Gaussian, gaussian_log_prob
from objectives import DiffPPOLoss


class GatedScore(nn.Module):
    """Any module with this ``forward`` can be the score network of a :class:`DenoisingActor`."""

    def __init__(self, action_dim: int, observation_dim: int, steps: int, width: int = 64) -> None:
        super().__init__()
        self.step_gate = nn.Embedding(steps, width)
        self.body = nn.Sequential(nn.Linear(action_dim + observation_dim, width), nn.Tanh())
        self.head = nn.Linear(width, action_dim)

    def forward(self, latent: Tensor, step: Tensor, observation: Tensor) -> Tensor:
        """Score ``[*B, A]`` of latents ``[*B, A]`` at integer steps ``[*B]``."""
        features = self.body(torch.cat((latent, observation), -1))
        return self.head(features * self.step_gate(step).sigmoid())


class TwoStepActor(TensorDictModuleBase):
    """A hand-written actor: two refinements of a Gaussian sample, each by its own network.

    It offers the members of :class:`diffpolicy.actors.ChainActor`; nothing else is asked of it.
    The noising kernel is the prior itself, so the log-ratio is a plain entropy cost.
    """

    denoising_steps = 2

    def __init__(self, spec: Bounded, observation_dim: int, width: int = 64) -> None:
        super().__init__()
        self.keys = ActorKeys()
        self.in_keys = ["observation"]
        self.out_keys = [self.keys.action, *self.keys.chain]
        self.squash = ActionSquash.from_spec(spec)
        self.action_dim = self.squash.action_dim
        features = self.action_dim + observation_dim
        self.nets = nn.ModuleList(
            nn.Sequential(nn.Linear(features, width), nn.Tanh(), nn.Linear(width, self.action_dim))
            for _ in range(self.denoising_steps)
        )
        self.log_std = nn.Parameter(torch.full((self.denoising_steps, self.action_dim), -0.7))

    def sample_prior(self, batch_size: tuple[int, ...], noise: Tensor | None = None) -> Tensor:
        """Standard normal ``x_0``."""
        return torch.randn(*batch_size, self.action_dim) if noise is None else noise

    def _kernels(self, latent: Tensor, observation: Tensor) -> list[Gaussian]:
        features = torch.cat((latent, observation), -1)
        return [
            Gaussian(0.5 * latent + net(features), std.exp().expand_as(latent))
            for net, std in zip(self.nets, self.log_std, strict=True)
        ]

    def denoising_kernel(self, rows: TensorDictBase) -> Gaussian:
        """The kernel of each row's own step."""
        first, second = self._kernels(rows["latent"], rows["observation"])
        is_first = rows["step"] == 0
        return Gaussian(*(torch.where(is_first, a, b) for a, b in zip(first, second, strict=True)))

    def noising_kernel(self, rows: TensorDictBase) -> Gaussian:
        """A standard normal, whatever the next latent is."""
        zeros = torch.zeros_like(rows["next_latent"])
        return Gaussian(zeros, zeros + 1)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Run the two steps, without noise under deterministic exploration, and write the chain."""
        scale = 0.0 if exploration_type() == ExplorationType.DETERMINISTIC else 1.0
        observation = tensordict["observation"]
        latents, kernels = [scale * self.sample_prior(observation.shape[:-1])], []
        for step in range(self.denoising_steps):
            kernel = self._kernels(latents[-1], observation)[step]
            kernels.append(kernel)
            latents.append(kernel.mean + scale * kernel.std * torch.randn_like(kernel.mean))
        path = torch.stack(latents, -2)
        denoising = Gaussian(*(torch.stack(parts, -2) for parts in zip(*kernels, strict=True)))
        before = path[..., :-1, :]
        noising = Gaussian(torch.zeros_like(before), torch.ones_like(before))
        log_prob = gaussian_log_prob(path[..., 1:, :], denoising)
        tensordict.set("action", self.squash(latents[-1]))
        tensordict.set("latents", path)
        tensordict.set("log_prob", log_prob)
        tensordict.set("log_ratio", log_prob - gaussian_log_prob(before, noising))
        tensordict.set("kernel_mean", denoising.mean)
        tensordict.set("kernel_std", denoising.std)
        return tensordict


class Value(nn.Module):
    """``V(s, x_n, n)`` of two steps."""

    def __init__(self, features: int, width: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(features, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, observation: Tensor, latent: Tensor, step: Tensor) -> Tensor:
        """Value ``[*B, 1]``."""
        return self.net(torch.cat((observation, latent, step.to(latent)), -1))


def train(actor: TensorDictModuleBase, env_name: str, total_frames: int, seed: int) -> float:
    """Train an actor with DiffPPOLoss and return its mean evaluation return."""
    env = make_env(env_name, num_envs=10)
    features = env.observation_spec_unbatched["observation"].shape[-1]
    action_dim = env.action_spec_unbatched.shape[-1]
    critic = TensorDictModule(
        Value(features + action_dim + 1), ["observation", "latent", "step"], ["state_value"]
    )
    loss = DiffPPOLoss(actor, critic)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    env_fn = partial(make_env, env_name, num_envs=16)
    collector = make_collector(
        env_fn, actor, frames_per_batch=1024, total_frames=total_frames, seed=seed
    )
    for rollout in collector:
        loss.value_estimator(rollout)
        rows = loss.chain_rows(rollout).reshape(-1)
        for _ in range(10):
            for index in torch.randperm(len(rows)).chunk(4):
                terms = loss(rows[index])
                optimizer.zero_grad()
                sum(value for key, value in terms.items() if key.startswith("loss_")).backward()
                torch.nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
    collector.shutdown()
    returns, _ = evaluate(actor, env, episodes=10, seed=seed + 1)
    return sum(returns) / len(returns)


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Train both actors and return their mean evaluation returns."""
    parser = argparse.ArgumentParser(description="DiffPPO with user-written actors.")
    parser.add_argument("--env", default="InvertedPendulum-v5")
    parser.add_argument("--total-frames", type=int, default=61_440)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    env = make_env(args.env)
    spec = env.action_spec_unbatched
    observation_dim = env.observation_spec_unbatched["observation"].shape[-1]
    action_dim = spec.shape[-1]
    own_score = DenoisingActor(
        DenoisingProcess(action_dim, denoising_steps=4, prior_std=0.6, step_size=0.2),
        GatedScore(action_dim, observation_dim, steps=4),
        ActionSquash.from_spec(spec),
        return_chain=True,
    )
    actors = {"own score network": own_score, "own actor": TwoStepActor(spec, observation_dim)}
    results = {}
    for name, actor in actors.items():
        results[name] = train(actor, args.env, args.total_frames, args.seed)
        print(f"{name}: evaluation return {results[name]:.1f}")
    return results


if __name__ == "__main__":
    main()
