"""The energy that a device has used, as its hardware counts it; never an estimate."""

import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import torch

NVML = "libnvidia-ml.so.1"
POWERCAP = Path("/sys/class/powercap")
LARGEST_PACKAGE_WATTS = 1000.0
"""No CPU package draws more; how long its counter may stay unread before it could have gone round unnoticed."""


class EnergyMeter:
    """Count joules from here on.

    On a GPU those of the whole GPU, by NVML; on a CPU those of all its packages, by RAPL: in both cases with what other
    processes make it use. RAPL's counters go round within minutes, so `look` has to be called now and then.

    Args:
        device: that computes.
        nvml: the file name of NVML's library, called by ctypes, which needs no package.
        powercap: where Linux shows the counters of RAPL.

    Example:
        >>> EnergyMeter(torch.device("cpu"), powercap=Path("no-such-folder")).read()
        (None, 'not measured: no-such-folder holds no counter of a CPU package')
    """

    def __init__(self, device: torch.device, nvml: str = NVML, powercap: Path = POWERCAP) -> None:
        self._problem: str | None = None
        self._counters: list[_Counter] = []
        self._source = "nvml" if device.type == "cuda" else "rapl"
        try:
            if device.type == "cuda":
                uuid = torch.cuda.get_device_properties(device).uuid
                self._counters = [_Counter(nvml_counter(f"GPU-{uuid}", nvml))]
            elif device.type == "cpu":
                self._counters = _packages(powercap)
            else:
                self._problem = f"nothing here counts the energy of {device.type!r}"
        except (OSError, ValueError, AttributeError) as error:  # the last for a library that lacks a function
            self._problem = _in_words(error)

    def look(self) -> None:
        """Read the counters, often enough to notice when one has gone round."""
        for counter in self._counters if self._problem is None else ():
            try:
                counter.look()
            except (OSError, ValueError) as error:
                self._problem = _in_words(error)

    def read(self) -> tuple[float | None, str]:
        """Return the joules so far and what counted them; None and the reason where nobody did."""
        self.look()
        if self._problem is not None:
            return None, f"not measured: {self._problem}"
        return sum(counter.joules for counter in self._counters), self._source


class _Counter:
    """Joules since it was made, from a counter that starts again at 0 after its largest value."""

    def __init__(self, read: Callable[[], float], largest: float | None = None) -> None:
        self._read = read
        self._largest = largest
        self._newest, self._at = read(), time.monotonic()
        self.joules = 0.0

    def look(self) -> None:
        value, now = self._read(), time.monotonic()
        used = value - self._newest
        if self._largest is not None:
            longest = self._largest / LARGEST_PACKAGE_WATTS
            if now - self._at > longest:
                raise ValueError(
                    f"a counter of RAPL stayed unread for more than {longest:.0f} s, and may have gone round"
                )
            used = used if used >= 0 else used + self._largest
        self.joules += used
        self._newest, self._at = value, now


def nvml_counter(uuid: str, library: str = NVML) -> Callable[[], float]:
    """Return what reads the joules that a GPU has used since its driver was loaded.

    The counter moves every few ten milliseconds.

    Args:
        uuid: the GPU's identity, as `nvidia-smi -L` shows it: CUDA_VISIBLE_DEVICES renumbers devices for CUDA alone.
        library: the file name of NVML.

    Raises:
        OSError: without NVML, or for a GPU that it does not know or that does not count.
    """
    nvml = ctypes.CDLL(library)
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()

    def ask(function: str, *arguments: object) -> None:
        if error := getattr(nvml, function)(*arguments):
            raise OSError(f"NVML answers {function} with error {error}")

    def read() -> float:
        ask("nvmlDeviceGetTotalEnergyConsumption", handle, ctypes.byref(millijoules))
        return millijoules.value / 1000

    ask("nvmlInit_v2")
    ask("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(handle))
    read()
    return read


def _packages(powercap: Path) -> list[_Counter]:
    """Return a counter for each CPU package; raises OSError where one cannot be read."""
    found = []
    for domain in sorted(powercap.glob("intel-rapl:*")):
        # Beside packages there are their parts, and a sum over the whole machine.
        if (domain / "name").read_text().startswith("package"):
            largest = float((domain / "max_energy_range_uj").read_text()) / 1e6
            found.append(_Counter(_reader(domain / "energy_uj"), largest))
    if not found:
        raise OSError(f"{powercap} holds no counter of a CPU package")
    return found


def _reader(file: Path) -> Callable[[], float]:
    return lambda: float(file.read_text()) / 1e6


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename} cannot be read ({error.strerror})"
    return str(error)
