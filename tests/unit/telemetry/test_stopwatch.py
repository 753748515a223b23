import time

import torch

from mp_plugin.telemetry.stopwatch import Stopwatch


def test_blocks_add_up_and_blocks_within_blocks_count_once() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    assert stopwatch.read() == 0.0
    before = time.perf_counter()
    with stopwatch:
        with stopwatch:
            time.sleep(0.02)
        inside = stopwatch.read()
        time.sleep(0.01)
    taken = time.perf_counter() - before
    assert inside == 0.0  # the outer block is not over
    first = stopwatch.read()
    assert 0.03 <= first <= taken
    with stopwatch:
        pass
    assert stopwatch.read() > first


def test_a_block_that_fails_counts_too() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        try:
            with stopwatch:
                raise ValueError
        except ValueError:
            assert stopwatch.read() > 0.0


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
