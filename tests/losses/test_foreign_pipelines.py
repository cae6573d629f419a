"""The losses in pipelines that know nothing of them: TorchRL's trainers, loops, transforms."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tensordict import TensorDictBase
from tensordict.nn import EnsembleModule, TensorDictModule
from torch import Tensor, nn
from torchrl.collectors import Collector
from torchrl.data import (
    LazyTensorStorage,
    SamplerWithoutReplacement,
    TensorDictPrioritizedReplayBuffer,
    TensorDictReplayBuffer,
)
from torchrl.envs import (
    Compose,
    DoubleToFloat,
    EnvBase,
    GymEnv,
    MultiStepTransform,
    ParallelEnv,
    RewardSum,
    StepCounter,
    TransformedEnv,
    VecNormV2,
)
from torchrl.modules import MLP
from torchrl.objectives import LossModule, SoftUpdate
from torchrl.trainers import Trainer
from torchrl.trainers.algorithms import PPOTrainer, SACTrainer

from diffpolicy.actors import (
    ActionChains,
    ActorCritic,
    CriticConfig,
    NetworkConfig,
    build_diffsac_networks,
    build_diffwpo_networks,
    build_dime_networks,
    build_ppo_networks,
)
from objectives import DiffPPOLoss, DiffSACLoss, DiffWPOLoss, DIMELoss, LearnedTemperature

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*experimental/prototype.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:Support of VecNormV2.*is experimental:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

STEPS, FRAMES = 2, 60
NETWORK = NetworkConfig(actor_hidden=(16,), critic_hidden=(16,), normalize_observations=False)
Q_NETWORK = NetworkConfig(actor_hidden=(16,), normalize_observations=False)
CRITIC = CriticConfig(hidden=(16,), normalization=None, atoms=None)
OFF_POLICY = pytest.mark.parametrize("kind", [DIMELoss, DiffSACLoss, DiffWPOLoss])
BUILD: dict[type, Any] = {
    DIMELoss: build_dime_networks,
    DiffSACLoss: build_diffsac_networks,
    DiffWPOLoss: build_diffwpo_networks,
}


def make_env(*transforms: Any) -> EnvBase:
    wrapped = Compose(
        DoubleToFloat(), *transforms, RewardSum(["reward"], ["reward_sum"]), StepCounter(20)
    )
    return TransformedEnv(GymEnv("Pendulum-v1"), wrapped)


def q_networks(kind: type) -> ActorCritic:
    torch.manual_seed(0)
    networks: ActorCritic = BUILD[kind](
        make_env(), denoising_steps=STEPS, network=Q_NETWORK, critic=CRITIC
    )
    return networks


def off_policy(kind: type, **options: Any) -> LossModule:
    networks = q_networks(kind)
    options = {"temperature": LearnedTemperature(1.0), "delay_qvalue": True, **options}
    return kind(networks.actor, networks.critic, **options)


def on_policy(kind: type) -> LossModule:
    if kind is DiffWPOLoss:
        return off_policy(kind, delay_qvalue=False)
    torch.manual_seed(0)
    networks = build_ppo_networks(make_env(), denoising_steps=STEPS, network=NETWORK)
    return DiffPPOLoss(networks.actor, networks.critic, temperature=0.1)


def collector_of(policy: Any, env: Any = make_env, **options: Any) -> Collector:
    return Collector(env, policy, frames_per_batch=20, total_frames=FRAMES, **options)


def replay(**options: Any) -> TensorDictReplayBuffer:
    return TensorDictReplayBuffer(storage=LazyTensorStorage(200), batch_size=10, **options)


def assert_moved(loss: LossModule, before: dict[str, Tensor]) -> None:
    """Every parameter is finite, and those that are trained moved."""
    for name, parameter in loss.named_parameters():
        assert bool(parameter.isfinite().all()), name
        assert torch.equal(parameter, before[name]) != parameter.requires_grad, name


def weights(loss: LossModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in loss.named_parameters()}


@OFF_POLICY
def test_sac_trainer(kind: type) -> None:
    loss = off_policy(kind, delay_actor=True) if kind is DiffWPOLoss else off_policy(kind)
    before = weights(loss)
    trainer = SACTrainer(
        collector=collector_of(loss.actor_network),
        total_frames=FRAMES,
        frame_skip=1,
        optim_steps_per_batch=2,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), 1e-3),
        replay_buffer=replay(),
        target_net_updater=SoftUpdate(loss, tau=0.1),
        progress_bar=False,
        seed=0,
    )
    trainer.train()
    assert_moved(loss, before)


def test_ppo_trainer() -> None:
    loss = on_policy(DiffPPOLoss)
    before = weights(loss)
    trainer = PPOTrainer(
        collector=collector_of(loss.actor_network),
        total_frames=FRAMES,
        frame_skip=1,
        optim_steps_per_batch=2,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), 1e-3),
        num_epochs=2,
        replay_buffer=TensorDictReplayBuffer(
            storage=LazyTensorStorage(20), sampler=SamplerWithoutReplacement(), batch_size=10
        ),
        progress_bar=False,
        add_gae=False,
        seed=0,
    )
    trainer.register_op("pre_epoch", loss.value_estimator)
    trainer.train()
    assert_moved(loss, before)


def test_plain_trainer() -> None:
    loss = off_policy(DiffSACLoss)
    updater = SoftUpdate(loss, tau=0.1)
    before = weights(loss)
    buffer = replay()
    trainer = Trainer(
        collector=collector_of(loss.actor_network),
        total_frames=FRAMES,
        frame_skip=1,
        optim_steps_per_batch=2,
        loss_module=loss,
        optimizer=torch.optim.Adam(loss.parameters(), 1e-3),
        progress_bar=False,
    )

    def keep(batch: TensorDictBase) -> TensorDictBase:
        buffer.extend(batch.reshape(-1))
        return batch

    trainer.register_op("pre_epoch", keep)
    trainer.register_op("process_optim_batch", lambda batch: buffer.sample())
    trainer.register_op("post_optim", updater.step)
    trainer.train()
    assert_moved(loss, before)


def sac_loop(loss: LossModule, batches: Iterator[TensorDictBase], **options: Any) -> list[float]:
    """The loop of TorchRL's SAC example: an optimiser per network, one backward each."""
    loss.make_value_estimator(gamma=0.97)
    updater = SoftUpdate(loss, eps=0.9)
    optimizers = {
        "loss_actor": torch.optim.Adam(loss.actor_network_params.flatten_keys().values(), 1e-3),
        "loss_qvalue": torch.optim.Adam(loss.qvalue_network_params.flatten_keys().values(), 1e-3),
        "loss_alpha": torch.optim.Adam([loss.log_alpha], 1e-3),
    }
    buffer, values = replay(**options), []
    for data in batches:
        buffer.extend(data.reshape(-1))
        for _ in range(2):
            out = loss(buffer.sample())
            for key, optimizer in optimizers.items():
                optimizer.zero_grad()
                out[key].backward(retain_graph=True)
                optimizer.step()
            updater.step()
            values.append(float(out["loss_qvalue"].detach()))
    return values


@pytest.mark.parametrize("kind", [DIMELoss, DiffSACLoss])
def test_sac_loop(kind: type) -> None:
    loss = off_policy(kind)
    before = weights(loss)
    values = sac_loop(loss, iter(collector_of(loss.actor_network)))
    assert len(values) == 2 * FRAMES // 20
    assert all(math.isfinite(value) for value in values)
    assert_moved(loss, before)


@pytest.mark.parametrize("kind", [DiffSACLoss, DiffWPOLoss])
def test_random_frames_of_a_collector(kind: type) -> None:
    """``init_random_frames`` writes latents of zero: noticed, and mended by the transform."""
    loss = off_policy(kind, delay_actor=True) if kind is DiffWPOLoss else off_policy(kind)
    updater = SoftUpdate(loss, tau=0.1)
    options = {"init_random_frames": 40}
    data = next(iter(collector_of(loss.actor_network, **options))).reshape(-1)
    with pytest.raises(ValueError, match=r"chains in 'latents' do not lead to the 'action'"):
        loss(data)
    buffer = replay(transform=ActionChains(loss.actor_network))
    buffer.extend(data)
    out = loss(buffer.sample())
    assert all(bool(value.isfinite().all()) for value in out.values())
    updater.step()


class Noisy(nn.Module):
    """Exploration noise after the actor, whose chain then ends elsewhere."""

    def forward(self, action: Tensor) -> Tensor:
        return (action + 0.3 * torch.randn_like(action)).clamp(-2, 2)


def test_noise_after_the_actor_is_noticed() -> None:
    loss = off_policy(DiffSACLoss, delay_qvalue=False)
    explore = TensorDictModule(Noisy(), ["action"], ["action"])
    policy = nn.Sequential(loss.actor_network, explore)
    data = make_env().rollout(10, lambda td: policy(td))
    with pytest.raises(ValueError, match="exploration noise after the actor"):
        loss(data)
    ignoring = off_policy(DiffSACLoss, delay_qvalue=False, check_chains="off")
    assert bool(ignoring(data)["loss_qvalue"].isfinite())


@OFF_POLICY
def test_returns_of_several_steps(kind: type) -> None:
    loss = off_policy(kind, delay_qvalue=False)
    loss.make_value_estimator(gamma=0.9)
    buffer = replay(transform=MultiStepTransform(n_steps=3, gamma=0.9))
    for data in collector_of(loss.actor_network):
        buffer.extend(data)
    sample = buffer.sample()
    assert int(sample["steps_to_next_obs"].max()) == 3
    assert all(bool(value.isfinite().all()) for value in loss(sample).values())


@pytest.mark.parametrize("kind", [DiffPPOLoss, DiffWPOLoss])
def test_ppo_loop_with_parallel_environments_and_running_statistics(kind: type) -> None:
    loss = on_policy(kind)
    loss.make_value_estimator(gamma=0.97, lmbda=0.9)
    before = weights(loss)
    env = TransformedEnv(
        ParallelEnv(2, make_env, mp_start_method="fork"), VecNormV2(in_keys=["observation"])
    )
    optimizer = torch.optim.Adam(loss.parameters(), 1e-3)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(20), sampler=SamplerWithoutReplacement(), batch_size=10
    )
    collector = collector_of(loss.actor_network, env)
    for data in collector:
        for _ in range(2):
            with torch.no_grad():
                loss.value_estimator(data)
            buffer.extend(data.reshape(-1))
            for _ in range(2):
                out = loss(buffer.sample())
                optimizer.zero_grad()
                sum(v for k, v in out.items() if k.startswith("loss_")).backward()
                optimizer.step()
    collector.shutdown()
    assert_moved(loss, before)


class JointQ(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = MLP(in_features=4, out_features=1, num_cells=[16])

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.net(torch.cat((observation, action), -1))


def test_tensordicts_ensemble_in_a_sac_loop() -> None:
    networks = q_networks(DIMELoss)
    q_network = TensorDictModule(JointQ(), ["observation", "action"], ["state_action_value"])
    loss = DIMELoss(
        networks.actor,
        EnsembleModule(q_network, 2),
        temperature=LearnedTemperature(1.0),
        delay_qvalue=True,
        critic_reduction="min",
    )
    before = weights(loss)
    sac_loop(loss, iter(collector_of(loss.actor_network)))
    # The template of an EnsembleModule takes no part in its values.
    template = [name for name in before if name.startswith("qvalue_network_params.module.")]
    assert template
    assert not any(p.requires_grad for n, p in loss.named_parameters() if n in template)
    assert_moved(loss, before)


def prioritised() -> TensorDictPrioritizedReplayBuffer:
    try:
        return TensorDictPrioritizedReplayBuffer(
            alpha=0.7, beta=0.5, storage=LazyTensorStorage(100), batch_size=10
        )
    except RuntimeError as error:  # the extension is built for another version of torch
        pytest.skip(str(error))


@OFF_POLICY
def test_prioritised_replay(kind: type) -> None:
    buffer = prioritised()
    loss = off_policy(kind, delay_qvalue=False)
    for data in collector_of(loss.actor_network):
        buffer.extend(data.reshape(-1))
    sample = buffer.sample()
    out = loss(sample)
    assert bool(out["loss_qvalue"].isfinite())
    assert sample["td_error"].shape == (10,)
    buffer.update_tensordict_priority(sample)
