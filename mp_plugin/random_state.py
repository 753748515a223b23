"""The random streams that a training step may draw from."""

import random
import sys
from collections.abc import Callable

import torch


def capture_random_state(device: torch.device) -> Callable[[], None]:
    """Remember the state of every random stream; returns what goes back to it.

    Python's, NumPy's if anybody imported it, torch's on the CPU and on the given device. No sync.

    Args:
        device: where the model computes.

    Example:
        >>> restore = capture_random_state(torch.device("cpu"))
        >>> first = torch.rand(1)
        >>> restore()
        >>> torch.equal(torch.rand(1), first)
        True
    """
    python = random.getstate()
    numpy = sys.modules.get("numpy")
    numpy_state = numpy.random.get_state() if numpy is not None else None
    cpu = torch.get_rng_state()
    module = torch.get_device_module(device) if device.type != "cpu" else None
    on_device = module.get_rng_state(device) if module is not None else None

    def restore() -> None:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(numpy_state)
        torch.set_rng_state(cpu)
        if module is not None:
            module.set_rng_state(on_device, device)

    return restore
