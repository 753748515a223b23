"""How long a run has trained."""

import time


class TrainingClock:
    """Seconds since a fit began to train, without those in which it validated.

    Example:
        >>> clock = TrainingClock()
        >>> clock.go()
        >>> clock.stop()
        >>> clock.seconds == clock.seconds > 0
        True
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._since: float | None = None

    def go(self) -> None:
        """Count from here, if it does not already."""
        if self._since is None:
            self._since = time.perf_counter()

    def stop(self) -> None:
        """Count no further until `go`."""
        self._seconds, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """Counted so far."""
        return self._seconds + (0.0 if self._since is None else time.perf_counter() - self._since)
