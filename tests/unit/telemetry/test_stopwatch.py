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
