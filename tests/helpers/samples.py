"""Samples as training takes them, of tensors that a test has."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from mp_plugin.formats import FORMATS
from mp_plugin.telemetry.layer_sample import LayerSample, TensorKind
from mp_plugin.telemetry.stats_files import rows_of
from mp_plugin.telemetry.stats_row import stats_of, stats_row


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
    """A sample of these true values."""
    row = stats_row(values, compute=FORMATS[dtype], loss_scale=loss_scale, histogram=histograms)
    return LayerSample(
        step=step,
        layer=layer,
        kind=kind,
        dtype=dtype,
        compute_dtype=dtype,
        loss_scale=loss_scale,
        stats=stats_of(row.tolist()),
    )


def table(samples: Iterable[LayerSample]) -> Any:
    """The samples as `Run.samples` has them."""
    return rows_of(list(samples), "2026-01-01")
