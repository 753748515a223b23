"""Send what was sampled of single layers to whatever trackers a run logs to."""

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain, zip_longest
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from mp_plugin.config import LayerMetrics
from mp_plugin.instance import replace_attribute
from mp_plugin.telemetry.layer_sample import LayerSample, TensorKind
from mp_plugin.telemetry.tensor_stats import TensorStats

log = logging.getLogger(__name__)

NUM_EXTREMES = 3
"""Layers of a sample that are extreme: so many by headroom, and so many by underflow."""
MAX_TRACKED = 12
"""Extreme layers of a run. Each has its curves from then on, and each new one is new columns in a CSV file."""
EACH_STEP = "precision/effective_step"
"""A metric that is in each row of training metrics, and in no other."""
MAX_BARS = 50
"""Layers in a chart; more cannot be read."""


class TrackedLayers:
    """Log metrics of layers under `precision/layer/<name>/<kind>/`, and histograms where values were counted.

    Of `extremes`, the layers with the least headroom or the most underflow in some sample are logged from then on.
    Whatever goes wrong with a tracker never stops a run: it is told once, and nothing more is sent there.

    In a CSV file the newest sample goes into the next row of the run's own metrics: a row of its own would have none.

    Args:
        which: of which layers.
    """

    def __init__(self, which: LayerMetrics) -> None:
        self._which = which
        self._waiting: dict[CSVLogger, tuple[dict[str, Any], int]] = {}
        self._joined: set[Logger] = set()
        self._tracked: list[str] = []
        self._tags: dict[str, str] = {}
        self._broken: set[int] = set()

    def log(self, trainer: "pl.Trainer", samples: Sequence[LayerSample], step: int) -> None:
        """Log a sample; call on the first rank.

        Args:
            trainer: whose loggers are told.
            samples: of all layers in one step.
            step: where they appear, as Lightning counted the step for its own metrics when they were taken.
        """
        if self._which is LayerMetrics.none or not trainer.loggers or not samples:
            return
        chosen = self._chosen(samples)
        logged = [sample for sample in samples if sample.layer in chosen]
        for logger in trainer.loggers:
            if id(logger) in self._broken:
                continue
            try:
                self._log_to(logger, logged, samples, step)
            except Exception as error:  # a run must not end because a tracker cannot be reached
                self._broken.add(id(logger))
                name, reason = type(logger).__name__, f"{type(error).__name__}: {error}"
                log.warning("%s cannot log layers (%s); no more metrics of layers are sent there.", name, reason)

    def connect(self, trainer: "pl.Trainer") -> Callable[[], None]:
        """Join the rows of CSV files; returns what ends that, and writes what still waits for a row."""
        loggers = [each for each in trainer.loggers if isinstance(each, CSVLogger)]
        undo = [replace_attribute(each, "log_metrics", self._joining(each)) for each in loggers]
        self._waiting = {}
        self._joined = {*loggers}

        def disconnect() -> None:
            for restore in undo:
                restore()
            for logger, (metrics, step) in self._waiting.items():
                logger.log_metrics(metrics, step=step)
                logger.save()
            self._waiting, self._joined = {}, set()

        return disconnect

    def _joining(self, logger: CSVLogger) -> Callable[..., None]:
        original = logger.log_metrics

        def log_metrics(metrics: dict[str, Any], step: int | None = None) -> None:
            if EACH_STEP in metrics and logger in self._waiting:
                metrics = {**metrics, **self._waiting.pop(logger)[0]}
            original(metrics, step=step)

        return log_metrics

    def _chosen(self, samples: Sequence[LayerSample]) -> set[str]:
        if self._which is LayerMetrics.all:
            return {sample.layer for sample in samples}
        new = [layer for layer in extreme_layers(samples) if layer not in self._tracked]
        self._tracked += new[: MAX_TRACKED - len(self._tracked)]
        return set(self._tracked)

    def _log_to(self, logger: Logger, logged: Sequence[LayerSample], samples: Sequence[LayerSample], step: int) -> None:
        metrics: dict[str, Any] = {
            f"{self._path(sample)}/{name}": value for sample in logged for name, value in _metrics(sample).items()
        }
        if logger in self._joined:
            self._waiting[logger] = (metrics, step)  # type: ignore[index]  # only CSV loggers are among them
            return
        logger.log_metrics(metrics, step=step)
        counted = {
            f"{self._path(each)}/log2_magnitude": each.stats.exponents for each in logged if each.stats.exponents
        }
        if isinstance(logger, TensorBoardLogger):
            for tag, exponents in counted.items():
                _log_to_tensorboard(logger, tag, exponents, step)
        elif isinstance(logger, WandbLogger):
            _log_to_wandb(logger, counted, self._headroom(samples), step)

    def _headroom(self, samples: Sequence[LayerSample]) -> dict[str, float]:
        """Return the least headroom of each layer, the least first."""
        headroom: dict[str, float] = {}
        for sample in samples:
            if sample.headroom_bits is not None:
                tag = self._tag(sample.layer)
                headroom[tag] = min(sample.headroom_bits, headroom.get(tag, math.inf))
        return dict(sorted(headroom.items(), key=lambda item: item[1]))

    def _path(self, sample: LayerSample) -> str:
        return f"precision/layer/{self._tag(sample.layer)}/{sample.kind.value}"

    def _tag(self, layer: str) -> str:
        """Return a name that every tracker takes, and that no other layer has."""
        if layer not in self._tags:
            tag = plain = re.sub(r"[^\w.-]", "_", layer, flags=re.ASCII) or "root"
            number = 1
            while tag in self._tags.values():
                number += 1
                tag = f"{plain}_{number}"
            self._tags[layer] = tag
        return self._tags[layer]


def extreme_layers(samples: Sequence[LayerSample]) -> list[str]:
    """Return the layers closest to an end of the compute dtype, the most extreme first: least headroom, most underflow.

    Layers in FP32 of a half-precision run come last, as they can reach no end of it.

    Args:
        samples: of all layers in one step.
    """
    safe = {sample.layer for sample in samples if _is_safe(sample)}

    def first(key: Callable[[LayerSample], float | None]) -> list[str]:
        ranked = [
            (sample.layer in safe, value, sample.layer) for sample in samples if (value := key(sample)) is not None
        ]
        return list(dict.fromkeys(layer for _, _, layer in sorted(ranked)))[:NUM_EXTREMES]

    by_headroom = first(lambda sample: sample.headroom_bits)
    by_underflow = first(lambda sample: -_underflow(sample.stats) or None)
    both = chain.from_iterable(zip_longest(by_headroom, by_underflow))
    return list(dict.fromkeys(layer for layer in both if layer is not None))


def _is_safe(sample: LayerSample) -> bool:
    if sample.dtype not in ("fp32", "fp64") or sample.compute_dtype not in ("fp16", "bf16"):
        return False
    # Gradients of FP32 weights are FP32 wherever they come from, but half precision made none that is beyond it.
    is_beyond = sample.headroom_bits is not None and sample.headroom_bits < 0
    return sample.kind is not TensorKind.parameter_gradient or is_beyond


def _metrics(sample: LayerSample) -> dict[str, float]:
    stats = sample.stats
    metrics = {"amax": stats.amax, "underflow": _underflow(stats), "saturated": _share(stats.saturated, stats)}
    # None of a layer that is all zeros: its headroom has no end.
    return metrics if sample.headroom_bits is None else {"headroom_bits": sample.headroom_bits, **metrics}


def _underflow(stats: TensorStats) -> float:
    return _share(stats.flushed + stats.subnormal, stats)


def _share(count: int, stats: TensorStats) -> float:
    """Return the share of the finite values that are not zero."""
    return count / max(1, stats.numel - stats.zeros - stats.non_finite)


def _bins(exponents: Mapping[int, int]) -> tuple[list[int], list[int]]:
    """Return the edges of bins of base-2 logarithms of magnitudes, and the number of values in each bin."""
    lowest, highest = min(exponents), max(exponents)
    edges = range(lowest - 1, highest + 1)
    return [*edges], [exponents.get(edge, 0) for edge in edges[1:]]


def _log_to_tensorboard(logger: TensorBoardLogger, tag: str, exponents: Mapping[int, int], step: int) -> None:
    # Of logarithms: TensorBoard's axis is linear, on which all but the largest magnitudes would fall into one bar.
    edges, counts = _bins(exponents)
    middles = [edge + 0.5 for edge in edges[:-1]]
    logger.experiment.add_histogram_raw(
        tag,
        min=edges[0],
        max=edges[-1],
        num=sum(counts),
        sum=sum(middle * count for middle, count in zip(middles, counts, strict=True)),
        sum_squares=sum(middle**2 * count for middle, count in zip(middles, counts, strict=True)),
        bucket_limits=edges[1:],
        bucket_counts=counts,
        global_step=step,
    )


def _log_to_wandb(
    logger: WandbLogger, counted: Mapping[str, Mapping[int, int]], headroom: Mapping[str, float], step: int
) -> None:
    import wandb

    shown: dict[str, object] = {}
    for tag, exponents in counted.items():
        edges, counts = _bins(exponents)
        shown[tag] = wandb.Histogram(np_histogram=(np.array(counts), np.array(edges)))
    if headroom:
        table = wandb.Table(columns=["layer", "headroom_bits"], data=[*map(list, headroom.items())][:MAX_BARS])
        title = "Doublings until the largest value overflows"
        shown["precision/headroom"] = wandb.plot.bar(table, "layer", "headroom_bits", title=title)
    if shown:
        # As the logger's own metrics, which have this for an axis.
        logger.experiment.log({**shown, "trainer/global_step": step})
