"""Small actors with noticeable scores, and a small environment with free choice of specs."""

from collections.abc import Callable, Sequence

import pytest
import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torchrl.data import Bounded, Composite, TensorSpec, Unbounded
from torchrl.envs import EnvBase

from diffpolicy.actors import ActionSquash, DenoisingActor
from diffpolicy.networks import RunningNorm, ScoreNetwork
from diffpolicy.sde import DenoisingProcess

LOW, HIGH = [-2.0, 0.1], [2.0, 0.3]
OBSERVATION_DIM, ACTION_DIM, STEPS = 3, 2, 4

ActorFactory = Callable[..., DenoisingActor]
EnvFactory = Callable[..., EnvBase]


@pytest.fixture
def make_actor() -> ActorFactory:
    """Actor for 3 observations, 2 actions in [-2, 2] x [0.1, 0.3] and 4 steps, in float64."""

    def build(
        *,
        observation_dim: int = OBSERVATION_DIM,
        score_network: torch.nn.Module | None = None,
        process: dict | None = None,
        **options: object,
    ) -> DenoisingActor:
        if score_network is None:
            norm = RunningNorm(observation_dim)
            norm.update(1 + 2 * torch.randn(20, observation_dim))
            score_network = ScoreNetwork(
                ACTION_DIM,
                observation_dim,
                STEPS,
                hidden_sizes=(16, 16),
                normalizer=norm,
                init_std=1.0,
            )
        sde = DenoisingProcess(ACTION_DIM, STEPS, **{"step_size": 0.2, **(process or {})})
        squash = ActionSquash(torch.tensor(LOW), torch.tensor(HIGH))
        return DenoisingActor(sde, score_network, squash, **options).double()

    return build


@pytest.fixture
def make_data() -> Callable[..., TensorDict]:
    """Random observations (and noise for a chain) of a batch shape."""

    def build(*batch: int, noise: bool = False) -> TensorDict:
        data = TensorDict(
            {"observation": torch.randn(*batch, OBSERVATION_DIM, dtype=torch.float64)}, batch
        )
        if noise:
            shape = (*batch, STEPS + 1, ACTION_DIM)
            data["noise"] = torch.randn(shape, dtype=torch.float64)
        return data

    return build


class TinyEnv(EnvBase):
    """Random observations, reward 1, ends after five steps."""

    def __init__(
        self,
        action_spec: TensorSpec,
        observations: dict[NestedKey, TensorSpec],
        action_key: NestedKey,
        batch_size: Sequence[int],
    ) -> None:
        super().__init__(batch_size=batch_size)
        batch = self.batch_size
        self.action_key_ = action_key
        self.observation_spec = Composite(shape=batch)
        for key, spec in observations.items():
            self.observation_spec[key] = spec.expand(*batch, *spec.shape)
        self.observation_spec["count"] = Unbounded((*batch, 1), dtype=torch.int64)
        self.full_action_spec = Composite(
            {action_key: action_spec.expand(*batch, *action_spec.shape)}, shape=batch
        )
        self.reward_spec = Unbounded((*batch, 1))

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: object) -> TensorDictBase:
        out = self.observation_spec.rand()
        out["count"] = torch.zeros(*self.batch_size, 1, dtype=torch.int64)
        return out

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        assert self.full_action_spec[self.action_key_].is_in(tensordict[self.action_key_])
        out = self.observation_spec.rand()
        out["count"] = tensordict["count"] + 1
        out["reward"] = torch.ones(*self.batch_size, 1)
        out["done"] = out["count"] >= 5
        out["terminated"] = torch.zeros_like(out["done"])
        return out

    def _set_seed(self, seed: int | None) -> None:
        pass


@pytest.fixture
def make_env() -> EnvFactory:
    """Environment with observation [3] and actions in [-2, 2] x [0.1, 0.3] by default."""

    def build(
        *,
        action_spec: TensorSpec | None = None,
        observations: dict[NestedKey, TensorSpec] | None = None,
        action_key: NestedKey = "action",
        batch_size: Sequence[int] = (),
    ) -> EnvBase:
        return TinyEnv(
            action_spec or Bounded(torch.tensor(LOW), torch.tensor(HIGH)),
            observations or {"observation": Unbounded((OBSERVATION_DIM,))},
            action_key,
            batch_size,
        )

    return build
