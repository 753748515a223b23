"""All kinds of steps that are timed do the same: the step of plain SGD, with the gradients as given."""

import pytest
import torch


@pytest.mark.parametrize("kind", ["floor", "stock", "ours", "ours, fused"])
def test_every_kind_takes_the_same_steps(kind, monkeypatch):
    import growth
    import helpers.quiet_fit

    monkeypatch.setattr(helpers.quiet_fit, "be_quiet", lambda: None)  # which would last for the tests that follow
    module = growth.GivenGradients(1000, 7, "cpu")
    assert growth.step_seconds(module, kind, "cpu", length=2) > 0
    steps = growth.WARM_UP + 2 * growth.BLOCKS
    assert [weight.numel() for weight in module.weights] == [143] * 6 + [142]
    for weight, given in zip(module.weights, module.given, strict=True):
        assert given.eq(1e-6).all()
        torch.testing.assert_close(weight.detach(), torch.full_like(given, -steps * 1e-3 * 1e-6))


def test_memory_bounds_the_sizes(monkeypatch):
    import growth

    monkeypatch.setattr(growth, "free_bytes", lambda device: 10**9)
    by_parameters, by_tensors, ranks = growth.sizes("cpu", is_quick=False)
    assert [values for values, _ in by_parameters] == [10**5, 10**6, 10**7]
    assert [tensors for _, tensors in by_tensors] == [10, 100, 1000, 10_000]
    assert tuple(ranks) == (1, 2, 4)
