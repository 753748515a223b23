"""What a half precision asks of an optimizer."""

import logging

import torch
from torch.nn import Module
from torch.optim import LBFGS, Optimizer

from mp_plugin.errors import ConfigError, UnsupportedError
from mp_plugin.formats import FORMATS
from mp_plugin.parameter_names import plain_name

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


def refuse_what_cannot_be_scaled(model: Module, optimizers: list[Optimizer]) -> None:
    """Refuse an optimizer or a model that a loss scale cannot work with, before training.

    Raises:
        UnsupportedError: for LBFGS.
        ConfigError: for weights that are fp16 already.
    """
    if any(isinstance(optimizer, LBFGS) for optimizer in optimizers):
        raise UnsupportedError(
            "LBFGS evaluates the loss several times within a step and cannot work with a loss scale; "
            "accepted: precision 'bf16-mixed' or '32-true', or another optimizer."
        )
    trained = {plain_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    halves = [name for name, parameter in trained.items() if parameter.dtype is torch.float16]
    if halves:
        raise ConfigError(
            f"precision='16-mixed' scales the gradients of fp32 weights, and {len(halves)} trained parameters are fp16 "
            f"already, {halves[0]!r} among them; accepted: trained parameters in fp32, or precision '16-true'."
        )
