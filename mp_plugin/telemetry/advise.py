"""A number format for each layer of a run, from its exponent histograms alone.

Nothing is cast and no hardware is needed: a run in bf16 on any device tells what e4m3 would do on another.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mp_plugin.formats import FORMATS
from mp_plugin.telemetry.advice_words import limits_in_words, summary_in_words, why_not_fp16
from mp_plugin.telemetry.events import Cause, Direction, Incident
from mp_plugin.telemetry.format_fit import FormatFit, best_scale, format_fit
from mp_plugin.telemetry.fp16_scales import SCALES, Fp16Scales, fp16_scales
from mp_plugin.telemetry.layer_histograms import LayerHistogram, layer_histograms
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.store import Run
from mp_plugin.telemetry.tensor_stats import TensorStats
from mp_plugin.telemetry.tolerances import Tolerances

if TYPE_CHECKING:
    import pyarrow as pa

JUDGED = ("e4m3", "e5m2", "fp16", "bf16")
"""Cheapest first; of two that cost the same, the one with more digits first. What fits none of them needs fp32."""

UNKNOWN = "unknown"
"""In place of a format, where each sample had NaN or Inf from another layer."""


@dataclass(frozen=True, kw_only=True)
class FormatAdvice:
    """What one format would do to one layer in one direction."""

    plain: FormatFit
    """Without a scale."""
    scaled: FormatFit
    """With the power of two that suits this layer best."""
    used: FormatFit
    """With the scale that training would have: for 8 bits one of the tensor's own, for gradients in fp16 the highest
    loss scale that fits the most layers, else none. This is what `fits` is judged by."""
    fits: bool
    """Whether the tolerances allow it, in all samples together."""
    worst_flushed: float
    """The highest share of one sample that would be flushed there."""
    worst_step: int | None
    """When that was; None if nothing was."""


@dataclass(frozen=True, kw_only=True)
class LayerAdvice:
    """What each format would do to one layer in one direction."""

    layer: str
    direction: Direction
    histogram: LayerHistogram
    """Forward of its activations; backward of their gradients, or of its parameters' gradients without those."""
    formats: Mapping[str, FormatAdvice]
    """By the names in `JUDGED`."""

    @property
    def is_known(self) -> bool:
        """Whether there was something to judge: a sample without NaN and Inf, or the first one with them."""
        return _is_known(self.histogram)

    @property
    def cheapest(self) -> str:
        """The first format of `JUDGED` that fits, else `fp32`; `unknown` if there was nothing to judge."""
        return next((name for name in JUDGED if self.formats[name].fits), "fp32") if self.is_known else UNKNOWN


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Which formats the layers of a run could have."""

    tolerances: Tolerances
    layers: tuple[LayerAdvice, ...]
    """In the order of the model, forward before backward."""
    loss_scales: Fp16Scales | None
    """That would fit in fp16; None without gradients, and where no layer fits any."""
    fp32_layers: Mapping[str, str]
    """The layers that do not fit fp16, and why; in the order of the model."""
    unknown_layers: tuple[str, ...]
    """Those of which nothing is known, in one direction at least, as each sample had NaN or Inf from elsewhere."""
    limits: tuple[str, ...]
    """What this run cannot tell, one sentence each."""
    summary: str
    """The whole model in words."""


def advise(run: "Run | pa.Table", tolerances: Tolerances | None = None) -> Advice:
    """Return a format for each layer of a run.

    Overflow is judged by the largest value of all samples, what is flushed or subnormal by all samples together.

    Args:
        run: what `open_run` returned, or the samples of it.
        tolerances: what a format may lose; None for the defaults.

    Raises:
        TelemetryError: for a run without histograms.
    """
    samples = run.samples if isinstance(run, Run) else run
    tolerances = tolerances or Tolerances()
    histograms = layer_histograms(samples, origins=_origins(run.incidents) if isinstance(run, Run) else None)
    by_kind = {kind: {each.layer: each for each in histograms if each.kind is kind} for kind in TensorKind}
    forward = by_kind[TensorKind.activation]
    backward = {**by_kind[TensorKind.parameter_gradient], **by_kind[TensorKind.activation_gradient]}
    names = list(dict.fromkeys(each.layer for each in histograms))

    overflowing = {
        name
        for name in names
        if name in forward and _is_known(forward[name]) and not _fits(forward[name], "fp16", 1.0, tolerances)
    }
    gradients: dict[str, list[TensorStats]] = {}
    for each in histograms:
        if each.kind is not TensorKind.activation and each.layer not in overflowing and each.samples:
            gradients.setdefault(each.layer, []).append(each.stats)
    scales = fp16_scales(gradients, tolerances)
    in_fp16: frozenset[str] = frozenset() if scales is None else scales.layers
    misfits = frozenset(gradients) - in_fp16

    layers = []
    for name in names:
        if name in forward:
            layers.append(_layer(forward[name], Direction.forward, tolerances, None, frozenset()))
        if name in backward:
            layers.append(_layer(backward[name], Direction.backward, tolerances, scales, misfits))
    fp32_layers = {
        name: why_not_fp16(forward[name] if name in overflowing else None, tolerances)
        for name in names
        if name in overflowing or name in misfits
    }
    unknown = {each.layer for each in layers if not each.is_known} - fp32_layers.keys()
    unknown_layers = tuple(name for name in names if name in unknown)
    return Advice(
        tolerances=tolerances,
        layers=tuple(layers),
        loss_scales=scales,
        fp32_layers=fp32_layers,
        unknown_layers=unknown_layers,
        limits=limits_in_words(histograms, computed_in=set(samples.column("compute_dtype").unique().to_pylist())),
        summary=summary_in_words(
            names,
            fp32_layers,
            unknown_layers,
            None if scales is None else (scales.lowest, scales.highest),
            _counts(layers),
            has_gradients=bool(backward),
        ),
    )


def _layer(
    histogram: LayerHistogram,
    direction: Direction,
    tolerances: Tolerances,
    scales: Fp16Scales | None,
    misfits: frozenset[str],
) -> LayerAdvice:
    formats = {}
    for name in JUDGED:
        stats, number_format = histogram.stats, FORMATS[name]
        plain = format_fit(stats.exponents, stats.amax, number_format)
        scaled = format_fit(
            stats.exponents, stats.amax, number_format, scale=best_scale(stats.exponents, stats.amax, number_format)
        )
        is_loss_scaled = name == "fp16" and direction is Direction.backward
        used = scaled if name in ("e4m3", "e5m2") else plain
        if is_loss_scaled:
            own = min(max(scaled.scale, SCALES[0]), SCALES[-1])
            scale = scales.highest if scales is not None else own
            used = format_fit(stats.exponents, stats.amax, number_format, scale=scale)
        vanishing = math.frexp(number_format.smallest_subnormal / 2 / used.scale)[1] - 1
        worst_flushed, worst_step = histogram.worst_at_or_below(vanishing)
        formats[name] = FormatAdvice(
            plain=plain,
            scaled=scaled,
            used=used,
            fits=_fits(histogram, name, used.scale, tolerances) and not (is_loss_scaled and histogram.layer in misfits),
            worst_flushed=worst_flushed,
            worst_step=worst_step,
        )
    return LayerAdvice(layer=histogram.layer, direction=direction, histogram=histogram, formats=formats)


def _fits(histogram: LayerHistogram, name: str, scale: float, tolerances: Tolerances) -> bool:
    if not histogram.samples or histogram.broke_at is not None:
        return False
    stats = histogram.stats
    return tolerances.accept(format_fit(stats.exponents, stats.amax, FORMATS[name], scale=scale))


def _is_known(histogram: LayerHistogram) -> bool:
    return bool(histogram.samples) or histogram.broke_at is not None


def _origins(incidents: Iterable[Incident]) -> dict[int, str | None]:
    """Return by step the layer whose forward pass needs more range, as far as incidents tell; None if none does."""
    found: dict[int, str | None] = {}
    for each in incidents:
        if each.cause in (Cause.data, Cause.weights) or each.evidence.get("forward_finite_in_fp32") is False:
            found[each.step] = None
        elif each.cause is Cause.forward and each.layer is not None:
            found[each.step] = each.layer
    return found


def _counts(layers: list[LayerAdvice]) -> dict[tuple[str, Direction], tuple[int, int]]:
    """Return for each format and direction how many layers fit, and of how many with a sample that tells."""
    return {
        (name, direction): (sum(each.formats[name].fits for each in there), len(there))
        for direction in Direction
        if (there := [each for each in layers if each.direction is direction and each.histogram.samples])
        for name in JUDGED
    }
