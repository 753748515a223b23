"""Which layers of a run are in FP32 from its start: those that rules and a map name."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.strategies import Strategy
from torch.nn import Module

from mp_plugin.config import Fallback, Telemetry
from mp_plugin.errors import ConfigError
from mp_plugin.fallback.fp32_weights import kept_in_fp32, tied_layers
from mp_plugin.fallback.layers import layers_by_name
from mp_plugin.fallback.precision_map import PrecisionMap
from mp_plugin.fallback.rules import select_layers
from mp_plugin.fsdp import refuse_fp32_beside_half_weights
from mp_plugin.modes import Mode


class ChosenLayers:
    """The layers that a `Fallback` names, and why.

    Args:
        config: its rules and its map.
        mode: the precision of all other layers.
    """

    def __init__(self, config: Fallback, mode: Mode) -> None:
        self._config = config
        self._mode = mode
        self._map = PrecisionMap.load(config.map) if config.map is not None else None
        self.reasons: dict[str, str] = {}
        """By qualified name, in the order of the model that was looked at last."""

    def find(self, module: Module) -> None:
        """Find them in a model.

        Raises:
            ConfigError: for a rule that matches nothing, a map of another model, or two that contradict each other.
        """
        ruled = select_layers(module, layers=self._config.layers, types=self._config.types)
        mapped: dict[str, str] = {}
        if self._map is not None:
            fitted = self._map.check_fits(module)
            fitted.check_agrees(ruled)
            # Once is enough, of a map that was made by a map.
            mapped = {name: f"map: {why.removeprefix('map: ')}" for name, why in fitted.islands.items()}
        self._keep({**mapped, **{name: f"rule: {rule}" for name, rule in ruled.items()}}, module)

    @contextmanager
    def converting(self, module: Module, strategy: Strategy | None) -> Iterator[None]:
        """Find them, and keep their weights in FP32 while the block casts the model to half; ties go with them.

        Raises:
            ConfigError: as `find`.
            UnsupportedError: for a strategy that cannot have weights of two formats.
        """
        self.find(module)
        self._keep(self.reasons | tied_layers(module, self.reasons), module)
        if strategy is not None:
            refuse_fp32_beside_half_weights(strategy, self.reasons, self._mode)
        with kept_in_fp32(module, self.reasons):
            yield

    def _keep(self, reasons: dict[str, str], module: Module) -> None:
        self.reasons = {name: reasons[name] for name in layers_by_name(module) if name in reasons}


def check_together(config: Fallback, mode: Mode, telemetry: Telemetry) -> None:
    """Check what a fallback needs of the other settings.

    Raises:
        ConfigError: when it does not find it.
    """
    if config.auto and telemetry.max_traced == 0:
        raise ConfigError("Fallback.auto=True needs traced incidents; accepted: Telemetry.max_traced of at least 1.")
    if mode.name == "tf32" and (config.names_layers or config.auto):
        raise ConfigError(
            "A fallback cannot keep layers out of 'tf32', which is one switch for all of them; accepted: fallback=None "
            "or precision='fp32'."
        )
    if config.auto and mode.weights != "fp32":
        raise ConfigError(
            f"Fallback.auto=True is not accepted with precision={mode.name!r}, as an optimizer cannot be given weights "
            "of another format on the way; accepted: Fallback(layers=[...]), or auto with '16-mixed' or 'bf16-mixed'."
        )
