import time

from mp_plugin.telemetry.training_clock import TrainingClock


def test_it_counts_between_go_and_stop_only() -> None:
    clock = TrainingClock()
    assert clock.seconds == 0.0
    clock.stop()
    assert clock.seconds == 0.0
    clock.go()
    time.sleep(0.01)
    running = clock.seconds
    assert running >= 0.01
    clock.go()  # which changes nothing
    clock.stop()
    stopped = clock.seconds
    assert stopped >= running
    time.sleep(0.01)
    clock.stop()
    assert clock.seconds == stopped
    clock.go()
    time.sleep(0.01)
    assert clock.seconds >= stopped + 0.01
