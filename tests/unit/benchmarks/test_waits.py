"""What counts as a wait for the device."""

from collections import Counter
from importlib import import_module

import pytest
import torch


@pytest.fixture
def counted_waits():
    return import_module("helpers.waits").counted_waits


def count(counted_waits, device, block, optimizer=None):
    found = Counter()
    with counted_waits(found, device, optimizer or torch.optim.SGD([torch.zeros(1)])):
        block()
    return found


def test_reads_of_a_number_count(counted_waits):
    values = torch.arange(4.0)

    def block():
        values[1].item()
        bool(values[2] > 1)
        values.tolist()
        float(values.sum())
        torch.equal(values, values)
        values.nonzero()

    counted = {"item": 1, "__bool__": 1, "tolist": 1, "__float__": 1, "equal": 1, "nonzero": 1}
    assert count(counted_waits, "cpu", block) == counted


def test_what_stays_on_the_device_does_not_count(counted_waits):
    values = torch.arange(4.0, requires_grad=True)
    assert not count(counted_waits, "cpu", values.detach().numpy)
    assert not count(counted_waits, "cpu", lambda: torch.where(values.isfinite().all(), values, 0).sum().backward())


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}])
def test_the_step_counts_of_an_optimizer_do_not_count(counted_waits, options):
    weights = [torch.ones(2, requires_grad=True) for _ in range(3)]
    for weight in weights:
        weight.grad = torch.ones(2)
    optimizer = torch.optim.AdamW(weights, **options)
    optimizer.step()
    assert not count(counted_waits, "cpu", optimizer.step, optimizer)
    # Somebody else's do.
    assert bool(count(counted_waits, "cpu", optimizer.step)) == ("foreach" in options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_tells_of_waits(counted_waits):
    values = torch.ones(4, device="cuda")

    def block():
        values.sum().item()
        values.mul_(2)
        torch.cuda.current_stream().synchronize()

    assert count(counted_waits, "cuda", block) == {"operator": 2}
    assert torch.cuda.get_sync_debug_mode() == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_wait_for_an_event_leaves_the_device_with_work_or_without(counted_waits):
    def wait(work_after: bool):
        event = torch.cuda.Event()
        torch.cuda._sleep(10**7)
        event.record()
        if work_after:
            torch.cuda._sleep(10**9)
        event.synchronize()
        event.synchronize()  # it is there

    assert count(counted_waits, "cuda", lambda: wait(False)) == {"event": 1}
    assert count(counted_waits, "cuda", lambda: wait(True)) == {"event of an earlier step": 1}
    torch.cuda.synchronize()
