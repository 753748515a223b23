import pytest
import torch

from mp_plugin import step_times
from mp_plugin.step_times import NEWEST_STEPS, WARM_UP_STEPS, StepTimes


class Device:
    """A device that does what it is told when the test says so; its events are moments that the test sets."""

    def __init__(self) -> None:
        self.now = 0.0
        self.passed = 0.0
        """Up to where the device has come."""

    def event(self) -> "Event":
        return Event(self)


class Event:
    def __init__(self, device: Device) -> None:
        self.device, self.at = device, device.now

    def query(self) -> bool:
        return self.at <= self.device.passed

    def synchronize(self) -> None:
        self.device.passed = max(self.device.passed, self.at)

    def elapsed_time(self, end: "Event") -> float:
        assert end.query()
        return (end.at - self.at) * 1000


@pytest.fixture
def device(monkeypatch) -> Device:
    device = Device()
    monkeypatch.setattr(step_times, "_HostEvent", device.event)
    return device


def batch(times: StepTimes, device: Device, seconds: float, *, ends_step: bool = True) -> None:
    device.now += seconds
    times.end_batch(ends_step=ends_step)


def warm_up(times: StepTimes, device: Device) -> None:
    times.go()
    for _ in range(WARM_UP_STEPS):
        batch(times, device, 10.0)


def test_a_step_lasts_from_one_update_to_the_next(device):
    device.passed = 1e9
    times = StepTimes(torch.device("cpu"))
    warm_up(times, device)
    batch(times, device, 1.0, ends_step=False)
    batch(times, device, 2.0)
    batch(times, device, 4.0)
    assert list(times.newest) == pytest.approx([3.0, 4.0])
    assert (times.steps, times.counted_seconds, times.seconds) == (WARM_UP_STEPS + 2, 7.0, 10.0 * WARM_UP_STEPS + 7.0)


def test_the_clock_stands_in_a_pause(device):
    device.passed = 1e9
    times = StepTimes(torch.device("cpu"))
    warm_up(times, device)
    device.now += 1.0
    times.stop()
    assert not times.is_running
    device.now += 100.0
    times.stop()
    times.go()
    device.now += 0.5
    times.go()
    batch(times, device, 0.5)
    assert list(times.newest) == pytest.approx([2.0])


def test_what_the_device_has_not_passed_counts_later(device):
    times = StepTimes(torch.device("cpu"))
    warm_up(times, device)
    batch(times, device, 1.0)
    assert (times.steps, times.seconds) == (0, 0.0)
    device.passed = device.now - 1.0
    times.settle()
    assert times.steps == WARM_UP_STEPS
    times.settle(wait=True)
    assert list(times.newest) == [1.0]


def test_only_the_newest_are_kept(device):
    device.passed = 1e9
    times = StepTimes(torch.device("cpu"))
    warm_up(times, device)
    for _ in range(NEWEST_STEPS):
        batch(times, device, 1.0)
    batch(times, device, 5.0)
    assert len(times.newest) == NEWEST_STEPS
    assert times.newest[-1] == 5.0
    assert times.counted_seconds == NEWEST_STEPS + 5.0
