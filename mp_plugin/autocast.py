"""The autocast region of a forward pass."""

from functools import cache

import torch


def autocast(device_type: str, dtype: torch.dtype) -> torch.autocast:
    """Return an autocast region whose weight casts are reused within the forward pass.

    The plugin clears the reused casts after every optimizer step, so that none outlives the weight it was made from.

    Args:
        device_type: `cpu`, `cuda`, ...
        dtype: the half format for matrix products and convolutions.
    """
    return torch.autocast(device_type, dtype=dtype, cache_enabled=_reused_casts_keep_gradients())


@cache
def _reused_casts_keep_gradients() -> bool:
    """Whether a cast made under `no_grad` is not reused where a gradient is needed.

    Older torch releases (pytorch issues 65766 and 112583) lose the gradient silently. Asking torch itself is safer than
    a list of version numbers.
    """
    weight = torch.ones(1, 1, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with torch.no_grad():
            weight @ weight
        return (weight @ weight).requires_grad
