"""Builders of off-policy networks: sizes, statistics, presets against the published numbers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Bounded, Unbounded
from torchrl.envs import EnvBase
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.objectives import SACLoss, SoftUpdate

from diffpolicy.actors import (
    DIME_CPU,
    DIME_PAPER,
    DIME_PROCESS,
    ActorCritic,
    ActorKeys,
    CriticConfig,
    NetworkConfig,
    PathActor,
    build_dime_networks,
    build_gaussian_sac_networks,
)
from diffpolicy.networks import BatchRenorm, QEnsemble
from objectives import DIMELoss, LearnedTemperature

MakeEnv = Callable[..., EnvBase]
SEVERAL = {("sensors", "speed"): Unbounded((4,)), "position": Unbounded((3,))}
SMALL = {
    "network": NetworkConfig(actor_hidden=(8,), normalize_observations=False),
    "critic": CriticConfig(hidden=(9, 10), atoms=21),
}


@pytest.fixture
def half_cheetah(make_env: MakeEnv) -> EnvBase:
    """An environment with the sizes of HalfCheetah: 17 observations, 6 actions in [-1, 1]."""
    return make_env(
        action_spec=Bounded(-1.0, 1.0, (6,)), observations={"observation": Unbounded((17,))}
    )


def ensemble(networks: ActorCritic) -> QEnsemble:
    (found,) = [module for module in networks.critic.modules() if isinstance(module, QEnsemble)]
    return found


def transitions(env: EnvBase, networks: ActorCritic, steps: int = 5) -> TensorDict:
    with set_exploration_type(ExplorationType.RANDOM), torch.no_grad():
        return env.rollout(steps, networks.actor)


@pytest.mark.parametrize("batch_size", [(), (5,)])
@pytest.mark.parametrize("atoms", [None, 21])
def test_dime_networks_have_the_sizes_of_the_environment(
    make_env: MakeEnv, batch_size: tuple[int, ...], atoms: int | None
) -> None:
    env = make_env(batch_size=batch_size)
    critic_config = CriticConfig(hidden=(9, 10), ensemble_size=3, atoms=atoms)
    networks = build_dime_networks(
        env, denoising_steps=3, network=SMALL["network"], critic=critic_config
    )
    actor, critic, normalizer = networks
    data = critic(transitions(env, networks))

    assert isinstance(actor, PathActor)
    assert actor.denoising_steps == 3
    assert actor.out_keys == ["action"]
    assert normalizer is None
    assert critic.in_keys == ["observation", "action"]
    assert data["action"].shape == (*batch_size, 5, 2)
    assert data["state_action_value"].shape == (*batch_size, 5, 3, 1)
    logits = ["state_action_value_logits"] if atoms else []
    assert critic.out_keys == ["state_action_value", *logits]
    if atoms is not None:
        assert data["state_action_value_logits"].shape == (*batch_size, 5, 3, 21)


def test_dime_defaults_are_the_cpu_preset(make_env: MakeEnv) -> None:
    env = make_env()
    torch.manual_seed(1)
    default = build_dime_networks(env)
    torch.manual_seed(1)
    preset = build_dime_networks(env, **vars(DIME_CPU))
    for one, other in zip(default[:2], preset[:2], strict=True):
        for (name, value), (_, expected) in zip(
            one.state_dict().items(), other.state_dict().items(), strict=True
        ):
            assert torch.equal(value, expected), name
    assert default.actor.denoising_steps == preset.actor.denoising_steps == 8


def test_dime_reads_several_nested_observation_keys(make_env: MakeEnv) -> None:
    env = make_env(observations=SEVERAL, batch_size=(5,))
    networks = build_dime_networks(env, observation_keys=list(SEVERAL), **SMALL)
    assert networks.actor.in_keys == list(SEVERAL)
    assert networks.critic.in_keys == [*SEVERAL, "action"]
    networks.critic.eval()

    data = transitions(env, networks)
    value = networks.critic(data.clone())["state_action_value"]
    assert value.shape == (5, 5, 2, 1)
    for key in SEVERAL:
        changed = data.clone().set(key, data[key] + 1)
        assert (networks.critic(changed)["state_action_value"] != value).all()


def test_dime_keys_may_be_renamed_and_nested(make_env: MakeEnv) -> None:
    env = make_env(action_key=("agent", "move"), batch_size=(5,))
    keys = ActorKeys(action=("agent", "move"))
    networks = build_dime_networks(env, keys=keys, **SMALL)
    data = transitions(env, networks)
    assert data["agent", "move"].shape == (5, 5, 2)
    assert networks.critic.in_keys == ["observation", ("agent", "move")]
    loss = DIMELoss(*networks[:2], temperature=0.1)
    assert loss(data.reshape(-1))["loss_qvalue"].isfinite()


def test_critic_sees_asymmetric_actions_in_unit_range(make_env: MakeEnv) -> None:
    env = make_env()  # actions in [-2, 2] x [0.1, 0.3]
    networks = build_dime_networks(env, network=SMALL["network"])
    seen: list[Tensor] = []

    def remember(module: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.append(inputs[0])

    ensemble(networks).net.register_forward_pre_hook(remember)
    action = torch.tensor([[-2.0, 0.3], [2.0, 0.1], [1.0, 0.2]])
    networks.critic(TensorDict({"observation": torch.randn(3, 3), "action": action}, [3]))
    expected = torch.tensor([[-1.0, 1.0], [1.0, -1.0], [0.5, 0.0]])
    torch.testing.assert_close(seen[0][..., 3:], expected.expand(2, 3, 2))


def test_dime_statistics_are_shared_when_asked_for(make_env: MakeEnv) -> None:
    options = {**SMALL, "network": replace(SMALL["network"], normalize_observations=True)}
    env = make_env(observations=SEVERAL)
    actor, critic, normalizer = build_dime_networks(env, observation_keys=list(SEVERAL), **options)
    critic.eval()
    assert normalizer is not None
    assert normalizer.mean.shape == (7,)
    for module in (actor, critic):
        assert any(submodule is normalizer for submodule in module.modules())
    data = TensorDict({"position": torch.randn(6, 3), "action": torch.randn(6, 2)}, [6])
    data["sensors", "speed"] = torch.randn(6, 4)
    before = critic(data.clone())["state_action_value"]
    normalizer.update(10 + 5 * torch.randn(100, 7))
    assert (critic(data.clone())["state_action_value"] != before).all()


def test_critic_options_reach_the_ensemble(make_env: MakeEnv) -> None:
    config = CriticConfig(atoms=11, value_range=(-30.0, 70.0), warmup_steps=123)
    network = ensemble(build_dime_networks(make_env(), critic=config))
    assert network.support is not None
    assert network.support.atoms.tolist() == torch.linspace(-30, 70, 11).tolist()
    norms = [module for module in network.modules() if isinstance(module, BatchRenorm)]
    assert [norm.running_mean.shape[-1] for norm in norms] == [5, 256, 256]
    assert {norm.warmup_steps for norm in norms} == {123}
    layered = ensemble(build_dime_networks(make_env(), critic=CriticConfig(normalization="layer")))
    assert not any(isinstance(module, BatchRenorm) for module in layered.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"atoms": 1}, "atoms must be at least 2, got 1"),
        ({"value_range": (3.0, 3.0)}, "minimum must be below maximum"),
        ({"normalization": "group"}, "normalization must be 'batch', 'layer' or None, got 'group'"),
        ({"hidden": (8, 0)}, "every layer width must be at least 1"),
        ({"ensemble_size": 0}, "ensemble_size and every layer width must be at least 1"),
        ({"warmup_steps": -1}, "warmup_steps=-1"),
    ],
)
def test_bad_critic_options_are_refused(make_env: MakeEnv, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_dime_networks(make_env(), critic=CriticConfig(**options))


@pytest.mark.parametrize("builder", [build_dime_networks, build_gaussian_sac_networks])
@pytest.mark.parametrize(
    "options", [{"critic_hidden": (128, 128)}, {"value_support": (-1.0, 1.0, 21)}]
)
def test_options_of_value_functions_are_refused(
    make_env: MakeEnv, builder: Callable, options: dict
) -> None:
    network = NetworkConfig(normalize_observations=False, **options)
    with pytest.raises(ValueError, match=r"is for the value functions of PPO.*CriticConfig"):
        builder(make_env(), network=network)


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def layers(widths: Sequence[int]) -> int:
    """Weights and biases of linear layers."""
    return sum((before + 1) * after for before, after in pairwise(widths))


def test_paper_preset_has_the_published_sizes(half_cheetah: EnvBase) -> None:
    """Counted from the description: 17 observations, 6 actions, everything else as published."""
    actor, critic, normalizer = build_dime_networks(half_cheetah, **vars(DIME_PAPER))
    assert normalizer is None

    phases = 256
    step_embedding = layers([2 * 256, 256, 256])
    score = layers([6 + 17 + 256, 256, 256, 256, 6])
    step_size, friction = 1, 6
    assert parameters(actor) == phases + step_embedding + score + step_size + friction == 402_189

    widths = [17 + 6, 2048, 2048, 101]
    scale_and_shift = 2 * (23 + 2048 + 2048)
    assert parameters(critic) == 2 * (layers(widths) + scale_and_shift) == 8_921_382
    assert actor.denoising_steps == 16
    assert actor.score_network.latent_scale == 1.0
    assert actor.score_network.clip == 1e4
    assert (actor.score_network.net[-1].weight == 1e-8).all()
    assert all(parameter.requires_grad for parameter in actor.parameters())


def test_presets_share_process_and_critic_type() -> None:
    assert DIME_PAPER.process is DIME_CPU.process is DIME_PROCESS
    for preset in (DIME_PAPER, DIME_CPU):
        assert preset.critic.atoms == 101
        assert preset.critic.normalization == "batch"
        assert preset.critic.ensemble_size == 2
        assert not preset.network.normalize_observations


PUBLISHED_STEP_SIZES = [
    *(0.0999845, 0.0987991, 0.0957698, 0.0910112, 0.0847033, 0.0770847, 0.0684436, 0.0591067),
    *(0.0494273, 0.0397714, 0.0305043, 0.0219765, 0.0145105, 0.0083888, 0.0038429, 0.0010447),
]


def test_step_sizes_start_as_published(half_cheetah: EnvBase) -> None:
    actor = build_dime_networks(half_cheetah, denoising_steps=16).actor
    step_sizes = actor.process.step_sizes()
    expected = torch.tensor(PUBLISHED_STEP_SIZES).unsqueeze(-1).expand(16, 6)
    torch.testing.assert_close(step_sizes, expected, rtol=0, atol=1e-6)
    assert step_sizes[:, 0].sum().item() == pytest.approx(0.844369, abs=1e-6)
    assert actor.process.prior_std.item() == 2.5
    assert actor.process.noising_step == "same"


def test_entropy_costs_start_as_published(half_cheetah: EnvBase) -> None:
    """run = 2.856 d and term = -2.335 d on average."""
    actor = build_dime_networks(half_cheetah, denoising_steps=16, **SMALL).actor
    rows = 50_000
    with torch.no_grad():
        path = actor.sample_path(TensorDict({"observation": torch.randn(rows, 17)}, [rows]))
    for cost, published in ((path.running_cost, 2.856), (path.terminal_cost, -2.33523)):
        per_dimension = cost / 6
        error = per_dimension.std().item() / rows**0.5
        assert error < 0.005
        assert per_dimension.mean().item() == pytest.approx(published, abs=4 * error)


def test_dime_losses_reach_every_parameter(make_env: MakeEnv) -> None:
    env = make_env(batch_size=(20,))
    networks = build_dime_networks(env)
    data = transitions(env, networks).reshape(-1)
    with torch.no_grad():  # the last layer must not be almost zero for gradients in the others
        networks.actor.score_network.net[-1].weight.normal_()
    temperature = LearnedTemperature(1.0, target_entropy=-8.0)
    loss = DIMELoss(networks.actor, networks.critic, temperature=temperature)
    out = loss(data)
    (out["loss_qvalue"] + out["loss_actor"] + out["loss_alpha"]).backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


def test_reset_through_the_loss_restores_the_published_start(make_env: MakeEnv) -> None:
    networks = build_dime_networks(make_env(), **vars(DIME_CPU))
    loss = DIMELoss(networks.actor, networks.critic, temperature=0.1)
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(1.0)
    loss.reset_parameters_recursive()
    *hidden, last = networks.actor.score_network.net[::2]
    assert (last.weight == 1e-8).all()
    for layer in hidden:
        assert layer.weight.std().item() == pytest.approx(layer.in_features**-0.5, rel=0.05)
        assert (layer.bias == 0).all()
    assert networks.actor.process.step_sizes().max().item() == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("normalization", [None, "layer"])
def test_gaussian_baseline_trains_with_torchrl(
    make_env: MakeEnv, normalization: str | None
) -> None:
    env = make_env(observations=SEVERAL, batch_size=(20,))
    critic = CriticConfig(normalization=normalization, atoms=None, ensemble_size=3)
    networks = build_gaussian_sac_networks(env, critic=critic, observation_keys=list(SEVERAL))
    critics = list(networks.critic)
    assert networks.normalizer is None
    assert len(critics) == 3
    data = transitions(env, networks)
    assert critics[0](data.clone())["state_action_value"].shape == (20, 5, 1)
    assert (data["scale"].std(dim=(0, 1)) > 0).all()

    loss = SACLoss(networks.actor, critics, num_qvalue_nets=3, action_spec=env.action_spec)
    weights = loss.qvalue_network_params["module", "network", "ensemble", "net", "0", "weight"]
    for index, member in enumerate(critics):
        assert torch.equal(weights[index], member.module.network.ensemble.net[0].weight)
    assert not torch.equal(weights[0], weights[1])
    SoftUpdate(loss, tau=0.01)  # TorchRL warns about target networks that nothing updates
    out = loss(data.reshape(-1))
    (out["loss_actor"] + out["loss_qvalue"] + out["loss_alpha"]).backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": NetworkConfig()}, "normalize_observations=True does not go with SACLoss"),
        ({"critic": CriticConfig(normalization=None)}, "scalar critics .* got atoms=101"),
        ({"critic": CriticConfig(atoms=None)}, "got atoms=None and normalization='batch'"),
    ],
)
def test_what_sac_cannot_train_is_refused(make_env: MakeEnv, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_gaussian_sac_networks(make_env(), **options)
