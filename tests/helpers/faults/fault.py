"""What a planted fault is: a small training that goes wrong in a known batch, and what is to be said about it."""

import ast
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mp_plugin.config import LossScaling
from mp_plugin.telemetry.events import Cause, Direction, Incident
from tests.helpers.faults.batches import SPOILED_SAMPLE, Batch
from tests.helpers.faults.training import Planted

FOLDER = Path(__file__).parent
SCALING = LossScaling(init_scale=2**8, backoff_factor=2**-8)
"""Healthy batches have much room; where a lower scale is the cure, one retry is enough."""
OVERFLOW = r"overflow|beyond"
"""What is said of a finite value beyond the largest of its dtype."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """An answer that is right; None and empty fields are those of which the contract says nothing."""

    cause: Cause = Cause.forward
    direction: Direction | None = Direction.forward
    kinds: frozenset[str] = frozenset({"inf"})
    operators: frozenset[str] = frozenset()
    layers: frozenset[str] = frozenset()
    """Qualified names; more than one for a module that has several."""
    marker: str | None = None
    """The line of the culprit ends with `# culprit: <marker>`."""
    reason: str = ""
    """A pattern of which the reason must hold a match."""
    dtype: str | None = None
    evidence: tuple[object, ...] = ()
    """Values that must be found in the evidence, at any depth and under any key: a name, a sample's index."""

    def differences(self, incident: Incident) -> Iterator[str]:
        """What an incident says that it should not, field by field."""
        for name, actual, accepted in (
            ("cause", incident.cause, {self.cause}),
            ("direction", incident.direction, {self.direction} if self.direction else None),
            ("kind", incident.kind, self.kinds),
            ("operator", incident.operator, self.operators),
            ("layer", incident.layer, self.layers),
            ("dtype", incident.dtype, {self.dtype} if self.dtype else None),
        ):
            if accepted and actual not in accepted:
                yield f"{name} is {actual!r}, not {' or '.join(sorted(map(repr, accepted)))}"
        if self.marker and not re.fullmatch(location_pattern(self.marker), str(incident.location)):
            yield f"location is {incident.location!r}, not {culprit_line(self.marker)}"
        if not re.search(self.reason, incident.reason or "", re.IGNORECASE):
            yield f"reason is {incident.reason!r}, without {self.reason!r}"
        if self.operators:
            yield from _amax_differences(incident)
        known = list(_leaves(incident.evidence))
        for value in self.evidence:
            if not any(_names(leaf, value) for leaf in known):
                yield f"evidence is {dict(incident.evidence)!r}, without {value!r}"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A training of a few batches, one or more of which the fault spoils."""

    name: str
    make: Callable[[], Planted]
    spoil: Callable[[Batch], Batch]
    accepted: tuple[Origin, ...]
    """Answers that are right: one, unless the contract leaves room."""
    inputs: str = "images"
    """What the model reads: `images` or `tokens`."""
    healthy_knob: float = 1.0
    precision: str = "fp16"
    cured: bool | None = None
    """Whether a lower loss scale cures it; None where that is not part of the plan."""
    strike: Callable[[Planted], None] | None = None
    """What a callback does to the model before the spoiled batch."""
    stops_the_run: bool = False

    def differences(self, incident: Incident) -> list[str]:
        """What is wrong with an incident; of several right answers the nearest one counts."""
        return min((list(origin.differences(incident)) for origin in self.accepted), key=len)


def turn(knob: float, *, all_samples: bool = False) -> Callable[[Batch], Batch]:
    """A spoiled batch is one with another knob: in one sample, or in all."""

    def spoil(batch: Batch) -> Batch:
        knobs = batch.knob.clone()
        knobs[slice(None) if all_samples else SPOILED_SAMPLE] = knob
        return batch._replace(knob=knobs)

    return spoil


def overflow(*operators: str, layer: str = "", marker: str, **more: Any) -> tuple[Origin]:
    """The one right answer for a value beyond the largest of fp16."""
    return one(*operators, layer=layer, marker=marker, reason=OVERFLOW, **{"dtype": "fp16", **more})


def one(*operators: str, layer: str = "", kind: str = "inf", **more: Any) -> tuple[Origin]:
    """The one right answer, with all fields that an origin has."""
    full = frozenset(operator if operator.startswith("aten.") else f"aten.{operator}" for operator in operators)
    return (Origin(operators=full, layers=frozenset({layer}), kinds=frozenset({kind}), **more),)


def location_pattern(marker: str) -> str:
    """A pattern for `file:line in function` of the line with a marker, whatever part of the path is given."""
    path, line, function = culprit_line(marker)
    return rf"(.*/)?{re.escape(path.name)}:{line} in (.*\.)?{re.escape(function)}"


@cache
def culprit_line(marker: str) -> tuple[Path, int, str]:
    """The file, line and function of the one line that ends with `# culprit: <marker>`."""
    found = [
        (path, number)
        for path in sorted(FOLDER.glob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if line.endswith(f"# culprit: {marker}")
    ]
    ((path, number),) = found
    functions = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.lineno <= number <= (node.end_lineno or 0)
    ]
    return path, number, max(functions, key=lambda node: node.lineno).name


def _amax_differences(incident: Incident) -> Iterator[str]:
    if incident.amax_in is None or not math.isfinite(incident.amax_in):
        yield f"amax_in is {incident.amax_in}, not a finite number"
    if incident.amax_out is None or str(incident.amax_out) != incident.kind:
        yield f"amax_out is {incident.amax_out}, not {incident.kind}"


def _leaves(value: Any) -> Iterator[object]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from _leaves(each)
    elif isinstance(value, list | tuple | set):
        for each in value:
            yield from _leaves(each)
    else:
        yield value


def _names(leaf: object, value: object) -> bool:
    if isinstance(value, str) or isinstance(leaf, str):
        return re.search(rf"(?<![\w.]){re.escape(str(value))}(?![\w.])", str(leaf)) is not None
    return not isinstance(leaf, bool) and leaf == value
