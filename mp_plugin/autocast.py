"""The autocast region of a forward pass."""

import torch


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
