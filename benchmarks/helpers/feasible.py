"""The highest power-of-two loss scale at which a batch does not overflow, by trying."""

import math

import torch
from torch import Tensor

EXPONENTS = (-40, 60)


def best_feasible(loss: Tensor, parameters: list[Tensor], start: int) -> tuple[int, list[Tensor]]:
    """Return the exponent of the highest scale that fits, searched from `start`, and the true gradients made at it.

    The forward pass does not know the scale, so only the backward pass is repeated.
    """
    exponent, grads = start, scaled_gradients(loss, parameters, start)
    while amax(grads) == math.inf and exponent > EXPONENTS[0]:
        exponent -= 1
        grads = scaled_gradients(loss, parameters, exponent)
    if exponent == start:
        higher = scaled_gradients(loss, parameters, exponent + 1)
        while amax(higher) < math.inf and exponent < EXPONENTS[1]:
            exponent, grads = exponent + 1, higher
            higher = scaled_gradients(loss, parameters, exponent + 1)
    torch._foreach_mul_(grads, 2.0**-exponent)
    return exponent, grads


def scaled_gradients(loss: Tensor, parameters: list[Tensor], exponent: int) -> list[Tensor]:
    """Return the gradients of the loss times a power of two; `.grad` stays as it is."""
    return list(torch.autograd.grad(loss * 2.0**exponent, parameters, retain_graph=True))


def amax(grads: list[Tensor]) -> float:
    """Return the largest magnitude, infinity for anything that is not finite."""
    largest = torch.stack(torch._foreach_norm(grads, float("inf"))).max().item()
    return largest if math.isfinite(largest) else math.inf
