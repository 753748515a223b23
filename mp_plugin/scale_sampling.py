"""Sample the gradients of each layer, to know which loss scales fit all of them."""

from collections.abc import Collection
from typing import Any

import lightning.pytorch as pl
import torch

from mp_plugin.all_ranks import AllRanks
from mp_plugin.fallback.layers import is_below
from mp_plugin.formats import FORMATS
from mp_plugin.parameter_names import plain_name
from mp_plugin.rehearsal import forward, rehearsal
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.scaling.verdict import gather
from mp_plugin.scaling.window import ScaleWindow, scale_window
from mp_plugin.step_start import StepStart
from mp_plugin.telemetry.stats_row import gradient_ranges
from mp_plugin.telemetry.tensor_stats import TensorStats


class ScaleSampler:
    """Keep the window of loss scales that fit every layer, from true gradients every so many steps.

    A sample reads the parameters' gradients once and waits for the device once; all other steps cost nothing.

    Args:
        every_n_steps: steps between two samples; 0 takes none.
        underflow_tolerance: share of a layer's gradient values that may vanish.
    """

    def __init__(self, *, every_n_steps: int, underflow_tolerance: float) -> None:
        self._every_n_steps = every_n_steps
        self._underflow_tolerance = underflow_tolerance
        self._next_step = 0
        self._fp32_layers: tuple[str, ...] = ()
        self.window: ScaleWindow | None = None
        """As of the newest sample, or the newest look."""

    def start_afresh(self) -> None:
        """Forget the samples of another fit."""
        self.window, self._next_step = None, 0

    def sample(
        self,
        module: "pl.LightningModule",
        scaler: LossScaler | None,
        *,
        step: int,
        fp32_layers: tuple[str, ...],
        carried_scale: float = 1.0,
    ) -> None:
        """Call with finite gradients, before they are clipped; all ranks together.

        Takes a sample if it is time to, or if other layers are in FP32 than before.

        Args:
            module: whose gradients, those of optimizers about to step.
            scaler: whose limits the window keeps; None where no loss is scaled.
            step: optimizer steps tried before this one.
            fp32_layers: layers whose gradients need no loss scale.
            carried_scale: what the gradients are still multiplied by.
        """
        is_due = step >= self._next_step or fp32_layers != self._fp32_layers
        if scaler is None or not self._every_n_steps or not is_due:
            return
        self._next_step, self._fp32_layers = step + self._every_n_steps, fp32_layers
        # In manual optimization other optimizers may hold gradients that are still scaled.
        unscaled = [optimizer for optimizer in module.trainer.optimizers if scaler.is_unscaled(optimizer)]
        theirs = {id(each) for optimizer in unscaled for group in optimizer.param_groups for each in group["params"]}
        # With a sharded model each rank has seen a part.
        self.window = self._window(gather(_ranges(module, fp32_layers, theirs, carried_scale)), scaler)

    def look(
        self,
        start: StepStart,
        scaler: LossScaler | None,
        all_ranks: AllRanks,
        evidence: dict[str, Any],
        *,
        fp32_layers: tuple[str, ...],
    ) -> ScaleWindow | None:
        """Run a step once more in FP32, where no gradient vanishes, and return its window; all ranks together.

        A sample does not see what fp16 has flushed to zero: by its gradients the scale that they were made at always
        fits. Only here can it turn out that no scale does.

        Args:
            start: where the step began.
            scaler: whose limits the window keeps; None where no loss is scaled.
            all_ranks: which run it together.
            evidence: takes note of trouble.
            fp32_layers: layers whose gradients need no loss scale.

        Returns:
            The window; None where it is not known, as nobody wants samples.
        """
        if scaler is None or not self._every_n_steps:
            return None
        ranges = all_ranks.each(lambda: _ranges_in_fp32(start, fp32_layers), evidence)
        seen = [each for each in ranges if each is not None]
        if len(seen) < len(ranges):
            return None
        self.window = self._window(seen, scaler)
        return self.window

    def _window(self, ranges: list[dict[str, TensorStats]], scaler: LossScaler) -> ScaleWindow:
        layers: dict[str, TensorStats] = {}
        for each in ranges:
            for name, here in each.items():
                layers[name] = layers.get(name, TensorStats()).merged(here)
        return scale_window(
            layers,
            number_format=FORMATS["fp16"],
            underflow_tolerance=self._underflow_tolerance,
            min_scale=scaler.config.min_scale,
            max_scale=scaler.config.max_scale,
        )


def _ranges(
    module: "pl.LightningModule",
    fp32_layers: tuple[str, ...],
    parameters: Collection[int] | None = None,
    carried_scale: float = 1.0,
) -> dict[str, TensorStats]:
    """Return the ranges of the gradients of a module, or of those of its parameters with these identities."""
    grads = [
        (plain_name(name).rpartition(".")[0], parameter.grad)
        for name, parameter in module.named_parameters()
        if parameter.grad is not None and (parameters is None or id(parameter) in parameters)
    ]
    outside = [(layer, grad) for layer, grad in grads if not _is_inside(layer, fp32_layers)]
    return gradient_ranges(outside, carried_scale=carried_scale)


def _ranges_in_fp32(start: StepStart, fp32_layers: tuple[str, ...]) -> dict[str, TensorStats]:
    module = start.module
    with rehearsal(start):
        for batch in start.window:
            loss = forward(module, batch, inside=torch.autocast(module.device.type, enabled=False))
            if loss is not None:
                module.backward(loss)
        return _ranges(module, fp32_layers)


def _is_inside(layer: str, islands: tuple[str, ...]) -> bool:
    return any(is_below(layer, island) for island in islands)
