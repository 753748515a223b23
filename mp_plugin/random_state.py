"""The random streams that a training step may draw from."""

import random
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RandomState:
    """Where every random stream stood; `capture_random_state` makes one."""

    device: torch.device
    """Where the model computes."""
    python: Any
    numpy: Any
    """Of NumPy's global stream; None if nobody had imported it."""
    cpu: Tensor
    on_device: Tensor | None
    """None if the model computes on the CPU."""

    def restore(self) -> None:
        """Go back to it. No sync."""
        random.setstate(self.python)
        if self.numpy is not None:
            sys.modules["numpy"].random.set_state(self.numpy)
        torch.set_rng_state(self.cpu)
        if self.on_device is not None:
            torch.get_device_module(self.device).set_rng_state(self.on_device, self.device)

    def state_dict(self) -> dict[str, Any]:
        """Return it as numbers, strings, tuples and CPU tensors, which `torch.load(weights_only=True)` reads."""
        numpy = self.numpy
        if numpy is not None:
            name, words, *rest = numpy
            numpy = (name, torch.from_numpy(words.astype("int64")), *rest)
        return {
            "device": str(self.device),
            "python": self.python,
            "numpy": numpy,
            "cpu": self.cpu,
            "on_device": self.on_device,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "RandomState":
        """Rebuild what `state_dict` returned, for example to run a saved batch again."""
        numpy = state["numpy"]
        if numpy is not None:
            name, words, *rest = numpy
            numpy = (name, words.numpy().astype("uint32"), *rest)
        return cls(torch.device(state["device"]), state["python"], numpy, state["cpu"], state["on_device"])


def capture_random_state(device: torch.device) -> RandomState:
    """Remember the state of every random stream, to go back to it.

    Python's, NumPy's if anybody imported it, torch's on the CPU and on the given device. No sync.

    Args:
        device: where the model computes.

    Example:
        >>> before = capture_random_state(torch.device("cpu"))
        >>> first = torch.rand(1)
        >>> before.restore()
        >>> torch.equal(torch.rand(1), first)
        True
    """
    numpy = sys.modules.get("numpy")
    return RandomState(
        device,
        random.getstate(),
        numpy.random.get_state() if numpy is not None else None,
        torch.get_rng_state(),
        torch.get_device_module(device).get_rng_state(device) if device.type != "cpu" else None,
    )
