"""A clock that stands still until a test sets it on."""

from types import SimpleNamespace
from typing import Any


class Clock:
    """Seconds, as a test sets them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def instead_of_time(self, monkeypatch: Any, module: str) -> "Clock":
        """Be what this module of the package reads the time from."""
        monkeypatch.setattr(f"mp_plugin.{module}.time", SimpleNamespace(perf_counter=self))
        return self
