"""How long the steps of a fit take, as its device sees them."""

import time
from collections import deque
from typing import Any

import torch

WARM_UP_STEPS = 3
"""That a session begins with and no figure of speed counts: kernels are chosen then, and memory is reserved."""
NEWEST_STEPS = 10_000
"""Whose times are kept for the quantiles."""


class StepTimes:
    """A clock of training that can be stopped, read at the end of each step.

    On CUDA the times lie between events, which the device passes in its own time: the host launches ahead of it, and
    its clock would tell how fast it launches. Nothing here waits for the device, but `settle(wait=True)`.

    Args:
        device: that computes the steps.

    Example:
        >>> times = StepTimes(torch.device("cpu"))
        >>> times.go()
        >>> for _ in range(WARM_UP_STEPS + 2):
        ...     times.end_batch(ends_step=True)
        >>> times.steps, len(times.newest), times.seconds > times.counted_seconds == sum(times.newest)
        (5, 2, True)
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open: Any = None
        """The mark where the time that runs began; None while the clock stands."""
        self._unsettled: deque[tuple[Any, Any, bool]] = deque()
        """Two marks, and whether a step ends with the second: what the device may not have passed yet."""
        self._in_step = 0.0
        self.steps = 0
        """That are over, on the device too."""
        self.seconds = 0.0
        """While the clock ran."""
        self.counted_seconds = 0.0
        """Likewise, without the steps of the warm-up."""
        self.newest: deque[float] = deque(maxlen=NEWEST_STEPS)
        """Seconds of each of the newest steps, without the warm-up."""

    @property
    def is_running(self) -> bool:
        """Whether time counts."""
        return self._open is not None

    def go(self) -> None:
        """Count from here, if it does not already."""
        if self._open is None:
            self._open = self._mark()

    def stop(self) -> None:
        """Count no further until `go`; the step goes on after that."""
        if self._open is not None:
            self._unsettled.append((self._open, self._mark(), False))
            self._open = None

    def end_batch(self, *, ends_step: bool) -> None:
        """Note that a batch is over.

        Args:
            ends_step: whether the weights have moved; false while gradients are accumulated.
        """
        if self._open is not None:
            mark = self._mark()
            self._unsettled.append((self._open, mark, ends_step))
            self._open = mark
        self.settle()

    def settle(self, *, wait: bool = False) -> None:
        """Count what the device has passed.

        Args:
            wait: until it has passed everything.
        """
        while self._unsettled:
            begin, end, ends_step = self._unsettled[0]
            if wait:
                end.synchronize()
            elif not end.query():
                return
            self._unsettled.popleft()
            seconds = begin.elapsed_time(end) / 1000
            self.seconds += seconds
            self._in_step += seconds
            if ends_step:
                self.steps += 1
                if self.steps > WARM_UP_STEPS:
                    self.counted_seconds += self._in_step
                    self.newest.append(self._in_step)
                self._in_step = 0.0

    def _mark(self) -> Any:
        if self._device.type != "cuda":
            return _HostEvent()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        return event


class _HostEvent:
    """A moment on the host, with what of `torch.cuda.Event` is used here."""

    __slots__ = ("_at",)

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        pass

    def elapsed_time(self, end: "_HostEvent") -> float:
        return (end._at - self._at) * 1000
