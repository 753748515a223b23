"""How long telemetry takes, on the host and on its device."""

import time
from types import TracebackType

import torch


class Stopwatch:
    """Add up the time of the blocks that it is entered for; blocks within blocks count once.

    On CUDA the time between two events around each block counts if it is longer than that on the host, which only
    launches. Entering and leaving never wait; `read` does if the device is not there yet.

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
        self._events: list[torch.cuda.Event] = []
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
        for begin, end in zip(self._events[::2], self._events[1::2], strict=True):
            end.synchronize()
            self._device_seconds += begin.elapsed_time(end) / 1000  # milliseconds
        self._events.clear()
        return max(self._seconds, self._device_seconds)

    def _mark_device(self) -> None:
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(self._device))
            self._events.append(event)
