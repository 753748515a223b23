"""Advice on number formats in words: what fits, why a layer does not, and what a run cannot tell."""

import math
from collections.abc import Collection, Mapping, Sequence

from mp_plugin.formats import FORMATS
from mp_plugin.telemetry.events import Direction
from mp_plugin.telemetry.format_fit import format_fit
from mp_plugin.telemetry.layer_histograms import LayerHistogram
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.tolerances import Tolerances

NAMED = 3
"""Layers that a sentence lists at most."""

Counts = Mapping[tuple[str, Direction], tuple[int, int]]
"""For each format and direction, how many layers fit, and of how many."""


def summary_in_words(
    layers: Sequence[str],
    fp32_layers: Collection[str],
    unknown_layers: Collection[str],
    loss_scales: tuple[float, float] | None,
    counts: Counts,
    *,
    has_gradients: bool,
) -> str:
    """Return the advice for a whole model.

    Example:
        >>> counts = {("bf16", Direction.forward): (3, 3), ("e4m3", Direction.forward): (2, 3)}
        >>> summary_in_words(["stem", "block", "head"], ["head"], [], (2.0**12, 2.0**17), counts, has_gradients=True)
        'fp16 is safe with a loss scale of 2^12 to 2^17 (2 of 3 layers; head needs fp32); bf16 fits all 3 layers; \
fp8 fits with a scale for each tensor: e4m3 forward for 2 of 3 layers.'
    """
    sentences = [_fp16(layers, fp32_layers, unknown_layers, loss_scales, has_gradients=has_gradients)]
    bf16 = {count for (name, _), count in counts.items() if name == "bf16"}
    if all(fitting == of for fitting, of in bf16) and not unknown_layers:
        sentences.append(f"bf16 fits all {len(layers):,} layers")
    else:
        sentences.append("bf16 fits " + _by_direction(counts, dict.fromkeys(Direction, "bf16"), with_name=False))
    fp8 = _by_direction(counts, {Direction.forward: "e4m3", Direction.backward: "e5m2"}, with_name=True)
    sentences.append(f"fp8 fits with a scale for each tensor: {fp8}")
    return "; ".join(sentences) + "."


def why_not_fp16(activations: LayerHistogram | None, tolerances: Tolerances) -> str:
    """Return why a layer does not fit fp16.

    Args:
        activations: of the layer, if it is they that do not fit; else its gradients do not.
        tolerances: what may be lost.
    """
    if activations is None:
        return "no loss scale fits its gradients together with those of most layers"
    if activations.broke_at is not None:
        return f"NaN or Inf in its activations at step {activations.broke_at:,}"
    fit = format_fit(activations.stats.exponents, activations.stats.amax, FORMATS["fp16"])
    if fit.overflow.high > tolerances.overflow:
        return f"its activations reach {activations.stats.amax:.3g}, fp16 {FORMATS['fp16'].max:g}"
    if fit.flushed.high > tolerances.flushed:
        return f"{percent(fit.flushed.high)} of its activations would be flushed to zero"
    return f"{percent(fit.subnormal.high)} of its activations would be subnormal"


def limits_in_words(histograms: Collection[LayerHistogram], *, computed_in: Collection[str]) -> tuple[str, ...]:
    """Return what a run's histograms cannot tell, one sentence each.

    Args:
        histograms: of the run.
        computed_in: its compute dtypes.
    """
    kinds = {each.kind for each in histograms}
    limits = []
    if "fp16" in computed_in:
        limits.append(
            "This run computed in fp16: what that flushed is zero here, and not seen. A run in bf16 or fp32 shows it."
        )
    if left_out := sum(each.left_out for each in histograms):
        limits.append(f"{left_out:,} samples with NaN or Inf are left out.")
    if TensorKind.activation not in kinds:
        limits.append("Activations were not sampled, so that forward is not judged: Telemetry(activations=True).")
    if TensorKind.activation_gradient not in kinds and TensorKind.parameter_gradient in kinds:
        limits.append("Backward is judged by the gradients of parameters, as those of activations were not sampled.")
    limits.append(
        "8 bits are judged with a scale for each tensor, constant over the run. Weights, and steps between samples, "
        "are not seen. Range is judged here, not accuracy."
    )
    return tuple(limits)


def power(scale: float) -> str:
    """Return a power of two as such.

    Example:
        >>> power(4096.0), power(0.125)
        ('2^12', '2^-3')
    """
    return f"2^{math.frexp(scale)[1] - 1}"


def percent(share: float) -> str:
    """Return a share in a few characters, never as 0% or 100% unless it is.

    Example:
        >>> [percent(each) for each in (0.0, 1e-6, 0.0042, 0.3, 0.9999, 1.0)]
        ['0%', '<0.1%', '0.4%', '30%', '>99%', '100%']
    """
    if 0 < share < 0.001:
        return "<0.1%"
    if 0.99 < share < 1:
        return ">99%"
    return f"{share:.1%}" if 0 < share < 0.1 else f"{share:.0%}"


def _fp16(
    layers: Sequence[str],
    fp32_layers: Collection[str],
    unknown_layers: Collection[str],
    loss_scales: tuple[float, float] | None,
    *,
    has_gradients: bool,
) -> str:
    if len(fp32_layers) == len(layers):
        return f"fp16 fits none of {len(layers):,} layers"
    num_fitting = len(layers) - len(fp32_layers) - len(unknown_layers)
    facts = [f"{_listed(list(fp32_layers))} fp32"] if fp32_layers else []
    if unknown_layers:
        facts.append(f"{len(unknown_layers):,} cannot be judged, with NaN or Inf in every sample")
    if not num_fitting:
        return f"Whether fp16 fits is not known ({'; '.join(facts)})"
    fitting = "; ".join([f"{num_fitting:,} of {len(layers):,} layers", *facts])
    if loss_scales is None:
        unknown = "" if has_gradients else ", but gradients were not sampled, so no loss scale is known"
        return f"fp16 fits the activations ({fitting}){unknown}"
    lowest, highest = map(power, loss_scales)
    scales = f"a loss scale of {lowest} to {highest}" if lowest != highest else f"a loss scale of {lowest}"
    return f"fp16 is safe with {scales} ({fitting})"


def _listed(names: list[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} needs"
    if len(names) <= NAMED:
        return f"{', '.join(names[:-1])} and {names[-1]} need"
    return f"{', '.join(names[:NAMED])} and {len(names) - NAMED:,} more need"


def _by_direction(counts: Counts, names: Mapping[Direction, str], *, with_name: bool) -> str:
    parts = []
    for direction, name in names.items():
        if (name, direction) in counts:
            fitting, of = counts[name, direction]
            parts.append(f"{name} " * with_name + f"{direction.value} for {fitting:,} of {of:,} layers")
    return ", ".join(parts)
