"""Clipping with gradients that lead back inside."""

import torch

from diffpolicy.sde import VariancePreservingProcess, inward_clamp

VALUES = torch.tensor([-2.0, -0.5, 0.5, 2.0])


def test_values_are_clipped_and_gradients_lead_inside_only() -> None:
    values = VALUES.clone().requires_grad_()
    clipped = inward_clamp(values, 1.0)
    assert clipped.tolist() == [-1.0, -0.5, 0.5, 1.0]
    # A descent step goes against the slope.
    for slope, passes in ((3.0, [0.0, 3.0, 3.0, 3.0]), (-3.0, [-3.0, -3.0, -3.0, 0.0])):
        (gradient,) = torch.autograd.grad(slope * clipped.sum(), values, retain_graph=True)
        assert gradient.tolist() == passes


def test_it_works_under_vmap_and_without_gradients() -> None:
    rows = torch.stack((VALUES, 2 * VALUES))
    slopes = torch.func.vmap(torch.func.grad(lambda row: inward_clamp(row, 1.0).sum()))(rows)
    assert slopes.tolist() == [[0.0, 1.0, 1.0, 1.0], [0.0, 1.0, 1.0, 1.0]]
    with torch.no_grad():
        assert torch.equal(inward_clamp(VALUES, 1.0), VALUES.clamp(-1, 1))


def test_a_chain_that_ends_at_a_bound_can_come_back() -> None:
    # The predicted noise of the last step moves an action far over its bound.
    output = torch.full((1, 1), -20.0, requires_grad=True)
    step = torch.tensor([2])
    gradients = {}
    for inward in (False, True):
        process = VariancePreservingProcess(1, 3, schedule="vp", inward_gradient=inward)
        action = process.denoising_kernel(torch.zeros(1, 1), output, step).mean
        assert action.item() == 1
        gradients[inward] = [
            torch.autograd.grad(slope * action.sum(), output, retain_graph=True)[0].item()
            for slope in (-1.0, 1.0)
        ]
    assert gradients[False] == [0, 0]
    assert gradients[True][0] == 0
    assert gradients[True][1] < 0
