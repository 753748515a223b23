"""Samples as training takes them, of tensors that a test has."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from mp_plugin.telemetry.gradient_range import gradient_ranges
from mp_plugin.telemetry.layer_sample import LayerSample, TensorKind
from mp_plugin.telemetry.stats_files import rows_of
from mp_plugin.telemetry.tensor_stats import TensorStats


def sample(
    layer: str,
    kind: TensorKind,
    values: Tensor,
    *,
    step: int = 0,
    histograms: bool = True,
    dtype: str = "bf16",
    loss_scale: float = 1.0,
) -> LayerSample:
    """A sample of these true values; without what the advisor does not read."""
    found = gradient_ranges([(layer, values)])[layer]
    num_nans = int(torch.isnan(values).sum())
    return LayerSample(
        step=step,
        layer=layer,
        kind=kind,
        dtype=dtype,
        compute_dtype=dtype,
        loss_scale=loss_scale,
        stats=TensorStats(
            numel=values.numel(),
            zeros=found.zeros,
            nans=num_nans,
            infs=found.non_finite - num_nans,
            amax=found.amax,
            exponents=found.exponents if histograms else {},
        ),
    )


def table(samples: Iterable[LayerSample]) -> Any:
    """The samples as `Run.samples` has them."""
    return rows_of(list(samples), "2026-01-01")
