"""What an optimizer needs in order to survive half-precision weights."""

import logging

from torch.optim import Optimizer

from mp_plugin.formats import FORMATS

log = logging.getLogger(__name__)


def raise_vanishing_eps_(optimizer: Optimizer) -> None:
    r"""Raise an `eps` that is zero in fp16 to fp16's smallest normal number, 2**-14, and say so.

    Adam divides by $\sqrt{v} + \epsilon$. Its default of 1e-8 rounds to 0 in fp16, and $v$ starts at 0: the first
    step of a weight whose gradient is 0 divides 0 by 0, and the weight is NaN from then on.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.Adam([torch.zeros(1)], eps=1e-3)
        >>> raise_vanishing_eps_(optimizer)
        >>> optimizer.param_groups[0]["eps"]
        0.001
    """
    fp16 = FORMATS["fp16"]
    for group in optimizer.param_groups:
        eps = group.get("eps")
        if eps is not None and 0 < eps <= fp16.smallest_subnormal / 2:
            group["eps"] = fp16.smallest_normal
            log.warning(
                "%s: eps=%g is zero in fp16, and its first step would divide 0 by 0; raised to %g. Set eps to choose.",
                type(optimizer).__name__,
                eps,
                group["eps"],
            )
