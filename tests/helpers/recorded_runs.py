"""Runs on disk as training leaves them, made of synthetic samples: for what reads them."""

import math
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mp_plugin.fallback.layer_format import LayerFormat
from mp_plugin.fallback.precision_map import FILE_NAME, PrecisionMap
from mp_plugin.formats import FORMATS
from mp_plugin.modes import MODES
from mp_plugin.telemetry.events import Action, Cause, Direction, Incident
from mp_plugin.telemetry.incident_log import IncidentLog
from mp_plugin.telemetry.layer_sample import LayerSample, TensorKind
from mp_plugin.telemetry.run_info import RunInfo
from mp_plugin.telemetry.tensor_stats import TensorStats
from mp_plugin.telemetry.write_samples import StatsFiles

RUN = "2026-02-03T04:05:06.789+00:00"
EVERY_N_STEPS = 100

DRIFTING, UNDERFLOWING = 1, 2
"""Places of the layer that comes close to overflow in fp16, and of the one that vanishes there."""

HOSTILE_NAMES = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(2)>",
    'it\'s "quoted" & `ticked` \\ ${x} {{y}} %s',
    "emoji \N{FIRE}\N{ZERO WIDTH JOINER} \N{RIGHT-TO-LEFT OVERRIDE}txet \u2028 line",
    "long." + "x" * 295,
    "[bold red]markup[/bold red]",
)
"""Layers that would break a page, a terminal or a query that takes their names for its own language."""

_BITS = torch.arange(-18.0, 4.0, dtype=torch.float64)
"""Exponents that values have, less that of their standard deviation."""
_LARGEST = 2.1
"""Log2 of the largest of some 10,000 normal values, by their standard deviation."""


def layer_names(num_layers: int, *, hostile: bool = False) -> list[str]:
    """Names as a transformer has them; hostile: the first of them are `HOSTILE_NAMES`."""
    parts = ("norm", "attention.query", "attention.out", "mlp.up", "mlp.down")
    names = [f"blocks.{place // len(parts)}.{parts[place % len(parts)]}" for place in range(num_layers)]
    return [*HOSTILE_NAMES, *names][:num_layers] if hostile else names


def record_run(
    directory: str | Path,
    *,
    num_layers: int = 6,
    num_samples: int = 5,
    kinds: Collection[TensorKind] = tuple(TensorKind),
    histograms: bool = True,
    incidents: int = 2,
    status: str = "finished",
    precision: str = "16-mixed",
    seed: int = 0,
    hostile: bool = False,
    names: Collection[str] | None = None,
    run: str = RUN,
    first_step: int = 0,
    every_n_steps: int = EVERY_N_STEPS,
    numel: int = 65_536,
    with_map: bool = True,
) -> Path:
    """Write a run through the writers that training uses; a second call adds a session.

    Layer 1 drifts to where fp16 overflows, layer 2 is where it underflows, the last one is in FP32; the loss scale of
    an fp16 run is lowered by each incident and raised once. The numbers of a row agree with its histogram.

    Args:
        directory: of the run.
        num_layers: how many layers.
        num_samples: sampled steps.
        kinds: sampled of each layer.
        histograms: whether the samples have them.
        incidents: how many, spread over the run.
        status: of its `run.json`.
        precision: Lightning's name.
        seed: of the numbers.
        hostile: whether the first layers have `HOSTILE_NAMES`.
        names: of the layers, instead.
        run: when the session began.
        first_step: that is sampled.
        every_n_steps: between two samples.
        numel: values of a row.
        with_map: whether it leaves a precision map.

    Returns:
        The directory.
    """
    directory = Path(directory)
    names = list(names) if names is not None else layer_names(num_layers, hostile=hostile)
    compute_dtype = MODES[precision].compute
    steps = [first_step + place * every_n_steps for place in range(num_samples)]
    steps_of_incidents = [
        first_step + (place + 1) * num_samples * every_n_steps // (incidents + 1) for place in range(incidents)
    ]
    scales = _Scales(steps_of_incidents, first_step + num_samples * every_n_steps // 2, compute_dtype)
    files = StatsFiles(directory, run=run)
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(len(kinds), len(names), generator=generator, dtype=torch.float64)
    for place, step in enumerate(steps):
        progress = place / max(num_samples - 1, 1)
        samples: list[LayerSample] = []
        for row, kind in enumerate(kinds):
            scale = 1.0 if kind is TensorKind.activation else scales.at(step)
            deviations = _deviations(kind, base[row], progress, math.log2(scale), generator)
            samples += _samples(step, kind, names, deviations, compute_dtype, scale, histograms, numel, generator)
        by_layer = [samples[start :: len(names)] for start in range(len(names))]
        files.append([sample for layer in by_layer for sample in layer])
    files.flush()
    diary = IncidentLog(directory, run=run)
    for number, step in enumerate(steps_of_incidents):
        diary.append(_incident(number, step, names, scales.at(step - 1), compute_dtype))
    if incidents:
        diary.append_event({"event": "given back", "step": steps_of_incidents[-1] + 1, "layers": [names[0]]})
    if with_map:
        _map(names, precision, compute_dtype).save(directory / FILE_NAME)
    _info(run, status, precision, compute_dtype, steps, scales, incidents, names, histograms).save(directory)
    return directory


class _Scales:
    """The loss scale: halved by each incident, doubled once."""

    def __init__(self, backoffs: list[int], growth: int, compute_dtype: str) -> None:
        self._backoffs = backoffs
        self._growth = growth
        self._first = 2.0**15 if compute_dtype == "fp16" else 1.0

    def at(self, step: int) -> float:
        if self._first == 1:
            return 1.0
        changes = int(step >= self._growth) - sum(step >= each for each in self._backoffs)
        return max(self._first * 2.0**changes, 1.0)


def _deviations(kind: TensorKind, base: Tensor, progress: float, shift: float, generator: torch.Generator) -> Tensor:
    """Log2 of the standard deviation of each layer's values."""
    noise = torch.randn(len(base), generator=generator, dtype=torch.float64)
    typical = {TensorKind.activation: 0.0, TensorKind.activation_gradient: -18.0, TensorKind.parameter_gradient: -15.0}
    deviations = base + 0.2 * noise + typical[kind]
    if len(base) > DRIFTING:
        near = math.log2(FORMATS["fp16"].max) - shift - _LARGEST - 1
        deviations[DRIFTING] += progress * (near - deviations[DRIFTING])
    if len(base) > UNDERFLOWING:
        flushes = math.log2(FORMATS["fp16"].smallest_subnormal) - 1 - shift
        deviations[UNDERFLOWING] = flushes + 1.5 + 0.2 * noise[UNDERFLOWING]
    return deviations


def _samples(
    step: int,
    kind: TensorKind,
    names: list[str],
    deviations: Tensor,
    compute_dtype: str,
    loss_scale: float,
    histograms: bool,
    numel: int,
    generator: torch.Generator,
) -> Iterator[LayerSample]:
    """Normally distributed values, by the number of them in each bin."""
    num_zeros = numel // 100
    firsts = (torch.floor(deviations) + _BITS[0]).long()
    exponents = firsts[:, None] + torch.arange(len(_BITS))
    up_to = torch.erf(torch.exp2(exponents - deviations[:, None]) / math.sqrt(2))
    expected = torch.diff(up_to, dim=1, prepend=torch.zeros(len(names), 1, dtype=torch.float64)) * (numel - num_zeros)
    noise = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    counts = torch.round(expected + expected.sqrt() * noise).clamp(min=0).long()
    fullest = torch.arange(len(names)), expected.argmax(1)
    counts[fullest] += numel - num_zeros - counts.sum(1)
    is_full = counts > 0
    highest = exponents.where(is_full, -10_000).amax(1)
    lowest = exponents.where(is_full, 10_000).amin(1)
    within = 0.9 * torch.rand(2, len(names), generator=generator, dtype=torch.float64)
    amax = torch.exp2(highest.double() - within[0]).tolist()
    smallest = torch.exp2(lowest.double() - within[1]).tolist()
    squares = (counts * torch.exp2(2 * (exponents.double() - 0.5))).sum(1).tolist()
    number_format = FORMATS[compute_dtype]
    shift = math.log2(loss_scale)
    is_flushed = exponents <= math.log2(number_format.smallest_subnormal) - 1 - shift
    is_subnormal = ~is_flushed & (exponents <= math.log2(number_format.smallest_normal) - shift)
    is_saturated = exponents - 1 >= math.log2(number_format.max) - shift
    flushed, subnormal, saturated = (
        (counts * each).sum(1).tolist() for each in (is_flushed, is_subnormal, is_saturated)
    )
    for place, (name, first, row) in enumerate(zip(names, firsts.tolist(), counts.tolist(), strict=True)):
        is_fp32 = place == len(names) - 1 or kind is TensorKind.parameter_gradient
        yield LayerSample(
            step=step,
            layer=name,
            kind=kind,
            dtype="fp32" if is_fp32 else compute_dtype,
            compute_dtype=compute_dtype,
            loss_scale=loss_scale,
            stats=TensorStats(
                numel=numel,
                zeros=num_zeros,
                amax=amax[place],
                smallest=smallest[place],
                sum_of_squares=squares[place],
                flushed=flushed[place],
                subnormal=subnormal[place],
                saturated=saturated[place],
                exponents={first + bit: count for bit, count in enumerate(row) if count} if histograms else {},
            ),
        )


def _incident(number: int, step: int, names: list[str], loss_scale: float, compute_dtype: str) -> Incident:
    layer = names[min(DRIFTING, len(names) - 1)]
    common: dict[str, Any] = {
        "step": step,
        "batch_idx": step,
        "kind": "inf",
        "parameters": (f"{layer}.weight", f"{layer}.bias"),
        "rank": 0,
        "loss_scale": loss_scale,
        "dtype": compute_dtype,
        "layer": layer,
        "traced": True,
        "cured": True,
    }
    if number % 2:
        return Incident(
            action=Action.fallback,
            cause=Cause.forward,
            direction=Direction.forward,
            operator="aten.addmm.default",
            location="model.py:57 in forward",
            amax_in=3.1e4,
            amax_out=math.inf,
            reason="overflow of fp16",
            culprits=(names[-1],),
            evidence={"forward_finite_in_fp32": True},
            **common,
        )
    return Incident(
        action=Action.retry,
        cause=Cause.backward,
        direction=Direction.backward,
        operator="aten.mm.default",
        location="model.py:61 in forward",
        amax_in=5.9e4,
        amax_out=math.inf,
        reason="overflow of fp16",
        evidence={"loss": 1.25, "backward_finite_at_lower_scale": True},
        **common,
    )


def _map(names: list[str], precision: str, compute_dtype: str) -> PrecisionMap:
    layers = {
        name: LayerFormat(format=compute_dtype, why="autocast", since_step=0, is_island=False, bears_parameters=True)
        for name in names
    }
    layers[names[-1]] = LayerFormat(
        format="fp32", why="proved: overflow of fp16", since_step=200, is_island=True, bears_parameters=True
    )
    return PrecisionMap(precision=precision, layers=layers)


def _info(
    run: str,
    status: str,
    precision: str,
    compute_dtype: str,
    steps: list[int],
    scales: _Scales,
    incidents: int,
    names: list[str],
    histograms: bool,
) -> RunInfo:
    used = [scales.at(step) for step in steps] or [1.0]
    has_scale = compute_dtype == "fp16"
    return RunInfo(
        run=run,
        status=status,
        updated="2026-02-03T05:05:06.789+00:00",
        precision=precision,
        compute_dtype=compute_dtype,
        environment={
            "mp_plugin": "0.1.0",
            "python": "3.11.9",
            "torch": "2.13.0",
            "lightning": "2.6.6",
            "device": "cpu",
            "ranks": "1",
        },
        telemetry={
            "every_n_steps": EVERY_N_STEPS,
            "activations": True,
            "gradients": True,
            "histograms": histograms,
            "max_overhead": 0.01,
        },
        summary={
            "precision": precision,
            "steps": (steps[-1] if steps else 0) + 1,
            "effective_steps": (steps[-1] if steps else 0) + 1,
            "skipped_steps": 0,
            "retried_steps": incidents,
            "loss_scale": {"now": used[-1], "min": min(used), "max": max(used)} if has_scale else None,
            "incidents": {
                "total": incidents,
                "traced": incidents,
                "untraced": {},
                "by_cause": {"backward": (incidents + 1) // 2, "forward": incidents // 2},
                "by_parameter": {f"{names[min(DRIFTING, len(names) - 1)]}.weight": incidents},
                "origins": {},
            },
            "fp32_layers": {names[-1]: "proved: overflow of fp16"},
            "scale_window": {"lowest": 64.0, "highest": 2.0**17, "by_layer": {}, "emptied_by": []}
            if has_scale
            else None,
            "telemetry": {
                "taken": len(steps),
                "left_out": 1,
                "seconds": 0.02 * len(steps),
                "training_seconds": 4.0 * max(len(steps), 1),
                "share": 0.005,
            },
        },
    )
