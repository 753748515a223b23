from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mp_plugin import LossScaling
from mp_plugin.errors import UnsupportedError
from mp_plugin.scaling.capturable import CapturableStep
from mp_plugin.scaling.scaler import LossScaler

STEPS = 12


def batches() -> Tensor:
    return torch.randn(STEPS, 4, 8, generator=torch.Generator().manual_seed(3))


def layer() -> nn.Linear:
    torch.manual_seed(1)
    return nn.Linear(8, 2)


def scaler(**options: Any) -> LossScaler:
    return LossScaler(LossScaling(init_scale=2.0**10, **options))


def train(*, spoiled: tuple[int, ...] = (), max_norm: float | None = None, **options: Any) -> Any:
    """Step by step as a graph would be replayed; some losses are infinite in the backward pass."""
    net = layer()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    scaled = scaler(**options)
    capturable = CapturableStep(optimizer, scaled, max_norm=max_norm)
    scales = []
    for index, batch in enumerate(batches()):
        optimizer.zero_grad(set_to_none=False)
        loss = net(batch).square().mean()
        scales.append(float(capturable.scale(torch.ones(()))))
        capturable.scale(loss).backward()
        if index in spoiled:
            net.bias.grad[0] = float("inf")  # type: ignore[index]
        capturable.step()
        capturable.update()
    capturable.finish()
    return net, capturable, scaled, scales


def by_hand(without: tuple[int, ...] = (), max_norm: float | None = None) -> nn.Linear:
    net = layer()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    for index, batch in enumerate(batches()):
        if index in without:
            continue
        optimizer.zero_grad()
        net(batch).square().mean().backward()
        if max_norm is not None:
            torch.nn.utils.clip_grad_norm_(net.parameters(), max_norm)
        optimizer.step()
    return net


def weights(net: nn.Module) -> list[Tensor]:
    return [parameter.detach() for parameter in net.parameters()]


@pytest.mark.parametrize("max_norm", [None, 0.1])
@pytest.mark.parametrize("spoiled", [(), (0,), (4, 5), (STEPS - 1,)])
def test_it_trains_as_by_hand(spoiled: tuple[int, ...], max_norm: float | None) -> None:
    net, capturable, _, _ = train(spoiled=spoiled, max_norm=max_norm)
    # A clipped gradient is divided by one rounded number instead of multiplied by two.
    atol = 0.0 if max_norm is None else 1e-7
    torch.testing.assert_close(weights(net), weights(by_hand(spoiled, max_norm)), rtol=0, atol=atol)
    assert (capturable.effective_step, capturable.skipped_steps) == (STEPS - len(spoiled), len(spoiled))


def test_the_scale_follows_one_step_late() -> None:
    _, _, scaled, scales = train(spoiled=(4,), growth_interval=6)
    # Step 5 is launched before anybody knows of step 4; six clean steps later the scale is back.
    assert scales == [2.0**10] * 6 + [2.0**9] * 6
    assert scaled.get_scale() == 2.0**10


def test_a_predictive_scale_learns_the_true_magnitude() -> None:
    _, _, scaled, _ = train(policy="predictive")
    assert scaled.state.model.observed == STEPS
    assert -10 < scaled.state.model.mean < 3


def test_an_optimizer_that_cannot_skip_on_the_device_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="SGD as it is; accepted: one of torch's optimizers with fused=True"):
        CapturableStep(torch.optim.SGD(layer().parameters()))


def test_half_gradients_are_refused() -> None:
    net = layer().bfloat16()
    capturable = CapturableStep(torch.optim.SGD(net.parameters(), fused=True))
    net(torch.ones(1, 8, dtype=torch.bfloat16)).sum().backward()
    with pytest.raises(UnsupportedError, match=r"gradients of Tensor torch\.bfloat16 torch\.strided cpu; accepted"):
        capturable.step()


def test_nothing_waits() -> None:
    """Neither reads a number, which is all that a graph forbids and a CPU can show."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Names(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[str] = set()

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.seen.add(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    net = layer()
    capturable = CapturableStep(torch.optim.AdamW(net.parameters(), fused=True), scaler(), max_norm=1.0)
    with Names() as names:
        capturable.scale(net(torch.ones(1, 8)).sum()).backward()
        capturable.step()
    assert "_fused_adamw_" in names.seen
    assert not names.seen & {"_local_scalar_dense", "is_nonzero", "equal", "masked_select"}


def test_a_first_step_with_momentum_that_overflows_leaves_nothing_behind() -> None:
    """torch makes the buffers of a fused SGD in its first step, and fills them in a kernel that a skip leaves out."""
    net = layer()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, fused=True)
    capturable, before = CapturableStep(optimizer), [weight.clone() for weight in weights(net)]
    for index, batch in enumerate(batches()[:2]):
        optimizer.zero_grad(set_to_none=False)
        net(batch).square().mean().backward()
        if index == 0:
            net.bias.grad[0] = float("inf")  # type: ignore[index]
        capturable.step()
        capturable.update()
        if index == 0:
            assert all(map(torch.equal, weights(net), before))
            assert not optimizer.state
    capturable.finish()
    assert (capturable.effective_step, capturable.skipped_steps) == (1, 1)
    assert all(weight.isfinite().all() for weight in weights(net))
