"""What a page says in words and single numbers."""

import math
from collections.abc import Callable
from typing import Any

from markupsafe import Markup, escape

from mp_plugin.fallback.layer_format import LayerFormat
from mp_plugin.report.page_data import LONGEST_NAME, PageData
from mp_plugin.report.words import percent, shown_name
from mp_plugin.telemetry.advice import advice
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.store import Run

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
        known.append(("Skipped", _count(summary.get("skipped_steps")), "steps lost"))
        known.append(("Run again", _count(summary.get("retried_steps")), "steps saved"))
    total = max(len(run.incidents), (summary.get("incidents") or {}).get("total") or 0)
    known.append(("Incidents", _count(total), "overflows, NaN"))
    scale = summary.get("loss_scale")
    if scale:
        known.append(("Loss scale", power(scale["now"]), Markup("from {} to {}").format(*map(power, _ends(scale)))))
    if "fp32_layers" in summary:
        known.append(("In FP32", _count(len(summary["fp32_layers"])), "layers, as chosen"))
    num_samples = sum(samples for _, _, samples in data.grid.columns)
    known.append(("Samples", _count(num_samples), f"of {len(data.grid.layers):,} layers"))
    cost = summary.get("telemetry") or {}
    if isinstance(cost.get("share"), int | float):
        known.append(("Telemetry", percent(cost["share"]), "of the training time"))
    return known


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


def _ends(scale: dict[str, float]) -> tuple[float, float]:
    return scale["min"], scale["max"]


def _name(name: str, longest: int = LONGEST_NAME) -> Markup:
    """Return a qualified name that may be broken at its dots, and is told apart from the text around it."""
    text = escape(shown_name(name, longest)).replace(".", Markup(".<wbr>"))
    return Markup("<code class='name'><bdi>{}</bdi></code>").format(text)


FILTERS: dict[str, Callable[..., Any]] = {
    "name": _name,
    "power": power,
    "number": number,
    "percent": percent,
    "count": _count,
    "cure": advice,
    "kind": lambda kind: KINDS[TensorKind(kind)],
    "words": lambda text: str(text).replace("_", " "),
}
