"""``--policy-starts``: critics learn before the policy does."""

import pytest
import torch
from small_methods import small_config

from diffpolicy.trainers import prepare, train

ACTOR, CRITICS = "loss.actor_network_params.", ("critic_network_params", "qvalue_network_params")


@pytest.mark.parametrize("name", ["diffppo", "dime"])
@pytest.mark.parametrize("starts", [10_000, 0])
def test_the_policy_waits_and_critics_do_not(
    name: str, starts: int, tmp_path: pytest.TempPathFactory
) -> None:
    options = {"policy_starts": starts, "total_frames": 80, "output": str(tmp_path / "run")}
    run = prepare(small_config(name, **options))
    before = {key: value.clone() for key, value in run.module.state_dict().items()}
    assert train(run, progress_bar=False)
    trained = {n for n, p in run.module.named_parameters() if p.requires_grad}
    moved = {n for n in trained if not torch.equal(run.module.state_dict()[n], before[n])}
    assert any(key in n for n in moved for key in CRITICS)
    assert any(n.startswith(ACTOR) for n in moved) == (starts == 0)
