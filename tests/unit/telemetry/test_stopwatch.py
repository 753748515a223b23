import pytest
import torch

from mp_plugin.telemetry.stopwatch import Stopwatch
from tests.helpers.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock().instead_of_time(monkeypatch, "telemetry.stopwatch")


def test_blocks_add_up_and_blocks_within_blocks_count_once(clock: Clock) -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    assert stopwatch.read() == 0.0
    with stopwatch:
        with stopwatch:
            clock.now += 2
        assert stopwatch.read() == 0.0  # the outer block is not over
        clock.now += 1
    assert stopwatch.read() == 3.0
    clock.now += 5
    with stopwatch:
        clock.now += 0.5
    assert stopwatch.read() == 3.5


def test_a_block_that_fails_counts_too(clock: Clock) -> None:
    def broken() -> None:
        clock.now += 1
        raise ValueError("broken")

    stopwatch = Stopwatch(torch.device("cpu"))
    for seconds in (1.0, 2.0):
        with pytest.raises(ValueError, match="broken"), stopwatch:
            broken()
        assert stopwatch.read() == seconds


class _Event:
    """Stands in for an event of CUDA, of which a CPU has none: done when it is told so."""

    def __init__(self, at: float) -> None:
        self.at, self.is_done = at, False

    def query(self) -> bool:
        return self.is_done

    def elapsed_time(self, end: "_Event") -> float:
        return 1000 * (end.at - self.at)


def test_what_the_device_has_not_finished_is_left_for_later() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    first, second = [_Event(0.0), _Event(60.0)], [_Event(100.0), _Event(130.0)]
    stopwatch._events.extend([*first, *second])  # type: ignore[arg-type]
    assert stopwatch.read() == 0.0
    first[1].is_done = True
    assert stopwatch.read() == 60.0
    second[1].is_done = True
    assert stopwatch.read() == 90.0
    assert stopwatch.read() == 90.0


def test_the_longer_of_host_and_device_counts(clock: Clock) -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    with stopwatch:
        clock.now += 10
    begin, end = _Event(0.0), _Event(4.0)
    end.is_done = True
    stopwatch._events.extend([begin, end])  # type: ignore[list-item]
    assert stopwatch.read() == 10.0
