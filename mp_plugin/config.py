"""What a user can set, checked when it is set."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from numbers import Integral, Real
from typing import Any

from mp_plugin.checks import is_count, is_number
from mp_plugin.errors import ConfigError

LOWEST_SCALE = 2.0**-64
HIGHEST_SCALE = 2.0**64
"""Both far from 2**-128, where the fp32 reciprocal of the scale is infinite and unscaling makes NaN of zero."""


class Policy(str, Enum):
    """How the loss scale moves."""

    dynamic = "dynamic"
    """Grow after `growth_interval` clean steps, back off on an overflow (Micikevicius et al., 2018)."""
    predictive = "predictive"
    """Forecast the largest gradient and stay just below the highest scale that fits it; needs no overflow."""
    static = "static"
    """Stay at `init_scale`; an overflow only skips the step."""


class AtMinScale(str, Enum):
    """What to do after `patience` overflows in a row at a scale that cannot go lower."""

    raise_ = "raise"
    """Stop the run with the weights of the last good step."""
    skip = "skip"
    """Go on skipping steps, and counting them."""
    fallback = "fallback"
    """Run the layers in FP32 that are proved to cure the step; stop the run if none do."""


@dataclass(frozen=True, kw_only=True)
class LossScaling:
    """How the loss of a 16-mixed run is scaled, so that small gradients survive fp16.

    Raises:
        ConfigError: when a field is outside its range; the message names the field.

    Example:
        >>> LossScaling(init_scale=2**10, growth_interval=500).max_scale
        16777216.0
    """

    policy: Policy = Policy.dynamic
    """`dynamic` follows overflows, `predictive` the size of the gradients, `static` keeps `init_scale`."""
    init_scale: float = 2.0**15
    """First scale. 2**15 is the largest power of two below fp16's 65504: a summed loss does not overflow at once."""
    growth_factor: float = 2.0
    """Multiplies the scale after `growth_interval` clean steps; above 1. Powers of two keep scaling exact."""
    backoff_factor: float = 0.5
    """Multiplies the scale on an overflow; between 0 and 1, exclusive."""
    growth_interval: int = 2000
    """Clean optimizer steps in a row before the scale grows; at least 1."""
    hysteresis: int = 1
    """Overflows it takes to back off, refilled when the scale changes; at least 1. Above 1, a bad batch may be free."""
    min_scale: float = 1.0
    """Lowest scale; from 2**-64 up to `init_scale`."""
    max_scale: float = 2.0**24
    """Highest scale; from `init_scale` up to 2**64."""
    at_min_scale: AtMinScale = AtMinScale.raise_
    """What `patience` overflows in a row at the lowest scale lead to: `raise`, `skip` or `fallback`."""
    patience: int = 10
    """Overflows in a row, at a scale that cannot go lower, before `at_min_scale` applies; at least 1."""
    retries: int = 1
    """Times an overflowed batch is run again, each time after the scale was lowered; 0 loses the batch."""

    def __post_init__(self) -> None:
        """Check every field and turn names into enum members."""
        _set(self, "policy", _choice, Policy)
        _set(self, "at_min_scale", _choice, AtMinScale)
        for name in ("min_scale", "init_scale", "max_scale"):
            _set(self, name, _number, LOWEST_SCALE, HIGHEST_SCALE, "2**-64 to 2**64")
        if not self.min_scale <= self.init_scale <= self.max_scale:
            raise ConfigError(
                f"LossScaling.init_scale={self.init_scale:.15g} is out of order; accepted: "
                f"min_scale ({self.min_scale:.15g}) <= init_scale <= max_scale ({self.max_scale:.15g})."
            )
        above_one, above_zero, below_one = math.nextafter(1, 2), math.nextafter(0, 1), math.nextafter(1, 0)
        _set(self, "growth_factor", _number, above_one, HIGHEST_SCALE, "above 1 and at most 2**64")
        _set(self, "backoff_factor", _number, above_zero, below_one, "between 0 and 1, exclusive")
        for name in ("growth_interval", "hysteresis", "patience"):
            _set(self, name, _count, 1)
        _set(self, "retries", _count, 0)


@dataclass(frozen=True, kw_only=True)
class Fallback:
    """Which layers of a model run in FP32, in a precision that is not: by rule, by a saved map, or by proof.

    A layer in FP32 costs what FP32 costs for that layer; all others run as before.

    Raises:
        ConfigError: when a field is outside its range; the message names the field.

    Example:
        >>> Fallback(layers=["head", "blocks.*.attn"], types=["LayerNorm"]).layers
        ('head', 'blocks.*.attn')
    """

    layers: tuple[str, ...] = ()
    """Globs on qualified names, such as `blocks.*.attn`; `*` matches dots too, `|` parts alternatives. Each has to
    match."""
    types: tuple[str, ...] = ()
    """Globs on class names, such as `*Norm*`, those of base classes too; `|` parts alternatives. Each has to match."""
    auto: bool = False
    """Whether layers are moved to FP32 that are proved to cure a batch that overflowed; needs fp32 weights."""
    patience: int = 1
    """Incidents cured by the same layers before these stay in FP32; at least 1. Before, it is for one batch only."""
    max_fraction: float = 0.2
    """Highest share of the parameter-bearing layers that `auto` moves to FP32, 0 to 1; above 0 at least one layer."""
    probation_steps: int = 1000
    """Clean steps after which a layer that `auto` moved is given back, and watched for as long; at least 1."""
    underflow_tolerance: float = 0.05
    """Share of a layer's gradient values that may flush to zero before a loss scale is too low for it, 0 to 1."""
    map: str | None = None
    """A `precision_map.yaml` of another run, whose layers in FP32 this run takes over; a path."""

    def __post_init__(self) -> None:
        """Check every field; lists become tuples and a path a string."""
        _set(self, "layers", _names)
        _set(self, "types", _names)
        _set(self, "auto", _flag)
        for name in ("patience", "probation_steps"):
            _set(self, name, _count, 1)
        for name in ("max_fraction", "underflow_tolerance"):
            _set(self, name, _number, 0, 1, "0 to 1")
        if self.map is not None:
            _set(self, "map", _path)

    @property
    def names_layers(self) -> bool:
        """Whether a rule or a map says which layers run in FP32."""
        return bool(self.layers or self.types or self.map)


class LayerMetrics(str, Enum):
    """Of which layers the newest sample is logged to the trackers, under `precision/layer/`."""

    none = "none"
    """Of none."""
    extremes = "extremes"
    """Of the few that came closest to an end of the number format so far."""
    all = "all"
    """Of each."""


@dataclass(frozen=True, kw_only=True)
class Telemetry:
    """How much a run finds out about its numbers and its incidents, and where it keeps what it found.

    A step that is not sampled, and has no incident, costs nothing.

    Raises:
        ConfigError: when a field is outside its range; the message names the field.

    Example:
        >>> Telemetry(directory="runs/7").max_traced
        20
    """

    every_n_steps: int = 100
    """Steps between two samples; 0 takes none. A sample that would exceed `max_overhead` is left out."""
    activations: bool = False
    """Whether the outputs of each layer are sampled, with `gradients` also the gradients that come back to them."""
    gradients: bool = True
    """Whether the gradients of each layer's parameters are sampled."""
    histograms: bool = False
    """Whether a sample counts values by base-2 exponent, which is what formats are judged by; a pass more."""
    max_overhead: float = 0.01
    """Highest share of the training time that samples may take, above 0; 1 sets no limit."""
    layer_metrics: LayerMetrics = LayerMetrics.extremes
    """Of which layers samples are logged: `none`, `extremes` or `all`, which floods a tracker for a large model."""
    drift_every_n_validations: int = 0
    """Validation runs between two in which a few batches are also run in FP32; 0 never."""
    drift_batches: int = 4
    """Validation batches that are run in FP32 then, on each rank; at least 1."""
    max_traced: int = 20
    """Incidents traced in full per run, each for a few runs of its batch; at least 0. Later ones are only recorded."""
    directory: str | None = None
    """Where `telemetry/` is written, a path; None for the trainer's log directory."""
    keep_batches: bool = False
    """Whether to save each traced incident's batch beside it. Off, as batches can be private, and large."""
    census: bool = False
    """Whether the first step is run once more to count operators by layer and number format."""

    def __post_init__(self) -> None:
        """Check every field and turn a path into a string."""
        for name in ("every_n_steps", "max_traced", "drift_every_n_validations"):
            _set(self, name, _count, 0)
        _set(self, "drift_batches", _count, 1)
        _set(self, "max_overhead", _number, math.nextafter(0, 1), 1, "above 0 and at most 1")
        _set(self, "layer_metrics", _choice, LayerMetrics)
        if self.directory is not None:
            _set(self, "directory", _path)
        for name in ("activations", "gradients", "histograms", "keep_batches", "census"):
            _set(self, name, _flag)

    @property
    def asks_for_samples(self) -> bool:
        """Whether anything about samples was chosen, so that they are taken where the trainer logs nothing too."""
        about_samples = ("every_n_steps", "activations", "gradients", "histograms", "max_overhead", "directory")
        return any(getattr(self, name) != getattr(Telemetry, name) for name in about_samples)


def _set(config: object, name: str, check: Callable[..., object], *bounds: object) -> None:
    """Check a field, and replace what the user gave by what the check returns."""
    value = check(f"{type(config).__name__}.{name}", getattr(config, name), *bounds)
    object.__setattr__(config, name, value)  # the dataclass is frozen for everybody else


def _choice(name: str, value: object, choices: type[Enum]) -> Enum:
    try:
        return choices(value)
    except ValueError:
        accepted = ", ".join(repr(member.value) for member in choices)
        raise ConfigError(f"{name}={value!r} is unknown; accepted: {accepted}.") from None


def _number(name: str, value: Any, lowest: float, highest: float, accepted: str) -> float:
    if not is_number(_plain(value), lowest=lowest, highest=highest):
        raise ConfigError(f"{name}={value!r} is not accepted; accepted: a number, {accepted}.")
    return float(value)


def _count(name: str, value: Any, lowest: int) -> int:
    if not is_count(_plain(value), lowest=lowest):
        raise ConfigError(f"{name}={value!r} is not accepted; accepted: a whole number, at least {lowest}.")
    return int(value)


def _path(name: str, value: Any) -> str:
    path = os.path.expanduser(value) if isinstance(value, str | os.PathLike) else None
    # An empty one would mean the current directory, and usually comes from a variable that is not set.
    if not isinstance(path, str) or not path.strip():
        raise ConfigError(f"{name}={value!r} is not accepted; accepted: a path that is not empty, or None.")
    return path


def _names(name: str, value: Any) -> tuple[str, ...]:
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if not is_list or not all(isinstance(each, str) and each.strip() for each in value):
        raise ConfigError(f"{name}={value!r} is not accepted; accepted: a list of strings that are not empty.")
    return tuple(each.strip() for each in value)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is not accepted; accepted: True or False.")
    return value


def _plain(value: Any) -> Any:
    """Return a NumPy scalar as a number of Python's own, and everything else as it is."""
    if isinstance(value, (bool, int, float)) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)
