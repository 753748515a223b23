"""Runs of one precision setting each, paired by seed, and what else tells them apart."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mp_plugin.compare.read_runs import ComparedRun
from mp_plugin.errors import ConfigError
from mp_plugin.report.words import listed

REFERENCE = "fp32"
FULL_PRECISION = (REFERENCE, "32-true", "32", 32)
UNKNOWN = "unknown precision"
LISTED_DIFFERENCES = 3
SET_BY_PRECISION = ("precision", "trainer.precision", "trainer.plugins", "seed")
"""Settings, with all below them, that are not named as differences: each precision sets the first three."""
SAME_ARITHMETIC = ("telemetry", "device", "exact")
"""Settings of a precision that change nothing in what is computed: where the run is watched, and where it runs."""
COMPARED_SURROUNDINGS = ("device", "cpu", "ranks", "torch", "lightning", "mp_plugin")


@dataclass(frozen=True, kw_only=True, eq=False)
class Group:
    """Runs of one precision setting."""

    label: str
    runs: tuple[ComparedRun, ...]

    @property
    def finished(self) -> tuple[ComparedRun, ...]:
        """The runs whose metrics count."""
        return tuple(each for each in self.runs if each.is_finished)

    def by_seed(self) -> dict[int, ComparedRun] | None:
        """Return the finished runs by seed; None if a seed is missing or there twice, so that it pairs nothing."""
        seeds = {run.seed: run for run in self.finished if run.seed is not None}
        return seeds if len(seeds) == len(self.finished) else None


def grouped(runs: Sequence[ComparedRun], reference: str | None = None) -> list[Group]:
    """Return the runs by precision setting, the reference first.

    Args:
        runs: of one task and one data set.
        reference: the label of the group that the others are judged against; None for the one in FP32, else the first.

    Raises:
        ConfigError: if there is no group of that label.
    """
    by_setting: dict[str, list[ComparedRun]] = {}
    for run in runs:
        by_setting.setdefault(_setting(run), []).append(run)
    groups = [Group(label=each[0].choice or UNKNOWN, runs=tuple(each)) for each in by_setting.values()]
    labels = _labels(groups)
    groups = [replace(group, label=label) for group, label in zip(groups, labels, strict=True)]
    first = _reference(groups, reference)
    return [first, *(each for each in groups if each is not first)]


def is_full_precision(group: Group) -> bool:
    """Whether a group ran in FP32."""
    run = group.runs[0]
    name = run.precision.get("precision") if isinstance(run.precision, dict) else run.precision
    return (run.choice if name is None else name) in FULL_PRECISION


def refuse_other_tasks(runs: Sequence[ComparedRun]) -> None:
    """Check that all runs learned the same task from the same data, as far as it is known.

    Raises:
        ConfigError: names two runs that did not.
    """
    for name in ("task", "fingerprint"):
        first: dict[str, ComparedRun] = {}
        for run in runs:
            value = getattr(run, name)
            if value is not None:
                first.setdefault(value, run)
        if len(first) > 1:
            (one, ours), (other, theirs) = list(first.items())[:2]
            what = "is a run of the task" if name == "task" else "learned from data with the fingerprint"
            raise ConfigError(
                f"{ours.directory} {what} {_short(one)}, but {theirs.directory} of {_short(other)}; "
                "accepted: runs of one task on the same data."
            )


def differing(runs: Sequence[ComparedRun]) -> dict[str, list[str]]:
    """Return what tells runs apart besides precision and seed: names of settings, with the values that they have.

    Besides the settings these are the device, the processes, the versions, and the commit.
    """
    flat = [dict(_facts(run)) for run in runs]
    found: dict[str, list[str]] = {}
    for key in dict.fromkeys(key for facts in flat for key in facts):
        # A run that left no settings tells nothing; one whose settings lack the key does.
        values = [facts.get(key, "not set") for facts in flat if facts]
        if len(different := list(dict.fromkeys(values))) > 1:
            found[key] = different
    return found


def _facts(run: ComparedRun) -> Iterator[tuple[str, str]]:
    if not run.config:
        return
    for key, value in _flat(run.config):
        if not any(key == each or key.startswith((f"{each}.", f"{each}[")) for each in SET_BY_PRECISION):
            yield key, value
    for name in COMPARED_SURROUNDINGS:
        if name in run.environment:
            yield name, str(run.environment[name])
    for name in ("commit", "dirty"):
        if name in run.git:
            yield f"git {name}", str(run.git[name])


def _setting(run: ComparedRun) -> str:
    return json.dumps(_arithmetic(run.precision), sort_keys=True, default=repr)


def _arithmetic(precision: Any) -> Any:
    """Return the settings of a precision without those that do not change the arithmetic."""
    if not isinstance(precision, Mapping):
        return precision
    return {name: value for name, value in precision.items() if name not in SAME_ARITHMETIC}


def _labels(groups: Sequence[Group]) -> list[str]:
    labels = []
    for group in groups:
        same = [each for each in groups if each.label == group.label]
        labels.append(" ".join([group.label, *_apart(group, same)]))
    # Settings too many to list may leave two with one label.
    return [
        f"{label} ({labels[: place + 1].count(label)})" if labels.count(label) > 1 else label
        for place, label in enumerate(labels)
    ]


def _apart(group: Group, same: Sequence[Group]) -> Iterator[str]:
    """Yield what tells a group from others of the same choice: choices, or settings where these are the same."""
    choices = [_arithmetic(each.runs[0].subchoices) for each in same]
    settings = [dict(_flat(_arithmetic(each.runs[0].precision))) for each in same]
    place = next(place for place, each in enumerate(same) if each is group)
    for facts in (choices, settings):
        keys = [key for key in dict.fromkeys(key for each in facts for key in each) if _varies(key, facts)]
        if keys:
            for key in keys[:LISTED_DIFFERENCES]:
                if key in facts[place]:
                    yield f"{key}={facts[place][key]}"
            if len({json.dumps([each.get(key) for key in keys[:LISTED_DIFFERENCES]]) for each in facts}) == len(same):
                return


def _varies(key: str, facts: Sequence[Mapping[str, str]]) -> bool:
    return len({each.get(key) for each in facts}) > 1


def _reference(groups: Sequence[Group], wanted: str | None) -> Group:
    if wanted is not None:
        for group in groups:
            if group.label == wanted:
                return group
        raise ConfigError(
            f"There is no group {wanted} to be the reference; accepted: {listed([each.label for each in groups], 20)}."
        )
    with_results = [each for each in groups if each.finished]
    in_full = [each for each in with_results if is_full_precision(each)]
    return max(in_full or with_results[:1] or groups[:1], key=lambda each: len(each.finished))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the settings in a tree, by their dotted names."""
    if isinstance(value, Mapping) and value:
        for key, each in value.items():
            yield from _flat(each, f"{name}.{key}" if name else str(key))
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, default=repr)


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:20]}…"
