"""DiffSAC updates against TorchRL's SAC of the same widths, and what kappa and N cost."""

from collections.abc import Callable, Iterable

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import NormalParamExtractor, TensorDictModule
from torch import nn
from torchrl.data import Bounded
from torchrl.modules import MLP, ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import SACLoss, SoftUpdate

from diffpolicy.actors import ActionSquash, DenoisingActor
from diffpolicy.networks import DenoisingQEnsemble, ScoreNetwork
from diffpolicy.sde import DenoisingProcess
from objectives import DiffSACLoss, LearnedTemperature

# The sizes of HalfCheetah.
OBSERVATION_DIM, ACTION_DIM = 17, 6
STEPS, WIDTHS, ROWS = 8, (256, 256), 256


def _diff_sac_loss(steps: int = STEPS, sampled_steps: int = 1) -> DiffSACLoss:
    process = DenoisingProcess(ACTION_DIM, steps, prior_std=2.5, step_size=0.1)
    score = ScoreNetwork(ACTION_DIM, OBSERVATION_DIM, steps, hidden_sizes=WIDTHS)
    bound = torch.ones(ACTION_DIM)
    actor = DenoisingActor(process, score, ActionSquash(-bound, bound), return_chain=True)
    critic = TensorDictModule(
        DenoisingQEnsemble(OBSERVATION_DIM, ACTION_DIM, steps, hidden_sizes=WIDTHS),
        in_keys=["observation", "next_latent", "step"],
        out_keys=["state_action_value"],
    )
    temperature = LearnedTemperature(1.0, target_entropy=-4.0 * ACTION_DIM)
    return DiffSACLoss(actor, critic, temperature=temperature, sampled_steps=sampled_steps)


def _mlp(in_features: int, out_features: int) -> MLP:
    return MLP(
        in_features=in_features,
        out_features=out_features,
        num_cells=list(WIDTHS),
        activation_class=nn.ReLU,
    )


def _sac_loss() -> SACLoss:
    net = nn.Sequential(_mlp(OBSERVATION_DIM, 2 * ACTION_DIM), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(net, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        spec=Bounded(-1, 1, (ACTION_DIM,)),
        distribution_class=TanhNormal,
    )
    width = OBSERVATION_DIM + ACTION_DIM
    critics = [ValueOperator(_mlp(width, 1), in_keys=["observation", "action"]) for _ in range(2)]
    return SACLoss(actor, critics, action_spec=Bounded(-1, 1, (ACTION_DIM,)))


def _transitions(steps: int = STEPS) -> TensorDict:
    following = {
        "observation": torch.randn(ROWS, OBSERVATION_DIM),
        "reward": torch.randn(ROWS, 1),
        "done": torch.zeros(ROWS, 1, dtype=torch.bool),
        "terminated": torch.zeros(ROWS, 1, dtype=torch.bool),
    }
    latents = torch.randn(ROWS, steps + 1, ACTION_DIM)
    entries = {
        "observation": torch.randn(ROWS, OBSERVATION_DIM),
        "action": latents[:, -1].tanh(),
        "latents": latents,
        "next": following,
    }
    return TensorDict(entries, [ROWS])


def _update(
    loss: Callable[[TensorDictBase], TensorDictBase],
    batch: TensorDict,
    parameters: Iterable[nn.Parameter],
    move_targets: Callable[[], object],
) -> Callable[[], None]:
    """All losses, one summed backward pass, one step of Adam for everything, moving targets."""
    optimizer = torch.optim.Adam(parameters)

    def update() -> None:
        terms = loss(batch)
        optimizer.zero_grad()
        sum(value for key, value in terms.items() if key.startswith("loss_")).backward()
        optimizer.step()
        move_targets()

    return update


def _diff_sac_update(steps: int = STEPS, sampled_steps: int = 1) -> Callable[[], None]:
    loss = _diff_sac_loss(steps, sampled_steps)
    move_targets = SoftUpdate(loss, tau=0.005).step
    return _update(loss, _transitions(steps), loss.parameters(), move_targets)


def test_an_update_against_sac(compare) -> None:
    sac = _sac_loss()
    theirs = _update(sac, _transitions(), sac.parameters(), SoftUpdate(sac, tau=0.005).step)
    assert compare(_diff_sac_update(), theirs, calls=1, turns=60) <= 1.5


@pytest.mark.parametrize("sampled_steps", [2, 4, 8])
def test_cost_is_at_most_linear_in_the_sampled_steps(compare, sampled_steps: int) -> None:
    ours = _diff_sac_update(sampled_steps=sampled_steps)
    ratio = compare(ours, _diff_sac_update(), calls=1, turns=20)
    # Optimiser, targets and the overhead of operations do not grow.
    assert ratio <= 1.1 * sampled_steps


def test_cost_does_not_depend_on_the_length_of_the_chain(compare) -> None:
    assert compare(_diff_sac_update(steps=32), _diff_sac_update(steps=4), calls=1, turns=60) <= 1.15
