"""The Gaussian baseline: TorchRL's SACLoss, its networks and optimisers."""

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.objectives import SACLoss, SoftUpdate

from diffpolicy.actors import CriticConfig, NetworkConfig, build_gaussian_sac_networks
from diffpolicy.trainers.environments import observation_keys
from diffpolicy.trainers.networks import normalization
from diffpolicy.trainers.off_policy import OffPolicyModule, OffPolicyParts, Optimizer
from diffpolicy.trainers.off_policy_config import SACConfig


def sac_parts(env: EnvBase, config: SACConfig, device: torch.device) -> OffPolicyParts:
    """SAC with a tanh-squashed Gaussian (arXiv 1812.05905)."""
    loss = _loss(env, config, device)
    optimizers = {
        "critic": Optimizer("qvalue_network_params", config.lr_critic),
        "actor": Optimizer("actor_network_params", config.lr_actor, delayed=True),
    }
    if config.learn_temperature:
        optimizers["alpha"] = Optimizer("log_alpha", config.lr_temperature, delayed=True)
    qvalue_loss = loss.qvalue_v2_loss
    if config.compile_mode is not None:
        qvalue_loss = torch.compile(qvalue_loss, mode=config.compile_mode)
        loss.compile(mode=config.compile_mode)

    def update(batch: TensorDictBase, policy_moves: bool) -> dict[str, Tensor]:
        # The loss adds what the actor computes to its input.
        rows = batch.copy()
        if policy_moves:
            out = dict(loss(rows).items())
            error = rows[loss.tensor_keys.priority]
            if not config.learn_temperature:
                del out["loss_alpha"]
        else:
            value, diagnostics = qvalue_loss(rows)
            error = diagnostics["td_error"]
            out = {"loss_qvalue": value}
        batch.set(loss.tensor_keys.priority, error)
        return {**out, "td_error": error.mean()}

    return OffPolicyParts(
        loss=loss,
        update=update,
        keys=sorted(loss.in_keys, key=str),
        optimizers=optimizers,
        after_update=SoftUpdate(loss, tau=config.tau).step,
    )


def sac_module(config: SACConfig, device: torch.device) -> OffPolicyModule:
    """The Lightning module of SAC."""
    return OffPolicyModule(config, sac_parts, device)


def _loss(env: EnvBase, config: SACConfig, device: torch.device) -> SACLoss:
    networks = build_gaussian_sac_networks(
        env,
        network=NetworkConfig(actor_hidden=config.actor_hidden_sizes, normalize_observations=False),
        critic=CriticConfig(
            hidden=config.critic_hidden_sizes,
            ensemble_size=config.num_qvalue_nets,
            normalization=normalization(config.critic_normalization),
            atoms=None,
        ),
        observation_keys=observation_keys(env, config),
        device=device,
    )
    loss = SACLoss(
        networks.actor,
        # A list keeps the initial weights of every critic.
        list(networks.critic),
        num_qvalue_nets=config.num_qvalue_nets,
        loss_function="l2",
        alpha_init=config.temperature,
        fixed_alpha=not config.learn_temperature,
        target_entropy=config.target_entropy * env.action_spec_unbatched.shape[-1],
    )
    loss.make_value_estimator(gamma=config.gamma)
    # Asked for once, it becomes a buffer, which checkpoints then hold from the start.
    assert loss.target_entropy is not None
    return loss.to(device)
