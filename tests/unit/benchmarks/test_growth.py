"""All kinds of steps that are timed do the same: the step of plain SGD, with the gradients as given, clipped."""

import pytest
import torch


@pytest.mark.parametrize("kind", ["floor", "stock", "ours", "ours, fused"])
def test_every_kind_takes_the_same_steps(kind, monkeypatch):
    import growth
    import helpers.quiet_fit

    monkeypatch.setattr(growth, "MAX_NORM", 0.5)
    monkeypatch.setattr(helpers.quiet_fit, "be_quiet", lambda: None)  # which would last for the tests that follow
    module = growth.GivenGradients(10_000, 7, "cpu")
    assert growth.step_seconds(module, kind, "cpu", length=2) > 0
    steps = growth.WARM_UP["cpu"] + 2 * growth.BLOCKS
    assert [weight.numel() for weight in module.weights] == [1429] * 4 + [1428] * 3
    # Each gradient of a hundredth, and the norm of ten thousand of them is 1: clipped by half.
    moved = steps * 1e-3 * 1e-2 * (1 if kind == "floor" else 0.5)
    for weight in module.weights:
        torch.testing.assert_close(weight.detach(), torch.full_like(weight, -moved))


def test_memory_bounds_the_sizes(monkeypatch):
    import growth

    monkeypatch.setattr(growth, "free_bytes", lambda device: 10**9)
    by_parameters, by_tensors, ranks = growth.sizes("cpu", is_quick=False)
    assert [values for values, _ in by_parameters] == [10**5, 10**6, 10**7]
    assert [tensors for _, tensors in by_tensors] == [10, 100, 1000, 10_000]
    assert tuple(ranks) == (1, 2, 4)
