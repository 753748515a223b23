"""How long telemetry takes, on the host and on its device."""

import time
from collections import deque
from types import TracebackType

import torch


class Stopwatch:
    """Add up the time of the blocks that it is entered for; blocks within blocks count once.

    On CUDA the time between two events around each block counts if it is longer than that on the host, which only
    launches. Nothing here waits: what the device has not finished yet is in a later `read`.

    Args:
        device: on which the blocks compute.

    Example:
        >>> stopwatch = Stopwatch(torch.device("cpu"))
        >>> with stopwatch, stopwatch:
        ...     pass
        >>> 0 < stopwatch.read() < 1
        True
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._depth = 0
        self._started = 0.0
        self._seconds = 0.0
        self._device_seconds = 0.0
        self._events: deque[torch.cuda.Event] = deque()
        """Of each block its beginning and its end."""

    def __enter__(self) -> "Stopwatch":
        self._depth += 1
        if self._depth == 1:
            self._mark_device()
            self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth == 0:
            self._seconds += time.perf_counter() - self._started
            self._mark_device()

    def read(self) -> float:
        """Return the seconds of all blocks so far."""
        while self._events and self._events[1].query():  # type: ignore[no-untyped-call]
            begin, end = self._events.popleft(), self._events.popleft()
            self._device_seconds += begin.elapsed_time(end) / 1000  # milliseconds
        return max(self._seconds, self._device_seconds)

    def _mark_device(self) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            self._events.append(event)
