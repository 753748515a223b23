"""What was done about incidents, in words."""

from collections.abc import Iterator, Sequence

from mp_plugin.report.incident_groups import IncidentGroup
from mp_plugin.report.words import listed
from mp_plugin.telemetry.events import Action


def outcome(action: Action, *, cured: bool, culprits: Sequence[str] = ()) -> str:
    """Return what became of an incident's batch.

    Args:
        action: what was done.
        cured: whether the batch came out finite then.
        culprits: the layers in FP32 that cured it.

    Example:
        >>> outcome(Action.fallback, cured=True, culprits=["head"]), outcome(Action.raise_, cured=False)
        ('cured by head in FP32', 'stopped the run')
    """
    return {
        Action.backoff: "skipped, loss scale lowered",
        Action.retry: "cured by a lower loss scale" if cured else "run again at a lower scale",
        Action.fallback: f"cured by {listed(culprits, 2)} in FP32" if cured else "not cured by FP32",
        Action.skip: "skipped",
        Action.zeroed: "zeroed",
        Action.raise_: "stopped the run",
    }[action]


def outcomes(group: IncidentGroup) -> Iterator[str]:
    """Yield how often what was done about incidents of one origin, the most frequent first."""
    for (action, cured), count in group.outcomes.items():
        yield f"{count:,} {outcome(action, cured=cured, culprits=group.culprits)}"
