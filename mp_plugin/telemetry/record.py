"""The counters of a run, and what it says about itself at the end."""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from mp_plugin.checks import is_count, is_number
from mp_plugin.errors import CheckpointError
from mp_plugin.telemetry.events import Incident, Signature

KEPT_INCIDENTS = 1000
"""Newest incidents held in memory: a run that overflows on every step must not grow without bound."""


@dataclass(kw_only=True, slots=True)
class RunRecord:
    """What happened to the optimizer steps of one fit."""

    effective_step: int = 0
    """Optimizer steps that changed a weight."""
    skipped_steps: int = 0
    """Optimizer steps that were not taken, because their gradients were not finite."""
    retried_steps: int = 0
    """Optimizer steps taken with the gradients of a batch that was run again."""
    skips_in_a_row: int = 0
    """Skipped steps since the last one that was taken."""
    skips_by_optimizer: Counter[int] = field(default_factory=Counter)
    """Of those, by place in the trainer's list, the ones for which no loss scale is to blame, by each optimizer since
    its own last step: one that goes on must not hide one that is stuck."""
    steps_at_turn: dict[int, int] = field(default_factory=dict)
    """`effective_step` when each LR scheduler last had its turn, by place in the trainer's list."""
    total_incidents: int = 0
    lowest_scale: float | None = None
    highest_scale: float | None = None
    by_parameter: Counter[str] = field(default_factory=Counter)
    """How often each parameter's gradient was not finite."""
    by_cause: Counter[str] = field(default_factory=Counter)
    by_origin: Counter[str] = field(default_factory=Counter)
    """Incidents of each known origin, in words."""
    by_trace: Counter[str] = field(default_factory=Counter)
    """Incidents that were `traced`, and the others by what their evidence has as `untraced`: `repeat`, `budget`, `off`,
    `no closure`, `not reproduced`, `seen late`, else `unknown`."""
    known: dict[Signature, Incident] = field(default_factory=dict)
    """The first traced incident of each origin, without its victims and its evidence."""
    incidents: deque[Incident] = field(default_factory=lambda: deque(maxlen=KEPT_INCIDENTS))
    """Newest last; not part of a checkpoint."""

    @property
    def traces(self) -> int:
        """Full traces tried, those that found nothing and those that wait for the next incident among them."""
        return self.by_trace["traced"] + self.by_trace["not reproduced"] + self.by_trace["no closure"]

    @property
    def steps(self) -> int:
        """Optimizer steps tried."""
        return self.effective_step + self.skipped_steps

    def took_step(self, scale: float, *, retried: bool = False) -> None:
        """Count a step that changed the weights."""
        self.effective_step += 1
        self.retried_steps += retried
        self.skips_in_a_row = 0
        self.saw(scale)

    def skipped_step(self, scale: float) -> None:
        """Count a step that was not taken."""
        self.skipped_steps += 1
        self.skips_in_a_row += 1
        self.saw(scale)

    def add(self, incident: Incident) -> None:
        """Remember an incident."""
        self.total_incidents += 1
        self.incidents.append(incident)
        self.by_parameter.update(incident.parameters)
        self.by_cause[incident.cause.value] += 1
        self.by_trace["traced" if incident.traced else str(incident.evidence.get("untraced", "unknown"))] += 1
        if incident.traced:
            self.known.setdefault(incident.signature, replace(incident, parameters=(), evidence={}))
        if incident.operator is not None:
            self.by_origin[origin_in_words(incident)] += 1

    def summary(self, *, precision: str, scale: float | None) -> dict[str, Any]:
        """Return the record as plain JSON values.

        Args:
            precision: Lightning's name of the precision.
            scale: the loss scale now; None without loss scaling.
        """
        # The scale of now may be one that no step has used yet.
        used = [each for each in (scale, self.lowest_scale, self.highest_scale) if each is not None]
        scales = {"now": scale, "min": min(used, default=scale), "max": max(used, default=scale)}
        return {
            "precision": precision,
            "steps": self.steps,
            "effective_steps": self.effective_step,
            "skipped_steps": self.skipped_steps,
            "retried_steps": self.retried_steps,
            "loss_scale": None if scale is None else scales,
            "incidents": {
                "total": self.total_incidents,
                "traced": self.by_trace["traced"],
                "untraced": {why: count for why, count in self.by_trace.most_common() if why != "traced"},
                "by_cause": dict(self.by_cause.most_common()),
                "by_parameter": dict(self.by_parameter.most_common()),
                "origins": dict(self.by_origin.most_common()),
            },
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the counters as plain types, for a checkpoint."""
        counters = {name: getattr(self, name) for name in _COUNTERS}
        return {
            **counters,
            **{name: getattr(self, name) for name in _SCALES},
            **{name: dict(getattr(self, name)) for name in _TABLES},
            "known": [incident.as_dict() for incident in self.known.values()],
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "RunRecord":
        """Rebuild the counters.

        Raises:
            CheckpointError: for a missing, unknown or impossible counter.
        """
        known = (*_COUNTERS, *_SCALES, *_TABLES, "known")
        if unknown := [key for key in state if key not in known]:
            raise CheckpointError(f"The precision state has unknown {unknown!r} in record; accepted: {sorted(known)}.")
        for name in _COUNTERS:
            if not is_count(state.get(name)):
                raise CheckpointError(
                    f"The precision state has {name}={state.get(name)!r}; accepted: a whole number, at least 0."
                )
        for name in _SCALES:
            if state.get(name) is not None and not is_number(state[name], lowest=0):
                raise CheckpointError(f"The precision state has {name}={state[name]!r}; accepted: a number, or None.")
        # Checkpoints of earlier releases lack some of them.
        tables = {name: state.get(name, {}) for name in _TABLES}
        for name, table in tables.items():
            is_key, keys = _TABLES[name]
            if not isinstance(table, dict) or not all(is_key(k) and is_count(v) for k, v in table.items()):
                raise CheckpointError(
                    f"The precision state has {name}={table!r}; accepted: a dict of counts by {keys}."
                )
        try:
            origins = [Incident.from_dict(values) for values in state.get("known", [])]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The precision state has known={state['known']!r}; accepted: a list of incidents ({error!r})."
            ) from None
        return cls(
            **{name: state[name] for name in _COUNTERS},
            lowest_scale=state.get("lowest_scale"),
            highest_scale=state.get("highest_scale"),
            by_parameter=Counter(tables["by_parameter"]),
            by_cause=Counter(tables["by_cause"]),
            by_origin=Counter(tables["by_origin"]),
            by_trace=Counter(tables["by_trace"]),
            skips_by_optimizer=Counter(tables["skips_by_optimizer"]),
            steps_at_turn=dict(tables["steps_at_turn"]),
            known={incident.signature: incident for incident in origins},
        )

    def saw(self, scale: float) -> None:
        """Widen the range of loss scales used."""
        self.lowest_scale = scale if self.lowest_scale is None else min(self.lowest_scale, scale)
        self.highest_scale = scale if self.highest_scale is None else max(self.highest_scale, scale)


def origin_in_words(incident: Incident) -> str:
    """Say in short where the non-finite numbers of an incident with a known origin came from."""
    layer = f" in {incident.layer}" if incident.layer else ""
    location = f" ({incident.location})" if incident.location else ""
    # The cause tells the pass: a forward origin runs in the forward pass.
    return f"{incident.operator}{layer}{location}: {incident.cause.value}"


_COUNTERS = ("effective_step", "skipped_steps", "retried_steps", "skips_in_a_row", "total_incidents")
_SCALES = ("lowest_scale", "highest_scale")
_NAMES: tuple[Callable[[object], bool], str] = (lambda key: isinstance(key, str), "strings")
_PLACES: tuple[Callable[[object], bool], str] = (is_count, "whole numbers, at least 0")
# What their keys are: whether a value is one, and in words.
_TABLES: dict[str, tuple[Callable[[object], bool], str]] = {
    "by_parameter": _NAMES,
    "by_cause": _NAMES,
    "by_origin": _NAMES,
    "by_trace": _NAMES,
    "skips_by_optimizer": _PLACES,
    "steps_at_turn": _PLACES,
}
