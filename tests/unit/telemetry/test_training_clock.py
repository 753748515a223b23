import pytest

from mp_plugin.telemetry.training_clock import TrainingClock
from tests.helpers.clock import Clock


def test_it_counts_between_go_and_stop_only(monkeypatch: pytest.MonkeyPatch) -> None:
    time = Clock().instead_of_time(monkeypatch, "telemetry.training_clock")
    clock = TrainingClock()
    clock.stop()
    time.now += 1
    assert clock.seconds == 0.0
    clock.go()
    time.now += 2
    assert clock.seconds == 2.0
    clock.go()  # which changes nothing
    time.now += 1
    clock.stop()
    time.now += 4
    assert clock.seconds == 3.0
    clock.stop()
    assert clock.seconds == 3.0
    clock.go()
    time.now += 8
    assert clock.seconds == 11.0
