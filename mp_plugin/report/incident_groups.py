"""The incidents of a run by where they came from, and the steps they cost."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mp_plugin.telemetry.events import Action, Incident


@dataclass(frozen=True, kw_only=True, slots=True)
class IncidentGroup:
    """Incidents with one origin: the same operator, line, layer, pass and cause."""

    incidents: tuple[Incident, ...]
    """Oldest first; at least one."""

    @property
    def example(self) -> Incident:
        """The first that was traced, else the first."""
        return next((each for each in self.incidents if each.traced), self.incidents[0])

    @property
    def first_step(self) -> int:
        """Of its incidents."""
        return min(each.step for each in self.incidents)

    @property
    def last_step(self) -> int:
        """Of its incidents."""
        return max(each.step for each in self.incidents)

    @property
    def outcomes(self) -> dict[tuple[Action, bool], int]:
        """How often what was done, and whether the batch came out finite then; the most frequent first."""
        return dict(Counter((each.action, each.cured) for each in self.incidents).most_common())

    @property
    def culprits(self) -> tuple[str, ...]:
        """The layers that were proved to cure one of them, in the order of their first proof."""
        return tuple(dict.fromkeys(name for each in self.incidents if each.cured for name in each.culprits))


def incident_groups(incidents: Iterable[Incident]) -> list[IncidentGroup]:
    """Return incidents by origin, the most frequent first; those without a known origin by cause and kind.

    Example:
        >>> one = Incident(step=5, batch_idx=2, kind="inf", parameters=("w",), rank=0, loss_scale=2.0, dtype="fp16",
        ...     action=Action.backoff)
        >>> [(len(group.incidents), group.first_step) for group in incident_groups([one, one])]
        [(2, 5)]
    """
    groups: dict[object, list[Incident]] = {}
    for each in incidents:
        origin = (each.layer, *each.signature) if each.operator is not None else (each.kind,)
        groups.setdefault((each.cause, *origin), []).append(each)
    return sorted(
        (IncidentGroup(incidents=tuple(group)) for group in groups.values()), key=lambda group: -len(group.incidents)
    )


def lost_steps(incidents: Sequence[Incident]) -> dict[int, Incident]:
    """Return the steps that no run of their batch saved, each with the last of its incidents."""
    last = {each.step: each for each in incidents}
    return {step: each for step, each in last.items() if not each.cured and each.action is not Action.zeroed}
