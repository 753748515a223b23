"""What a metric's name tells: which way is better, and in what unit it is."""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from mp_plugin.errors import ConfigError
from mp_plugin.report.words import listed

SHARES = ("acc", "accuracy", "f1", "auroc", "auc", "precision", "recall", "iou", "dice", "map")
"""Higher is better, and 1 is perfect: differences are told in points, hundredths of it."""
LOWER = ("bits_per_byte", "nats_per_token", "perplexity", "ppl", "error", "wer", "cer", "rmse", "mse", "mae", "loss")
"""Lower is better."""
HIGHER = ("bleu", "rouge", "r2", "pearson", "spearman")
CALIBRATION = "calibration error"
"""What `predictions.py` finds from test_predictions.parquet, under this name."""
LARGEST_SHARE = 1.001
"""Sums in float32 may end a little above 1; a share in percent is far above it."""
LOWER_SHARES = (CALIBRATION, "calibration_error", "ece")
PREFERRED = (*SHARES, *HIGHER, *LOWER)
"""The first of these that all runs have is the one that is judged."""

DEFAULT_MARGIN_OF_SHARES = 0.005
"""Half a point."""
DEFAULT_MARGIN_RELATIVE = 0.01
"""Of the reference's mean, for all other metrics: nobody can know what a tolerable change of a perplexity is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric as it was logged."""

    name: str
    higher_is_better: bool | None
    """None if it is not known."""
    is_share: bool
    """Whether it goes from 0 to 1, and differences are told in points."""


def metric_named(name: str, values: Iterable[float] = (), *, higher_is_better: bool | None = None) -> Metric:
    """Return what a metric's name tells.

    Args:
        name: as it was logged, such as `test/acc`.
        values: that it took; what exceeds 1 is no share, but an accuracy in percent, say.
        higher_is_better: overrules the name; None leaves it to it.

    Example:
        >>> metric_named("test/acc_top1")
        Metric(name='test/acc_top1', higher_is_better=True, is_share=True)
        >>> metric_named("test/acc", [0.975]).is_share, metric_named("test/acc", [97.5]).is_share
        (True, False)
        >>> metric_named("val_loss").higher_is_better, metric_named("test/quality").higher_is_better
        (False, None)
    """
    kind = _kind(name)
    known = None if kind is None else kind in SHARES or kind in HIGHER
    return Metric(
        name=name,
        higher_is_better=known if higher_is_better is None else higher_is_better,
        is_share=(kind in SHARES or kind in LOWER_SHARES) and not any(value > LARGEST_SHARE for value in values),
    )


def main_metric(
    per_run: Collection[Mapping[str, float]], wanted: str | None = None, *, higher_is_better: bool | None = None
) -> Metric:
    """Return the metric that the runs are judged by.

    Args:
        per_run: the metrics of each run, by name.
        wanted: its name; None for the first of the known kinds that all runs have, test metrics before others.
        higher_is_better: overrules what its name tells.

    Raises:
        ConfigError: if no run has it, no known kind is there, or it is not known which way is better.
    """
    names = list(dict.fromkeys(name for metrics in per_run for name in metrics))
    if wanted is not None:
        if wanted not in names:
            raise ConfigError(f"No run has the metric {wanted}; accepted: one of {listed(names, 20)}.")
        found = metric_named(wanted, _values(per_run, wanted), higher_is_better=higher_is_better)
        if found.higher_is_better is None:
            raise ConfigError(
                f"Whether a higher {wanted} is better cannot be told from its name; "
                "accepted: --higher-is-better or --lower-is-better with it."
            )
        return found
    shared = [name for name in names if all(name in metrics for metrics in per_run)]
    ranked = _ranked(shared)
    if not ranked:
        raise ConfigError(
            f"None of the runs' metrics is one to judge by without being told; accepted: --metric with one of "
            f"{listed(shared or names, 20) or 'their metrics, of which there are none'}."
        )
    return metric_named(ranked[0], _values(per_run, ranked[0]), higher_is_better=higher_is_better)


def passed_over(per_run: Collection[Mapping[str, float]], main: Metric) -> list[str]:
    """Return the metrics that would have been judged by before the main one, had not some runs lacked them.

    Example:
        >>> passed_over([{"test/acc": 0.9, "test/loss": 0.3}, {"test/loss": 0.4}], metric_named("test/loss"))
        ['test/acc']
    """
    ranked = _ranked(dict.fromkeys(name for metrics in per_run for name in metrics))
    return ranked[: ranked.index(main.name)] if main.name in ranked else []


def shown_metrics(per_run: Collection[Mapping[str, float]], main: Metric) -> list[Metric]:
    """Return the metrics to be shown, the main one first: those of the test split, or all if there are none of it."""
    names = list(dict.fromkeys(name for metrics in per_run for name in metrics))
    of_test = [name for name in names if _is_test(name) or name == CALIBRATION]
    others = of_test if any(map(_is_test, of_test)) else names
    return [main, *(metric_named(name, _values(per_run, name)) for name in others if name != main.name)]


def default_margin(metric: Metric, reference: float) -> float:
    """Return the margin within which a difference from the reference's mean is taken for none."""
    return DEFAULT_MARGIN_OF_SHARES if metric.is_share else DEFAULT_MARGIN_RELATIVE * abs(reference)


def _values(per_run: Collection[Mapping[str, float]], name: str) -> list[float]:
    return [metrics[name] for metrics in per_run if name in metrics and math.isfinite(metrics[name])]


def _ranked(names: Iterable[str]) -> list[str]:
    """Return the names of a known kind, the one to judge by first."""
    return sorted(
        (name for name in names if _kind(name) in PREFERRED),
        key=lambda name: (not _is_test(name), PREFERRED.index(str(_kind(name)))),
    )


def _is_test(name: str) -> bool:
    return name.lower().startswith("test")


def _kind(name: str) -> str | None:
    """Return the kind of metric that a name speaks of; a loss is one, whatever it is of."""
    last = name.rsplit("/", 1)[-1].lower()
    words = last.replace("-", "_").replace(" ", "_").split("_")
    for kind in (*LOWER_SHARES, *LOWER, *SHARES, *HIGHER):
        parts = kind.replace(" ", "_").split("_")
        if any(words[place : place + len(parts)] == parts for place in range(len(words))):
            return kind
    return None
