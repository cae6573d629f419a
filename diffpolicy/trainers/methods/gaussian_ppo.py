"""Gaussian PPO, the baseline of DiffPPO: TorchRL's clipped PPO."""

from typing import ClassVar

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase
from torchrl.objectives import ClipPPOLoss

from diffpolicy.actors import build_gaussian_ppo_networks
from diffpolicy.networks.ranks import sum_over_ranks
from diffpolicy.trainers.config.options import at_least, configuration, option
from diffpolicy.trainers.loops.environments import observation_keys
from diffpolicy.trainers.loops.on_policy import OnPolicyParts
from diffpolicy.trainers.methods.method import Method
from diffpolicy.trainers.methods.ppo import PPOConfig, network_config
from objectives.functional import normalized_advantage


@configuration()
class GaussianPPOConfig(PPOConfig):
    """The Gaussian baseline: TorchRL's clipped PPO."""

    method: ClassVar[str] = "gaussian_ppo"

    entropy_coeff: float = option(0.0, "weight of the entropy bonus", valid=at_least(0))


def gaussian_ppo_parts(
    env: EnvBase, config: GaussianPPOConfig, device: torch.device
) -> OnPolicyParts:
    """Networks, and TorchRL's ClipPPOLoss with a tanh-squashed Gaussian."""
    networks = build_gaussian_ppo_networks(
        env,
        observation_keys=observation_keys(env, config),
        network=network_config(config),
        device=device,
    )
    loss = _ClipPPOLoss(
        networks.actor,
        networks.critic,
        clip_epsilon=config.clip_epsilon,
        clip_value=config.clip_value,
        entropy_bonus=config.entropy_coeff > 0,
        entropy_coeff=config.entropy_coeff,
        critic_coeff=config.critic_coeff,
        loss_critic_type=config.loss_critic_type,
        normalize_advantage=False,
    ).to(device)
    loss.make_value_estimator(gamma=config.gamma, lmbda=config.lmbda)

    def prepare(rollout: TensorDictBase) -> TensorDictBase:
        loss.value_estimator(rollout)
        return rollout.reshape(-1)

    return OnPolicyParts(loss=loss, prepare=prepare, normalizer=networks.normalizer)


class _ClipPPOLoss(ClipPPOLoss):
    """Standardises the advantages of a minibatch over all ranks; TorchRL does so on each alone."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        key = self.tensor_keys.advantage
        advantage = tensordict.get(key)
        standardized, _ = normalized_advantage(
            advantage, "standardize", sum_over_ranks=sum_over_ranks
        )
        return super().forward(tensordict.copy().set(key, standardized))


GAUSSIAN_PPO = Method(GaussianPPOConfig, gaussian_ppo_parts, "TorchRL's clipped PPO, a baseline")
