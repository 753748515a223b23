"""The statistics of one sampled step, on their way from the device to the host."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from mp_plugin.numerics.host_copy import HostCopy
from mp_plugin.telemetry.census import least_precise
from mp_plugin.telemetry.layer_sample import LayerSample, TensorKind
from mp_plugin.telemetry.reason import FORMAT_NAMES
from mp_plugin.telemetry.stats_row import stats_of
from mp_plugin.telemetry.tensor_stats import TensorStats

Key = tuple[str, TensorKind]
Found = dict[Key, tuple[str, TensorStats]]
"""By layer and kind: the number format of the tensors, of several the least precise, and their statistics."""


class SampleRows:
    """Rows of numbers that stay on their device until all of them are read back in one copy.

    Example:
        >>> from mp_plugin.formats import FORMATS
        >>> from mp_plugin.telemetry.stats_row import stats_row
        >>> rows, values = SampleRows(), torch.ones(3, dtype=torch.bfloat16)
        >>> row = stats_row(values, compute=FORMATS["bf16"], histogram=False)
        >>> rows.add("head", TensorKind.activation, values.dtype, row)
        >>> rows.read_back()
        >>> dtype, stats = rows.found()["head", TensorKind.activation]
        >>> dtype, stats.numel
        ('bf16', 3)
    """

    def __init__(self) -> None:
        self._labels: list[tuple[Key, str]] = []
        self._rows: list[Tensor] = []
        self._host: HostCopy | None = None

    def add(self, layer: str, kind: TensorKind, dtype: torch.dtype, row: Tensor) -> None:
        """Take the statistics of a tensor; a layer may have several of a kind."""
        self._labels.append(((layer, kind), FORMAT_NAMES.get(dtype, str(dtype).removeprefix("torch."))))
        self._rows.append(row)

    def read_back(self) -> None:
        """Begin to copy all rows to the host; does not wait for CUDA."""
        if not self._rows:
            return
        device = next((row.device for row in self._rows if row.device.type != "cpu"), self._rows[0].device)
        rows = torch.stack([row.to(device) for row in self._rows])
        self._rows.clear()
        self._host = HostCopy(rows)

    def found(self) -> Found:
        """Return what was read back; waits for the copy."""
        if self._host is None:  # nothing was there, or could be read
            return {}
        rows = self._host.read().tolist()
        return merged({key: (dtype, stats_of(row))} for (key, dtype), row in zip(self._labels, rows, strict=True))


def merged(parts: Iterable[Found]) -> Found:
    """Return what several batches, calls or ranks found together."""
    found: Found = {}
    for part in parts:
        for key, (dtype, stats) in part.items():
            earlier = found.get(key)
            if earlier is not None:
                dtype, stats = least_precise([earlier[0], dtype]), earlier[1].merged(stats)
            found[key] = (dtype, stats)
    return found


def in_order(
    found: Found,
    order: Sequence[str],
    step: int,
    compute_dtype: str,
    loss_scales: Mapping[TensorKind, float],
) -> list[LayerSample]:
    """Return what was found of a step as samples, by layer and kind.

    Args:
        found: in the step.
        order: of the layers; those that are not listed come last.
        step: optimizer steps before it.
        compute_dtype: in which the run computes.
        loss_scales: what values of each kind were multiplied by.
    """
    places, kinds = {name: place for place, name in enumerate(order)}, [*TensorKind]
    keys = sorted(found, key=lambda key: (places.get(key[0], len(places)), kinds.index(key[1])))
    return [
        LayerSample(
            step=step,
            layer=layer,
            kind=kind,
            dtype=found[layer, kind][0],
            compute_dtype=compute_dtype,
            loss_scale=loss_scales.get(kind, 1.0),
            stats=found[layer, kind][1],
        )
        for layer, kind in keys
    ]
