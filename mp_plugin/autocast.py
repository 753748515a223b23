"""The autocast region of a forward pass."""

from collections.abc import Callable

import torch
import torch._functorch.config


def autocast(device_type: str, dtype: torch.dtype) -> torch.autocast:
    """Return an autocast region that casts a weight anew each time it is used, as Lightning's does since 2.6.

    torch would keep the first cast of a weight and use it again until the region ends. Three things go wrong then: the
    gradients of all uses are summed in half precision (a linear layer applied 1024 times in bf16: relative gradient
    error 0.3 instead of 0.002), a second forward pass after a step or an edit in place still sees the old weight, and
    torch before 2.13 loses the gradient of a weight that was cast under `no_grad` first. The price is one cast more
    for each further use of the same weight.

    Args:
        device_type: `cpu`, `cuda`, ...
        dtype: the half format for matrix products and convolutions.
    """
    return torch.autocast(device_type, dtype=dtype, cache_enabled=False)


def compile_backward_without_autocast() -> Callable[[], None]:
    """Let torch.compile trace backward passes as they run in a training: outside of autocast; returns what undoes it.

    By itself it takes them to run inside, and puts the matrix products of a layer's backward pass into half precision
    even if the layer itself is in FP32. torch before 2.8 has no such setting, and does so always.
    """
    config, name = torch._functorch.config, "backward_pass_autocast"
    before = getattr(config, name, "off")

    def undo() -> None:
        if before != "off":
            setattr(config, name, before)

    if before != "off":
        setattr(config, name, "off")
    return undo
