"""DIME against TorchRL's SAC with networks of the same widths: updating, compiling, acting.

How long an update takes and where, and why two limits are wider on a CPU than on a GPU, is in
docs/dime.md.
"""

import copy
import warnings
from collections.abc import Callable, Iterable

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.data import Bounded
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

from diffpolicy.actors import ActionSquash, DenoisingActor
from diffpolicy.networks import CategoricalSupport, QEnsemble, ScoreNetwork
from diffpolicy.sde import DenoisingProcess
from objectives import DIMELoss, LearnedTemperature

# The sizes of HalfCheetah.
OBSERVATION_DIM, ACTION_DIM = 17, 6
STEPS, WIDTHS, ROWS = 8, (256, 256), 256


def _denoising_actor() -> DenoisingActor:
    process = DenoisingProcess(
        ACTION_DIM, STEPS, prior_std=2.5, schedule="cosine", step_size=0.1, noising_step="same"
    )
    score = ScoreNetwork(ACTION_DIM, OBSERVATION_DIM, STEPS, hidden_sizes=WIDTHS)
    bound = torch.ones(ACTION_DIM)
    return DenoisingActor(process, score, ActionSquash(-bound, bound))


def _dime_loss() -> DIMELoss:
    critic = QEnsemble(
        OBSERVATION_DIM,
        ACTION_DIM,
        hidden_sizes=WIDTHS,
        normalization="batch",
        support=CategoricalSupport(-200.0, 200.0, 101),
    )
    module = TensorDictModule(
        critic,
        in_keys=["observation", "action"],
        out_keys=["state_action_value", "state_action_value_logits"],
    )
    temperature = LearnedTemperature(1.0, target_entropy=-4.0 * ACTION_DIM)
    return DIMELoss(_denoising_actor(), module, temperature=temperature)


def _mlp(in_features: int, out_features: int) -> MLP:
    return MLP(
        in_features=in_features,
        out_features=out_features,
        num_cells=list(WIDTHS),
        activation_class=nn.ReLU,
    )


def _gaussian_actor() -> ProbabilisticActor:
    net = nn.Sequential(_mlp(OBSERVATION_DIM, 2 * ACTION_DIM), NormalParamExtractor())
    return ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=Bounded(-1, 1, (ACTION_DIM,)),
        distribution_class=TanhNormal,
    )


def _sac_loss() -> SACLoss:
    width = OBSERVATION_DIM + ACTION_DIM
    critics = [ValueOperator(_mlp(width, 1), in_keys=["observation", "action"]) for _ in range(2)]
    return SACLoss(_gaussian_actor(), critics, action_spec=Bounded(-1, 1, (ACTION_DIM,)))


def _transitions() -> TensorDict:
    following = {
        "observation": torch.randn(ROWS, OBSERVATION_DIM),
        "reward": torch.randn(ROWS, 1),
        "done": torch.zeros(ROWS, 1, dtype=torch.bool),
        "terminated": torch.zeros(ROWS, 1, dtype=torch.bool),
    }
    action = 2 * torch.rand(ROWS, ACTION_DIM) - 1
    observation = torch.randn(ROWS, OBSERVATION_DIM)
    return TensorDict({"observation": observation, "action": action, "next": following}, [ROWS])


def _update(
    loss: Callable[[TensorDictBase], TensorDictBase],
    parameters: Iterable[nn.Parameter],
    move_targets: Callable[[], object] = lambda: None,
) -> Callable[[], None]:
    """All losses, one summed backward pass, one step of Adam for everything."""
    optimizer, batch = torch.optim.Adam(parameters), _transitions()

    def update() -> None:
        terms = loss(batch)
        optimizer.zero_grad()
        sum(value for key, value in terms.items() if key.startswith("loss_")).backward()
        optimizer.step()
        move_targets()

    return update


def test_an_update_against_sac(compare, device: str) -> None:
    dime, sac = _dime_loss(), _sac_loss()
    targets = SoftUpdate(sac, tau=0.005)
    ratio = compare(
        _update(dime, dime.parameters()),
        _update(sac, sac.parameters(), targets.step),
        calls=1,
        turns=60,
    )
    # The aim is 2.5, met on a GPU (2.2). With one CPU thread it is 2.65 to 2.8: matrix products of
    # the two are 3.3 to 1 and take most of the time.
    assert ratio <= (2.5 if device == "cuda" else 2.9)


def test_compilation_speeds_an_update_up(compare, device: str) -> None:
    eager = _dime_loss()
    other = copy.deepcopy(eager)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations while it compiles
        # CUDA graphs on a GPU, as the trainers have them.
        mode = "reduce-overhead" if device == "cuda" else "default"
        compiled = torch.compile(other, fullgraph=True, mode=mode)
        ratio = compare(
            _update(compiled, other.parameters()),
            _update(eager, eager.parameters()),
            calls=1,
            turns=40,
        )
    # The aim is 0.6, met on a GPU (0.2). With one CPU thread it is 0.8 to 0.9: matrix products,
    # which compilation leaves as they are, alone take 0.6 of an eager update.
    assert ratio <= (0.6 if device == "cuda" else 0.95)


def test_acting_with_one_observation_against_a_gaussian_policy(compare) -> None:
    actor, gaussian = _denoising_actor(), _gaussian_actor()
    data = TensorDict({"observation": torch.randn(1, OBSERVATION_DIM)}, [1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations while it compiles
        compiled = torch.compile(actor)
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            ratio = compare(lambda: compiled(data.copy()), lambda: gaussian(data.copy()), calls=5)
    assert ratio <= 2
