"""Statistics of every layer as user code takes them: hooks that read each number back at once.

In the manner of `wandb.watch(log="all")`, which takes a histogram of each gradient in a hook every `log_freq` steps,
and of the hooks that people write by hand: the same statistics as our samples, one `item()` each.
"""

from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from mp_plugin.telemetry.layer_probes import sampled_layers


def statistics(values: Tensor, *, histogram: bool) -> list[float]:
    """Take the statistics of a tensor, and wait for each."""
    values = values.detach().float().flatten()
    finite = values[values.isfinite()]
    magnitudes = finite.abs()
    nonzero = magnitudes[magnitudes > 0]
    numbers = [values.isnan().sum().item(), values.isinf().sum().item(), (magnitudes == 0).sum().item()]
    numbers += [magnitudes.amax().item(), magnitudes.square().mean().sqrt().item()]
    numbers += [nonzero.amin().item() if len(nonzero) else 0.0, (nonzero < 2.0**-126).sum().item()]
    if histogram:
        low, high = finite.amin().item(), finite.amax().item()
        numbers += torch.histc(finite, bins=64, min=low, max=high).cpu().tolist()
    return numbers


class Watch(pl.Callback):
    """Take statistics of activations, of their gradients and of parameter gradients every so many steps."""

    def __init__(self, every_n_steps: int, *, activations: bool, histograms: bool) -> None:
        self.every_n_steps, self.activations, self.histograms = every_n_steps, activations, histograms
        self.numbers: list[list[float]] = []
        self.is_due = False

    def on_fit_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        self.handles = [parameter.register_hook(self.see) for parameter in pl_module.parameters()]
        if self.activations:
            for module in sampled_layers(pl_module).values():
                self.handles.append(module.register_forward_hook(self.see_output))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, step: int) -> None:
        self.is_due = trainer.global_step % self.every_n_steps == 0

    def see_output(self, module: Any, inputs: Any, output: Tensor) -> None:
        if self.is_due:
            self.see(output)
            if output.requires_grad:
                output.register_hook(self.see)

    def see(self, values: Tensor) -> None:
        if self.is_due:
            self.numbers.append(statistics(values, histogram=self.histograms))

    def on_fit_end(self, *_: Any) -> None:
        for handle in self.handles:
            handle.remove()
