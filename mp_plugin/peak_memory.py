"""The most memory that was in use since a moment."""

import platform
from contextlib import suppress
from pathlib import Path

import torch

PROCESS = Path("/proc/self")
RESET_PEAK = "5"
"""What sets the peak of the resident memory back to what it is now, written to `clear_refs`; since Linux 4.0."""

AFTER_OTHERS = ", after other fits"
"""Ends the label of a process that has trained before: libraries and the heap keep part of what that took.

In a sweep within one process the runs of the last precision would seem to need the most.
"""


class PeakMemory:
    """Measure the peak from here on: allocated on a GPU, resident memory of this process on a CPU.

    Memory of worker processes of a data loader does not count. The resident memory of a process that has been measured
    before holds what was left of that, and its label says so.

    Args:
        device: that computes.
        process: where Linux tells of this process.

    Example:
        >>> nbytes, of = PeakMemory(torch.device("cpu")).read()
        >>> nbytes > 10_000_000, of.startswith("process, resident")
        (True, True)
    """

    _has_counted = False
    """Whether this process was measured before."""

    def __init__(self, device: torch.device, process: Path = PROCESS) -> None:
        self._device = device
        self._process = process
        self._is_fresh, self._after = False, ""
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        elif device.type == "cpu":
            self._after = AFTER_OTHERS if PeakMemory._has_counted else ""
            PeakMemory._has_counted = True
            with suppress(OSError):  # not Linux, or not ours to write: then `read` says since when it counts
                (process / "clear_refs").write_text(RESET_PEAK)
                self._is_fresh = True

    def read(self) -> tuple[int | None, str]:
        """Return the bytes and what they are of; None and the reason where nobody counts."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device), f"{self._device}, allocated"
        if self._device.type != "cpu":
            return None, f"not measured: nothing here tells the peak of {self._device.type!r}"
        since = "" if self._is_fresh else ", since it started"
        nbytes = self._resident()
        if nbytes is None:
            return None, "not measured: this system does not tell it"
        return nbytes, f"process, resident{since}{self._after}"

    def _resident(self) -> int | None:
        with suppress(OSError):
            for line in (self._process / "status").read_text(encoding="utf-8").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        try:
            import resource
        except ImportError:  # Windows
            return None
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if platform.system() == "Darwin" else peak * 1024
