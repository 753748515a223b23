"""What the skipped steps of a run were lost to, and what helps against it."""

from collections.abc import Mapping

from mp_plugin.report.incident_groups import IncidentGroup, incident_groups
from mp_plugin.report.words import shown_name
from mp_plugin.telemetry.events import Cause, Incident


def lost_to(lost: Mapping[int, Incident]) -> str:
    """Say where most of the lost steps were lost, as in ` by overflows in net.head (aten.addmm, forward)`."""
    groups = incident_groups(lost.values())
    if not groups:
        return ", and why was not recorded"
    mostly = " mostly" if len(groups) > 1 else ""
    return f"{mostly} {_by(groups[0])}"


def is_of_format(lost: Mapping[int, Incident], number_format: str) -> bool:
    """Whether most of the lost steps would have been taken in a format with more range, as far as one can tell."""
    groups = incident_groups(lost.values())
    if not groups:
        return number_format == "fp16"
    example = groups[0].example
    if example.cause in (Cause.data, Cause.weights):
        return False
    proved = example.evidence.get("forward_finite_in_fp32")
    if isinstance(proved, bool):
        return proved
    return number_format == "fp16" and _is_overflow(example)


def remedy(lost: Mapping[int, Incident]) -> list[str]:
    """Return what would help if it is of the format, in no or one clause."""
    proof = next((each.evidence["proof"] for each in lost.values() if "proof" in each.evidence), None)
    if isinstance(proof, Mapping):
        # Fallback.auto was on: it needs no advice.
        return [f"FP32 would cure it, but {shown_name(str(proof['refused']), 200)}"] if "refused" in proof else []
    groups = incident_groups(lost.values())
    if not groups:
        return []
    if groups[0].example.evidence.get("forward_finite_in_fp32"):
        return ["Fallback(auto=True) would run it in FP32"]
    return ["Fallback(auto=True) would look for layers to run in FP32, and bf16 has more range"]


def _by(group: IncidentGroup) -> str:
    example = group.example
    if example.cause is Cause.data:
        return "by batches that were not finite themselves"
    if example.cause is Cause.weights:
        return "by weights that were not finite"
    what = "overflows" if _is_overflow(example) else {"nan": "NaN", "inf": "Inf"}.get(example.kind, example.kind)
    if example.operator is None:
        return f"by {what} in the gradients, not traced"
    if example.cause is Cause.loss:
        return "by overflows of the scaled loss"
    operator = shown_name(example.operator.removesuffix(".default"))
    place = shown_name(example.layer or example.location or "the training step")
    return f"by {what} in {place} ({operator}, {example.direction.value if example.direction else example.cause.value})"


def _is_overflow(incident: Incident) -> bool:
    return incident.kind == "inf" and (incident.reason is None or "overflow" in incident.reason)
