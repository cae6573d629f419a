"""SAC, the off-policy baseline: TorchRL's loss with a tanh-squashed Gaussian (arXiv 1812.05905)."""

from typing import ClassVar

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.envs import EnvBase
from torchrl.objectives import SACLoss

from diffpolicy.actors import NetworkConfig, build_gaussian_sac_networks
from diffpolicy.trainers.config.critic import QCriticOptions, TargetNetworkOptions
from diffpolicy.trainers.config.options import above, changed, configuration
from diffpolicy.trainers.loops.environments import observation_keys
from diffpolicy.trainers.loops.off_policy import OffPolicyParts
from diffpolicy.trainers.methods.method import Method
from diffpolicy.trainers.methods.networks import network_options, scalar_critic_config
from diffpolicy.trainers.methods.soft import SoftConfig, TargetUpdate, optimizers
from objectives.bounds import BOUNDS


@configuration(
    policy_delay=1,
    batch_size=256,
    lr_actor=3e-4,
    lr_critic=3e-4,
    lr_temperature=3e-4,
    actor_hidden_sizes=(256, 256),
    critic_hidden_sizes=(256, 256),
    critic_normalization=changed("none", choices=("layer", "none")),
    num_qvalue_nets=changed(2, text="number of Q networks, whose smallest value is a target"),
    # TorchRL's loss keeps the logarithm.
    temperature=changed(0.001, valid=above(0)),
)
class SACConfig(SoftConfig, QCriticOptions, TargetNetworkOptions):
    """SAC: the Gaussian baseline, TorchRL's loss with the published settings."""

    method: ClassVar[str] = "sac"


def sac_parts(env: EnvBase, config: SACConfig, device: torch.device) -> OffPolicyParts:
    """Networks, loss and optimisers."""
    loss = _loss(env, config, device)
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
        optimizers=optimizers(config, critic="qvalue_network_params", temperature="log_alpha"),
        after_update=TargetUpdate(loss, tau=config.tau).step,
    )


def _loss(env: EnvBase, config: SACConfig, device: torch.device) -> SACLoss:
    networks = build_gaussian_sac_networks(
        env,
        network=network_options(config, NetworkConfig(normalize_observations=False)),
        critic=scalar_critic_config(config),
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
        min_alpha=BOUNDS[0],
        max_alpha=BOUNDS[1],
        fixed_alpha=not config.learn_temperature,
        target_entropy=config.target_entropy * env.action_spec_unbatched.shape[-1],
    )
    loss.make_value_estimator(gamma=config.gamma)
    # Asked for once, it becomes a buffer, which checkpoints then hold from the start.
    assert loss.target_entropy is not None
    return loss.to(device)


SAC = Method(SACConfig, sac_parts, "TorchRL's soft actor-critic, a baseline")
