"""Small networks and rollouts for the tests of the losses."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn

from diffpolicy.actors import ActionClip, ActionSquash, ActorKeys, DenoisingActor
from diffpolicy.networks import (
    CategoricalSupport,
    DenoisingQEnsemble,
    DenoisingValueNetwork,
    GaussianHead,
    HLGauss,
    IntervalEmbedding,
    QEnsemble,
    RunningNorm,
    ScoreNetwork,
    StepEmbedding,
)
from diffpolicy.sde import (
    DenoisingProcess,
    Gaussian,
    MeanFlowProcess,
    Process,
    gaussian_log_prob,
)

OBSERVATION, ACTION, STEPS = 3, 2, 3

NESTED_KEYS = ActorKeys(
    action=("agent", "action"),
    latents=("agent", "chain", "latents"),
    log_prob=("agent", "chain", "log_prob"),
    log_ratio=("agent", "chain", "log_ratio"),
    kernel_mean=("agent", "chain", "kernel_mean"),
    kernel_std=("agent", "chain", "kernel_std"),
    latent=("row", "latent"),
    next_latent=("row", "next_latent"),
    step=("row", "step"),
)
NESTED_OBSERVATION = ("agent", "observation")


def make_networks(
    *,
    steps: int = STEPS,
    keys: ActorKeys | None = None,
    observation_key: NestedKey = "observation",
    value_keys: Sequence[NestedKey] = ("state_value", "state_value_logits"),
    support: HLGauss | None = None,
    share_embedding: bool = False,
    normalize: bool = True,
    learn_process: bool = True,
) -> tuple[DenoisingActor, TensorDictModule, RunningNorm | None]:
    """A denoising actor and its critic with generic weights, no zeros anywhere."""
    keys = keys or ActorKeys()
    normalizer = None
    if normalize:
        normalizer = RunningNorm(OBSERVATION)
        normalizer.update(2 * torch.randn(20, OBSERVATION) + 1)
    embedding = StepEmbedding(steps, 4, 4, 3)
    actor = make_chain_actor(
        steps=steps,
        keys=keys,
        observation_key=observation_key,
        embedding=embedding,
        normalizer=normalizer,
        learn_process=learn_process,
    )
    network = DenoisingValueNetwork(
        OBSERVATION,
        ACTION,
        steps,
        hidden_sizes=(8,),
        normalizer=normalizer,
        support=support,
        embedding=embedding if share_embedding else StepEmbedding(steps, 4, 4, 3),
    )
    critic = TensorDictModule(
        network,
        in_keys=[observation_key, keys.latent, keys.step],
        out_keys=list(value_keys[: 1 if support is None else 2]),
    )
    with torch.no_grad():
        for parameter in (*actor.parameters(), *critic.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return actor, critic, normalizer


def make_chain_actor(
    *,
    steps: int,
    keys: ActorKeys,
    observation_key: NestedKey,
    embedding: StepEmbedding,
    normalizer: RunningNorm | None = None,
    learn_process: bool = True,
) -> DenoisingActor:
    """An actor on the denoising MDP that writes its chains, one step size per step."""
    score = ScoreNetwork(
        ACTION,
        OBSERVATION,
        steps,
        hidden_sizes=(8,),
        normalizer=normalizer,
        embedding=embedding,
        init_std=0.3,
    )
    process = DenoisingProcess(
        ACTION,
        steps,
        step_size_per_step=True,
        step_size=0.2,
        learn_step_size=learn_process,
        learn_friction=learn_process,
    )
    bound = torch.ones(ACTION)
    return DenoisingActor(
        process,
        score,
        ActionSquash(-bound, bound),
        in_keys=[observation_key],
        keys=keys,
        return_chain=True,
    )


def make_denoising_q_networks(
    *,
    keys: ActorKeys | None = None,
    observation_key: NestedKey = "observation",
    value_keys: Sequence[NestedKey] = ("state_action_value", "state_action_value_logits"),
    support: HLGauss | None = None,
    normalization: Literal["layer"] | None = None,
    ensemble_size: int = 2,
    share_embedding: bool = False,
    steps: int = STEPS,
) -> tuple[DenoisingActor, TensorDictModule]:
    """A denoising actor and an ensemble ``Q_j(s, x_{n+1}, n)`` with generic weights, no zeros."""
    keys = keys or ActorKeys()
    embedding = StepEmbedding(steps, 4, 4, 3)
    actor = make_chain_actor(
        steps=steps,
        keys=keys,
        observation_key=observation_key,
        embedding=embedding,
    )
    network = DenoisingQEnsemble(
        OBSERVATION,
        ACTION,
        steps,
        ensemble_size=ensemble_size,
        hidden_sizes=(8, 8),
        normalization=normalization,
        support=support,
        embedding=embedding if share_embedding else StepEmbedding(steps, 4, 4, 3),
        latent_scale=1.5,
    )
    critic = TensorDictModule(
        network,
        in_keys=[observation_key, keys.next_latent, keys.step],
        out_keys=list(value_keys[: 1 if support is None else 2]),
    )
    with torch.no_grad():
        for parameter in (*actor.parameters(), *critic.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return actor, critic


def make_off_policy_networks(
    *,
    keys: ActorKeys | None = None,
    observation_key: NestedKey = "observation",
    value_keys: Sequence[NestedKey] = ("state_action_value", "state_action_value_logits"),
    support: CategoricalSupport | HLGauss | GaussianHead | None = None,
    normalization: str | None = None,
    share_encoder: bool = False,
    learn_process: bool = True,
    steps: int = STEPS,
    process: Callable[[int, int], Process] | None = None,
) -> tuple[DenoisingActor, TensorDictModule]:
    """An actor and a twin critic with generic weights, no zeros anywhere.

    ``process(action_dim, steps)`` makes another process than DIME's, on actions in [-1, 1].
    """
    keys = keys or ActorKeys()
    encoders = [nn.Linear(OBSERVATION, OBSERVATION) for _ in range(2)]
    mean = process is MeanFlowProcess
    embedding = IntervalEmbedding(4, 4, 3) if mean else StepEmbedding(steps, 4, 4, 3)
    score = ScoreNetwork(
        ACTION,
        OBSERVATION,
        steps,
        hidden_sizes=(8,),
        embedding=embedding,
        normalizer=encoders[0],
        init_std=0.3,
    )
    own = DenoisingProcess(
        ACTION,
        steps,
        step_size=0.2,
        schedule="cosine",
        noising_step="same",
        learn_step_size=learn_process,
        learn_friction=learn_process,
    )
    bound = torch.ones(ACTION)
    squash = (ActionSquash if process is None else ActionClip)(-2 * bound, bound)
    chosen = own if process is None else process(ACTION, steps)
    actor = DenoisingActor(chosen, score, squash, in_keys=[observation_key], keys=keys)
    network = QEnsemble(
        OBSERVATION,
        ACTION,
        hidden_sizes=(8, 8),
        normalization=normalization,
        support=support,
        action_low=squash.low,
        action_high=squash.high,
        normalizer=encoders[0 if share_encoder else 1],
    )
    critic = TensorDictModule(
        network,
        in_keys=[observation_key, keys.action],
        out_keys=list(value_keys[: 1 if support is None else 2]),
    )
    with torch.no_grad():
        for parameter in (*actor.parameters(), *critic.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    return actor, critic


def make_rollout(
    actor: TensorDictModuleBase,
    batch_size: tuple[int, ...],
    *,
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
    reward: NestedKey = "reward",
    done: NestedKey = "done",
    terminated: NestedKey = "terminated",
) -> TensorDictBase:
    """A rollout ``[*B, T]`` of the actor in random states, with some truncations and terminations.

    Rows are independent: the observation after a row is not the next row's observation, as if every
    row were the only one that was kept; tests that need connected states use ``connect``.
    """
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)

    def draw(*event: int) -> Tensor:
        return torch.randn(*batch_size, *event, generator=generator).to(dtype)

    rollout = TensorDict(batch_size=batch_size)
    (observation_key,) = actor.in_keys
    following = TensorDict(batch_size=batch_size)
    rollout.set(observation_key, draw(OBSERVATION))
    following.set(observation_key, draw(OBSERVATION))
    following.set(reward, draw(1))
    ends = draw(1)
    following.set(done, ends > 0.4)
    following.set(terminated, ends > 1.0)
    with torch.no_grad():
        actor(rollout)
    rollout.set("next", following)
    rollout.names = [*[None] * (len(batch_size) - 1), "time"]
    return rollout


def bandit(rows: int) -> TensorDictBase:
    """Transitions that end, of one state, with uniform actions in [-1, 1]."""
    following = TensorDict({"observation": torch.ones(rows, 1)}, [rows])
    batch = following.clone().set("action", 2 * torch.rand(rows, 1) - 1)
    following["reward"] = torch.zeros(rows, 1)
    following["terminated"] = torch.ones(rows, 1, dtype=torch.bool)
    return batch.set("next", following)


def connect(rollout: TensorDictBase, observation_key: NestedKey = "observation") -> TensorDictBase:
    """Let the observation after a row be that of the next row unless the trajectory ends."""
    following = rollout.get("next").get(observation_key)
    ends = rollout.get(("next", "done"))[..., :-1, :]
    inside = torch.where(ends, following[..., :-1, :], rollout.get(observation_key)[..., 1:, :])
    connected = torch.cat((inside, following[..., -1:, :]), -2)
    rollout.get("next").set(observation_key, connected)
    return rollout


def gradients(loss: nn.Module, value: Tensor) -> dict[str, Tensor]:
    """Gradients of ``value`` by parameter name; parameters that it does not reach are left out."""
    named = {name: p for name, p in loss.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad(value, list(named.values()), retain_graph=True, allow_unused=True)
    return {name: g for name, g in zip(named, grads, strict=True) if g is not None}


class TableChainActor(TensorDictModuleBase):
    """A ChainActor written from scratch: a network of the observation alone as its score.

    With one step, ``eta = nu^2`` and no learned process the chain is ``x_0 ~ N(0, nu^2)``,
    ``x_1 ~ N(nu^2 f(s), 2 nu^2)``: a Gaussian policy.
    """

    def __init__(self, score: nn.Module, nu: float = 1.0, *, action_dim: int = 1) -> None:
        super().__init__()
        self.score = score
        self.nu = nu
        self.action_dim = action_dim
        self.keys = ActorKeys()
        self.in_keys = ["observation"]
        self.out_keys = [self.keys.action, *self.keys.chain]

    @property
    def denoising_steps(self) -> int:
        return 1

    def sample_prior(
        self, batch_size: torch.Size | tuple[int, ...], noise: Tensor | None = None
    ) -> Tensor:
        noise = torch.randn(*batch_size, self.action_dim) if noise is None else noise
        return self.nu * noise

    def denoising_kernel(self, rows: TensorDictBase) -> Gaussian:
        mean = self.nu**2 * self.score(rows.get("observation"))
        return Gaussian(mean, self.nu * 2**0.5 * torch.ones_like(mean))

    def noising_kernel(self, rows: TensorDictBase) -> Gaussian:
        mean = torch.zeros_like(rows.get("next_latent"))
        return Gaussian(mean, self.nu * 2**0.5 * torch.ones_like(mean))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        first = self.sample_prior(tensordict.batch_size).to(tensordict.get("observation"))
        mean, std = self.denoising_kernel(tensordict)
        last = mean + std * torch.randn_like(mean)
        noising = Gaussian(torch.zeros_like(mean), std)
        log_prob = gaussian_log_prob(last, Gaussian(mean, std))
        tensordict.set("action", last)
        tensordict.set("latents", torch.stack((first, last), -2))
        tensordict.set("log_prob", log_prob.unsqueeze(-2))
        tensordict.set("log_ratio", (log_prob - gaussian_log_prob(first, noising)).unsqueeze(-2))
        tensordict.set("kernel_mean", mean.unsqueeze(-2))
        tensordict.set("kernel_std", std.unsqueeze(-2))
        return tensordict


def to_double(tensordict: TensorDictBase) -> TensorDictBase:
    """Floating-point entries in float64, others unchanged."""
    return tensordict.apply(lambda x: x.double() if x.is_floating_point() else x)
