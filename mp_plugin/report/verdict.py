"""What a run says of its number format, in one sentence."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from enum import Enum

from mp_plugin.report.incident_groups import incident_groups, lost_steps
from mp_plugin.report.lost_to import is_of_format, lost_to, remedy
from mp_plugin.report.progress import Ending, Progress, progress
from mp_plugin.report.words import counted, listed, percent, shown_name
from mp_plugin.report.worst_layers import TIGHT_BITS, WorstLayer, fp32_layers, worst_layers
from mp_plugin.telemetry.events import Action, Cause, Incident
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.store import Run

MANY_SKIPPED = 0.01
"""From this share of skipped steps on, a format does not fit."""

BUT = "but "
"""How what speaks against a format begins."""

DESCENT = 15
STEPS_PER_PROBE = 1000
"""What the search for a loss scale may cost: one way down from 2**15, and now and then an overflow that tells that it
is high enough. By default it grows every 2,000 steps."""


class Severity(str, Enum):
    """How much a verdict should alarm."""

    good = "good"
    watch = "watch"
    """It works, and something should be known; or too little is known."""
    bad = "bad"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """The verdict on a run."""

    sentence: str
    """One line of plain text. It names layers, so a page has to escape it."""
    severity: Severity


def verdict(run: Run, *, now: datetime | None = None) -> Verdict:
    """Say in one sentence whether its number format fits a run, and what is amiss.

    Args:
        run: while it goes on or after its end, whatever is left of it; takes about a second per million samples.
        now: when it is looked at, with a time zone; None for the clock.
    """
    came = progress(run, now=now)
    status = _status(came)
    if not came.steps:
        nothing = "nothing is known yet, without samples and incidents"
        return _verdict(Severity.watch, f"{status}: {nothing}" if status else f"{nothing[0].upper()}{nothing[1:]}")
    severity, claim, facts = _fit(run, came)
    if came.ending in (Ending.silent, Ending.unknown):
        severity = _worse(severity, Severity.watch)
    if came.ending is Ending.unknown:
        facts = [*facts, "how it ended is not known, for want of run.json"]
    start = f"{status}: {claim}, " if status else f"{claim}: "
    return _verdict(severity, start + "; ".join(facts))


def _verdict(severity: Severity, text: str) -> Verdict:
    return Verdict(sentence=f"{text}.", severity=severity)


def _worse(one: Severity, other: Severity) -> Severity:
    return max(one, other, key=list(Severity).index)


def _status(came: Progress) -> str:
    at = f"at step {came.steps:,}"
    since = f"{came.updated:%Y-%m-%d %H:%M} UTC" if came.updated is not None else "an unknown time"
    return {
        Ending.finished: "",
        Ending.unknown: "",
        Ending.stopped: f"Stopped {at}",
        Ending.running: f"Still running {at}",
        Ending.silent: f"No sign of life since {since}, {at}",
    }[came.ending]


def _fit(run: Run, came: Progress) -> tuple[Severity, str, list[str]]:
    """Return whether the format fits, in words, and what supports it."""
    name = _format(run)
    fits = f"{name} fits" + (" so far" if came.ending in (Ending.running, Ending.silent) else "")
    lost = lost_steps(run.incidents)
    raised = bool(run.incidents) and run.incidents[-1].action is Action.raise_
    if raised and run.incidents[-1].cause is Cause.weights:
        weights = run.incidents[-1].evidence.get("weights") or ["a weight"]
        lost_at = f"before step {run.incidents[-1].step:,}"
        return Severity.bad, f"{listed(list(weights))} was not finite {lost_at}", ["training is lost"]
    cures = [each for each in run.incidents if each.action is Action.fallback and each.cured]
    in_fp32 = list(fp32_layers(run))
    with_fp32 = f"{fits} with {listed(in_fp32)} in FP32" if in_fp32 else fits
    # A summary may know of more than incidents tell, when their file is damaged.
    is_search = came.skipped == len(lost) and not raised and _is_search(lost, came.steps)
    if came.skipped and not is_search:
        many = raised or came.skipped >= MANY_SKIPPED * came.steps
        were = "was" if came.skipped == 1 else "were"
        skipped = f"{came.skipped:,} of {counted(came.steps, 'step')} {were} skipped{lost_to(lost)}"
        if not is_of_format(lost, name):
            _, facts = _layers(run, came)
            return Severity.bad if many else Severity.watch, f"{name} is not to blame", [skipped, *facts]
        if cures and cures[-1].step > max(lost, default=-1) and in_fp32:
            severity, facts = _layers(run, came)
            before = f"{skipped}, before FP32 cured it"
            return _worse(severity, Severity.watch if many else Severity.good), with_fp32, [before, *facts]
        if many:
            return Severity.bad, f"{name} does not fit", [skipped, *remedy(lost)]
        severity, facts = _layers(run, came)
        return Severity.watch, f"{fits} but for a few steps", [skipped, *remedy(lost), *facts]
    severity, facts = _layers(run, came)
    if severity is not Severity.good and facts[0].startswith(BUT) and not (came.skipped or cures or in_fp32):
        # What underflows, or nearly overflows, does not quite fit.
        with_fp32 = f"{name} has not overflowed"
    skipped = f"{came.skipped:,} skipped to find the loss scale" if came.skipped else "none skipped"
    steps = [skipped if _status(came) else f"{counted(came.steps, 'step')}, {skipped}"]
    if cures:
        steps.append(f"FP32 cured {counted(len(cures), 'incident')}" + (f" in {listed(_cured(cures))}" * (not in_fp32)))
    return severity, with_fp32, steps + facts


def _cured(cures: list[Incident]) -> list[str]:
    return list(dict.fromkeys(name for group in incident_groups(cures) for name in group.culprits))


def _is_search(lost: dict[int, Incident], steps: int) -> bool:
    """Whether all skipped steps are such as a dynamic loss scale needs to find its way."""
    found = [
        each
        for each in lost.values()
        if each.action is Action.backoff and each.evidence.get("backward_finite_at_lower_scale") is not False
    ]
    return len(found) == len(lost) <= DESCENT + steps // STEPS_PER_PROBE


def _format(run: Run) -> str:
    if run.info is not None:
        return run.info.compute_dtype
    dtypes = Counter(run.samples["compute_dtype"].unique().to_pylist()) or Counter(each.dtype for each in run.incidents)
    return dtypes.most_common(1)[0][0] if dtypes else "the number format"


# How close its layers came to the ends of the format.


def _layers(run: Run, came: Progress) -> tuple[Severity, list[str]]:
    layers = worst_layers(run, None)
    if not layers:
        return Severity.watch, ["without samples its headroom is not known"]
    gradients = [each for each in layers if each.is_at_risk and each.kind is not TensorKind.activation]
    with_gradients = {each.layer for each in gradients}
    gone = with_gradients - {each.layer for each in gradients if not each.is_zero}
    # Of a few layers that may be right, as of one that the loss does not depend on.
    if gone and 2 * len(gone) >= len(with_gradients):
        which = "all layers" if gone == with_gradients else f"{len(gone):,} of {len(with_gradients):,} layers"
        return Severity.bad, [f"{BUT}the gradients of {which} are zero throughout"]
    known = [each for each in layers if each.is_at_risk and each.headroom_bits is not None]
    vanishing = [each for each in layers if each.is_at_risk and each.vanishes]
    facts = []
    worst = max(vanishing, key=lambda each: each.mean_underflow, default=None)
    if worst is not None:
        facts.append(
            f"{BUT}{percent(worst.mean_underflow)} of {shown_name(worst.layer)}'s {_kind(worst)} values underflow"
        )
    tightest = min(known, key=_headroom, default=None)
    unscaled = min((each for each in known if each.loss_scale == 1), key=_headroom, default=None)
    if unscaled is not None and _headroom(unscaled) < TIGHT_BITS:
        facts.append(f"{'' if facts else BUT}{_close(unscaled)}")
    if facts:
        return Severity.watch, facts
    if tightest is None and any(each.nans or each.infs for each in layers):
        return Severity.watch, ["its samples hold no number but NaN, Inf and zero"]
    if tightest is None:
        return Severity.good, ["none of the sampled values can leave its range"]
    scaled = "scaled " if tightest.loss_scale != 1 else ""
    where = f"the tightest layer, {shown_name(tightest.layer)}, keeps {_headroom(tightest):,.1f} bits of headroom"
    return Severity.good, [f"{where} in its {scaled}{_kind(tightest)}s"]


def _headroom(layer: WorstLayer) -> float:
    assert layer.headroom_bits is not None
    return layer.headroom_bits


def _close(layer: WorstLayer) -> str:
    name, bits = shown_name(layer.layer), _headroom(layer)
    way = f"came within {bits:.1f} bits of overflow" if bits >= 0 else f"went {-bits:.1f} bits beyond its range"
    return f"{name}'s {_kind(layer)}s {way} at step {layer.headroom_step:,}"


def _kind(layer: WorstLayer) -> str:
    return "activation" if layer.kind is TensorKind.activation else "gradient"
