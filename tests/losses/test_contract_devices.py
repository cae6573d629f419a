"""Losses on a GPU."""

import copy

import pytest
import torch
from loss_builders import gradients
from loss_registry import LossCase
from rowwise import rowwise_draws

pytestmark = pytest.mark.gpu


def test_a_gpu_gives_the_numbers_of_the_cpu(case: LossCase) -> None:
    loss = case.build()
    rows = case.rows(loss, (24,))
    other = copy.deepcopy(loss).to("cuda")
    draws = rowwise_draws(loss, rows)
    expected = loss(rows.clone(), draws=draws)
    out = other(rows.to("cuda"), draws=draws.to("cuda"))
    for key, value in expected.items():
        torch.testing.assert_close(out[key].cpu(), value, rtol=1e-3, atol=1e-4, msg=f"{key}")
    total = sum(value for key, value in expected.items() if key.startswith("loss_"))
    theirs = sum(value for key, value in out.items() if key.startswith("loss_"))
    ours = gradients(loss, total)
    for name, gradient in gradients(other, theirs).items():
        assert gradient.is_cuda
        torch.testing.assert_close(gradient.cpu(), ours[name], rtol=1e-2, atol=1e-3, msg=name)
