"""What a page says in words and single numbers."""

import math
import re
from collections.abc import Callable
from typing import Any

from markupsafe import Markup, escape

from mp_plugin.fallback.layer_format import LayerFormat
from mp_plugin.report.outcome_words import outcome, outcomes
from mp_plugin.report.page_data import LONGEST_NAME, PageData
from mp_plugin.report.sample_cost import sample_cost
from mp_plugin.report.scale_history import summarised_scale
from mp_plugin.report.words import counted, percent, shown_name
from mp_plugin.report.worst_layers import fp32_layers
from mp_plugin.telemetry.advice import advice
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.store import Run
from mp_plugin.telemetry.table import in_seconds

KINDS = {
    TensorKind.activation: "Activations",
    TensorKind.activation_gradient: "Activation gradients",
    TensorKind.parameter_gradient: "Parameter gradients",
}


def figures(run: Run, data: PageData) -> list[tuple[str, Any, str]]:
    """Return the few numbers that stand at the top of the page: name, value, what to add."""
    summary = run.info.summary if run.info is not None else {}
    known: list[tuple[str, Any, str]] = []
    if "steps" in summary:
        known.append(("Steps", _count(summary["steps"]), "tried"))
        known.append(("Skipped", *_counted(summary.get("skipped_steps"), "step", "lost")))
        known.append(("Run again", *_counted(summary.get("retried_steps"), "step", "saved")))
    known.append(("Incidents", _count(len(run.incidents)), "overflows, NaN"))
    scale = summarised_scale(summary)
    if scale is not None:
        ends = Markup("from {} to {}").format(power(scale["min"]), power(scale["max"]))
        known.append(("Loss scale", power(scale["now"]), ends if scale["min"] < scale["max"] else "all along"))
    known.append(("In FP32", *_counted(len(fp32_layers(run)), "layer", "as chosen", ", ")))
    num_samples = sum(samples for _, _, samples in data.grid.columns)
    known.append(("Samples", _count(num_samples), f"of {counted(len(data.grid.layers), 'layer')}"))
    cost = sample_cost(run)
    if cost is not None and cost.share is not None:
        known.append(("Telemetry", percent(cost.share), "of the training time"))
    elif cost is not None:
        known.append(("Telemetry", in_seconds(cost.seconds), "for its samples"))
    return known


def title(run: Run) -> str:
    """Return the name of a run: the end of its path, as `version_0` alone is what every run of Lightning is called.

    Example:
        >>> from pathlib import Path
        >>> from mp_plugin.telemetry.stats_files import rows_of
        >>> title(Run(directory=Path("/home/me/lightning_logs/version_0"), samples=rows_of([], "")))
        'lightning_logs/version_0'
    """
    return "/".join(run.directory.resolve().parts[1:][-2:])


def session(run: Run, data: PageData) -> str:
    """Return what kind of run it is, in a line."""
    if run.info is None:
        return "run.json is missing or damaged: what it would tell is left out."
    begun = run.info.run.replace("T", " ")[:16]
    return f"{run.info.precision}, begun {begun} UTC, {run.info.status}, last written {run.info.updated[11:16]} UTC"


def layers_by_format(run: Run) -> dict[str, list[tuple[str, LayerFormat]]]:
    """Return the layers of the precision map by their format, the most frequent format first."""
    found: dict[str, list[tuple[str, LayerFormat]]] = {}
    if run.precision_map is not None:
        for name, layer in run.precision_map.layers.items():
            found.setdefault(layer.format, []).append((name, layer))
    return dict(sorted(found.items(), key=lambda each: -len(each[1])))


def power(value: float | None) -> Markup:
    """Return a power of two as such, and any other number as it is."""
    if value is None:
        return Markup("none")
    mantissa, exponent = math.frexp(value)
    if mantissa == 0.5 and abs(exponent) > 4:
        return Markup("2<sup>{}</sup>").format(_minus(str(exponent - 1)))
    return escape(number(value))


def powers(text: str) -> Markup:
    """Return a text with its `2^15` as powers.

    Example:
        >>> powers("2^-3 < x")
        Markup('2<sup>−3</sup> &lt; x')
    """
    return Markup(re.sub(r"2\^(-?\d+)", lambda found: f"2<sup>{_minus(found[1])}</sup>", str(escape(text))))


def number(value: float | None) -> str:
    """Return a number to four digits."""
    if value is None:
        return "none"
    if not math.isfinite(value):
        return _minus(str(value))
    is_plain = value == 0 or 1e-3 <= abs(value) < 1e6
    return _minus(
        f"{value:,.4g}" if is_plain and abs(value) < 1000 else f"{value:,.0f}" if is_plain else f"{value:.3e}"
    )


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "unknown"


def _counted(value: Any, noun: str, what: str, link: str = " ") -> tuple[str, str]:
    """Return a number, and what it counts."""
    return _count(value), f"{noun}{'' if value == 1 else 's'}{link}{what}"


def _name(name: str, longest: int = LONGEST_NAME) -> Markup:
    """Return a qualified name that may be broken at its dots, and is told apart from the text around it."""
    text = escape(shown_name(name, longest)).replace(".", Markup(".<wbr>"))
    return Markup("<code class='name'><bdi>{}</bdi></code>").format(text)


def _setting(value: Any) -> Any:
    """Return a setting as a reader would put it."""
    return "yes" if value is True else "no" if value is False else "none" if value is None else value


FILTERS: dict[str, Callable[..., Any]] = {
    "name": _name,
    "power": power,
    "powers": powers,
    "number": number,
    "percent": percent,
    "count": _count,
    "cure": advice,
    "done": lambda each: outcome(each.action, cured=each.cured, culprits=each.culprits),
    "outcomes": lambda group: "; ".join(outcomes(group)),
    "seconds": in_seconds,
    "setting": _setting,
    "kind": lambda kind: KINDS[TensorKind(kind)],
    "words": lambda text: str(text).replace("_", " "),
}
