"""Chains as rows of the denoising MDP."""

from collections.abc import Callable

import pytest
import torch
from tensordict import TensorDict

from diffpolicy.actors import ActorKeys, DenoisingActor, chain_rows

Actor = Callable[..., DenoisingActor]
Data = Callable[..., TensorDict]


@pytest.mark.parametrize("batch", [(), (5,), (2, 5)])
def test_rows_hold_the_transitions_of_the_chain(
    make_actor: Actor, make_data: Data, batch: tuple[int, ...]
) -> None:
    out = make_actor(return_chain=True)(make_data(*batch))

    rows = chain_rows(out)

    assert rows.batch_size == (*batch, 4)
    for n in range(4):
        row = rows[..., n]
        assert torch.equal(row["observation"], out["observation"])
        assert torch.equal(row["latent"], out["latents"][..., n, :])
        assert torch.equal(row["next_latent"], out["latents"][..., n + 1, :])
        assert torch.equal(row["step"], torch.full((*batch, 1), n))
        for key in ("log_prob", "log_ratio", "kernel_mean", "kernel_std"):
            assert torch.equal(row[key], out[key][..., n, :])
    assert rows["step"].dtype == torch.int64
    assert "action" not in rows.keys(True)
    assert "latents" not in rows.keys(True)


def test_per_step_entries_and_the_mask_come_along_where_present(
    make_actor: Actor, make_data: Data
) -> None:
    out = make_actor(return_chain=True)(make_data(5))
    out["advantage"] = torch.randn(5, 4, 1)
    out["collector", "mask"] = torch.tensor([True, False, True, True, False])
    out["reward"] = torch.randn(5, 1)

    rows = chain_rows(out)

    assert torch.equal(rows["advantage"], out["advantage"])
    assert torch.equal(rows["collector", "mask"], out["collector", "mask"][:, None].expand(5, 4))
    assert "value_target" not in rows.keys(True)
    assert "reward" not in rows.keys(True)


def test_nothing_is_copied(make_actor: Actor, make_data: Data) -> None:
    with torch.no_grad():
        out = make_actor(return_chain=True)(make_data(5))
    rows = chain_rows(out)
    for key, source in (("latent", "latents"), ("next_latent", "latents"), ("log_prob",) * 2):
        storage = out[source].untyped_storage().data_ptr()
        assert rows[key].untyped_storage().data_ptr() == storage
    assert rows["observation"].untyped_storage().data_ptr() == (
        out["observation"].untyped_storage().data_ptr()
    )


def test_flattened_rows_keep_chain_and_observation_together(
    make_actor: Actor, make_data: Data
) -> None:
    out = make_actor(return_chain=True)(make_data(3, 5))
    flat = chain_rows(out).reshape(-1)
    assert flat.batch_size == (60,)
    index = (1 * 5 + 3) * 4 + 2
    assert torch.equal(flat["observation"][index], out["observation"][1, 3])
    assert torch.equal(flat["next_latent"][index], out["latents"][1, 3, 3])
    assert flat["step"][index].item() == 2


def test_missing_chain_is_named(make_actor: Actor, make_data: Data) -> None:
    out = make_actor()(make_data(5))
    with pytest.raises(KeyError, match=r"'latents' is missing.*'action'.*return_chain=True"):
        chain_rows(out)


def test_missing_observation_is_named(make_actor: Actor, make_data: Data) -> None:
    out = make_actor(return_chain=True)(make_data(5))
    with pytest.raises(KeyError, match="'pixels' is missing"):
        chain_rows(out, observation_keys=["observation", "pixels"])


def test_renamed_chain_is_found_by_its_keys(make_actor: Actor, make_data: Data) -> None:
    keys = ActorKeys(latents="path", step=("row", "n"))
    out = make_actor(return_chain=True, keys=keys)(make_data(5))
    assert chain_rows(out, keys=keys)["row", "n"].shape == (5, 4, 1)
    with pytest.raises(KeyError, match="'latents' is missing"):
        chain_rows(out)
