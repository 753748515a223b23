"""Sample the gradients of each layer, to know which loss scales fit all of them."""

import lightning.pytorch as pl

from mp_plugin.fallback.layers import is_below
from mp_plugin.formats import FORMATS
from mp_plugin.parameter_names import plain_name
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.scaling.verdict import gather
from mp_plugin.scaling.window import ScaleWindow, scale_window
from mp_plugin.telemetry.gradient_range import GradientRange, gradient_ranges


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
        self.window: ScaleWindow | None = None
        """As of the newest sample."""

    def start_afresh(self) -> None:
        """Forget the samples of another fit."""
        self.window, self._next_step = None, 0

    def sample(
        self, module: "pl.LightningModule", scaler: LossScaler | None, *, step: int, fp32_layers: tuple[str, ...]
    ) -> None:
        """Call with unscaled, finite gradients, before they are clipped; all ranks together.

        Args:
            module: whose gradients.
            scaler: whose limits the window keeps; None where no loss is scaled.
            step: optimizer steps tried before this one.
            fp32_layers: layers whose gradients need no loss scale.
        """
        if scaler is None or not self._every_n_steps or step < self._next_step:
            return
        self._next_step = step + self._every_n_steps
        grads = [
            (plain_name(name).rpartition(".")[0], parameter.grad)
            for name, parameter in module.named_parameters()
            if parameter.grad is not None
        ]
        here = gradient_ranges([(layer, grad) for layer, grad in grads if not _is_inside(layer, fp32_layers)])
        layers: dict[str, GradientRange] = {}
        for ranges in gather(here):  # with a sharded model each rank has seen a part
            for name, each in ranges.items():
                layers[name] = layers.get(name, GradientRange()).merged(each)
        self.window = scale_window(
            layers,
            number_format=FORMATS["fp16"],
            underflow_tolerance=self._underflow_tolerance,
            min_scale=scaler.config.min_scale,
            max_scale=scaler.config.max_scale,
        )


def _is_inside(layer: str, islands: tuple[str, ...]) -> bool:
    return any(is_below(layer, island) for island in islands)
