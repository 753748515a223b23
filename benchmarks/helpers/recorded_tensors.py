"""Tensors to quantise: random ones, and the activations and gradients of small real trainings."""

import torch
from torch import Tensor

from mp_plugin.telemetry.layer_probes import sampled_layers

STEPS = (0, 10, 40)
"""At which a training is recorded."""


def random_tensors(kind: str, num: int = 10, size: int = 20_000) -> list[Tensor]:
    """Return random tensors, each of its own size: of magnitudes from 2**-20 to 2**16 in the middle.

    Args:
        kind: `normal`, `heavy-tailed` (Student's t with 2 degrees of freedom), or `log-normal` (6 bits wide).
        num: how many.
        size: values of each.
    """
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for place in range(num):
        values = torch.randn(size, generator=generator)
        if kind == "heavy-tailed":
            # Normal, divided by the root of a chi-squared value of 2 degrees of freedom over 2.
            chi_squared = torch.randn(2, size, generator=generator).square().sum(0)
            values = values / (chi_squared / 2).sqrt()
        elif kind == "log-normal":
            values = values.sign() * torch.exp2(6 * torch.randn(size, generator=generator))
        tensors.append(values * 2.0 ** (-20 + 36 * place // max(num - 1, 1)))
    return tensors


def recorded_tensors(training) -> dict[str, list[Tensor]]:
    """Train in fp32 and return what went through the layers: `activations` and `gradients` of activations and weights.

    Args:
        training: a `Training`, whose optimizer steps without its schedule.
    """
    found: dict[str, list[Tensor]] = {"activations": [], "gradients": []}

    def see(module, inputs, output) -> None:
        if isinstance(output, Tensor) and output.is_floating_point():
            found["activations"].append(output.detach().clone())
            if output.requires_grad:
                output.register_hook(lambda gradient: found["gradients"].append(gradient.detach().clone()))

    optimizer = training.configure_optimizers()["optimizer"]
    for step, batch in zip(range(max(STEPS) + 1), training.train_dataloader(), strict=False):
        handles = []
        if step in STEPS:
            layers = sampled_layers(training).values()
            handles = [module.register_forward_hook(see) for module in layers]
        optimizer.zero_grad()
        training.loss(batch).backward()
        if step in STEPS:
            found["gradients"] += [each.grad.clone() for each in training.parameters() if each.grad is not None]
        optimizer.step()
        for handle in handles:
            handle.remove()
    return found
