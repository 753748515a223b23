"""Explain why the gradients of a step are not finite: gather evidence, find the origin, decide the cause."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import lightning.pytorch as pl
from torch.optim import Optimizer

from mp_plugin.all_ranks import AllRanks
from mp_plugin.config import Telemetry
from mp_plugin.evidence import gather_evidence, tidy
from mp_plugin.finding import Finding, Scale, find_live, is_forward_finite_in_fp32, is_step_finite, trace_step
from mp_plugin.live_trace import ARMED_STEPS, LiveTrace
from mp_plugin.scaling.guard import Explanation, StepGuard
from mp_plugin.scaling.verdict import gather, gradients
from mp_plugin.step_start import StepStart
from mp_plugin.telemetry.cause import Evidence, decide_cause
from mp_plugin.telemetry.events import Cause, Direction, Incident, Signature

log = logging.getLogger(__name__)


class Explainer:
    """Find out the cause of each incident of a run; all ranks together.

    A step is run again under a trace, up to `Telemetry.max_traced` times in a run. An origin that is known already is
    recognised by a run that looks for it alone. Where a step cannot be run again, the next ones are traced as they
    happen, until one of them is an incident.

    Args:
        guard: knows losses and loss scale.
        telemetry: how much to find out.
        is_mixed: whether the forward pass runs under autocast.
    """

    def __init__(self, guard: StepGuard, telemetry: Telemetry, *, is_mixed: bool) -> None:
        self._guard = guard
        self._telemetry = telemetry
        self._is_mixed = is_mixed
        self.all_ranks = AllRanks()
        self._has_armed = False
        self.live: LiveTrace | None = None

    def explain(self, optimizer: Optimizer, module: "pl.LightningModule", start: StepStart | None) -> Explanation:
        """Explain an overflow of this optimizer's gradients, and leave everything as it is.

        Args:
            optimizer: whose gradients are not finite.
            module: what trains.
            start: where its step began; None outside a fit.
        """
        # What a step took out of its batch is looked at too.
        can_run_again = start is not None and start.can_run_again and bool(start.window) and start.restore_batches()
        evidence, known = gather_evidence(self._guard, optimizer, module, start, self.all_ranks.each)
        if start is None or self._telemetry.max_traced == 0:
            return self._untraced(known, evidence, "off")
        if not all(gather(can_run_again)):
            return self._explain_live(optimizer, module, start, evidence, known)
        self.live = None
        if repeated := self._repeat(start, evidence, known):
            return repeated
        if self._guard.record.traces >= self._telemetry.max_traced:
            return self._untraced(known, evidence, "budget")
        finding, rank = self._first(lambda: trace_step(start, self._scale), evidence)
        if finding is None:
            if not start.is_window_whole:
                evidence["missing"].append("earlier batches of this window were too large to be kept")
            elif not evidence["missing"]:
                evidence["missing"].append("the batch came out finite when it was run again, eagerly")
            return self._untraced(known, {**evidence, "reproduced": False}, "not reproduced")
        explanation = self._traced(finding, rank, known, {**evidence, "reproduced": True})
        self._probe(start, explanation)
        return explanation

    @property
    def _scale(self) -> Scale | None:
        return self._guard.scaler.scale if self._guard.scaler is not None else None

    # Where a step cannot be run again.

    @contextmanager
    def watching(self, *, backward: bool = False) -> Iterator[None]:
        """Trace what runs inside, if probes are armed."""
        if self.live is not None and self.live.is_over:
            self.live = None
        if self.live is None:
            yield
            return
        with self.live.backward() if backward else self.live.forward():
            yield

    def stepped(self) -> None:
        """Note that an optimizer has stepped or skipped its step."""
        if self.live is not None:
            self.live.used()

    def _explain_live(
        self,
        optimizer: Optimizer,
        module: "pl.LightningModule",
        start: StepStart,
        evidence: Explanation,
        known: Evidence,
    ) -> Explanation:
        live = self.live
        if live is None or live.is_empty:
            if live is None and self._guard.record.traces >= self._telemetry.max_traced:
                return self._untraced(known, evidence, "budget")
            if live is None:
                self._arm(module)
            evidence["missing"].append("this step cannot be run again; the next ones are traced as they happen")
            return self._untraced(known, evidence, "no closure")
        self.live = None
        finding, rank = self._first(
            lambda: find_live(start, live.trace, self._guard.losses, gradients(optimizer)), evidence
        )
        if finding is None:
            evidence["missing"].append("the armed probes saw no origin")
            return self._untraced(known, evidence, "not reproduced")
        explanation = self._traced(finding, rank, known, evidence)
        is_known = _signature(finding) in self._guard.record.known
        return repeated(explanation) if is_known else explanation

    def _arm(self, module: "pl.LightningModule") -> None:
        self.live = LiveTrace(module)
        if module.trainer.is_global_zero and not self._has_armed:
            self._has_armed = True
            message = (
                "A step like this cannot be run again: the next ones, %d at most, are traced as they happen, slowly."
            )
            log.warning(message, ARMED_STEPS)

    # Evidence and decisions.

    def _untraced(self, known: Evidence, evidence: Explanation, why: str) -> Explanation:
        cause = decide_cause(known)
        return {"cause": cause, **_bad_batch(cause, evidence), "evidence": tidy({**evidence, "untraced": why})}

    def _traced(self, finding: Finding, rank: int, known: Evidence, evidence: Explanation) -> Explanation:
        direction = finding.origin["direction"]
        known = replace(
            known,
            origin_in_batch=finding.there_before == "batch",
            origin_in_weights=finding.there_before == "weights",
            origin_in_scaling=finding.in_scaling,
            direction=direction,
        )
        cause = decide_cause(known)
        evidence |= {"forward_finite": cause in (Cause.loss, Cause.backward), "exact_amax": finding.exact_amax}
        evidence |= {"ran_at": finding.ran_at, "tensor": finding.name, "swallowed": finding.swallowed}
        if finding.failure is not None:
            evidence["missing"] = [*evidence.get("missing", []), f"some operators, by {finding.failure}"]
        if finding.there_before == "weights":
            evidence["weights_finite"] = False
            evidence["weights"] = list(dict.fromkeys([*evidence.get("weights", []), finding.name]))
        origin = dict(finding.origin)
        if cause is Cause.weights and finding.there_before != "weights":
            # A part of a weight that another rank holds came by way of that rank.
            origin["reason"] = f"{evidence['weights'][0]} was not finite before the step"
        return {
            **origin,
            "cause": cause,
            "batch_idx": finding.batch_idx,
            "rank": evidence.get("weights_rank", rank) if cause is Cause.weights else rank,
            "traced": True,
            "evidence": tidy(evidence),
        }

    def _repeat(self, start: StepStart, evidence: Explanation, known: Evidence) -> Explanation | None:
        """Recognise an origin that is known already, without a full trace."""
        origins = self._guard.record.known
        if known.loss_finite is False:  # which nothing in a backward pass can explain, that of another batch neither
            origins = {name: each for name, each in origins.items() if each.direction is Direction.forward}
        if not origins:
            return None
        evidence = {**evidence, "untraced": "repeat"}
        scaling = next((each for each in origins.values() if each.cause is Cause.loss), None)
        if scaling is not None and known.loss_finite and known.scaled_loss_finite is False:
            # It shows by itself, and is known by the line of the loss, where a trace of known origins looks in vain.
            return {**_origin_of(scaling), "evidence": tidy(evidence)}
        finding, rank = self._first(lambda: trace_step(start, self._scale, frozenset(origins)), evidence)
        if finding is None:
            return None
        earlier = origins[_signature(finding)]
        return {
            **_origin_of(earlier),
            **finding.origin,
            "batch_idx": finding.batch_idx,
            "rank": rank,
            "evidence": tidy(evidence),
        }

    def _probe(self, start: StepStart, explanation: Explanation) -> None:
        """Find out whether precision or the loss scale could cure the step: one plain run at most."""
        evidence, scaler = explanation["evidence"], self._guard.scaler
        if explanation["cause"] is Cause.forward and explanation.get("dtype") in ("fp16", "bf16"):
            if not self._is_mixed:
                evidence["missing"] = [
                    *evidence.get("missing", []),
                    "the forward pass in FP32, of half weights",
                ]
                return
            finite = self.all_ranks.everywhere(
                lambda: is_forward_finite_in_fp32(start, explanation["batch_idx"]), evidence
            )
            evidence["forward_finite_in_fp32"] = finite
        elif explanation["cause"] in (Cause.loss, Cause.backward) and scaler is not None:
            lowest = scaler.config.min_scale
            if lowest < scaler.get_scale():
                finite = self.all_ranks.everywhere(lambda: is_step_finite(start, lowest), evidence)
                evidence["backward_finite_at_lower_scale"] = finite

    # All ranks together.

    def _first(self, find: Callable[[], Finding | None], evidence: Explanation) -> tuple[Finding | None, int]:
        """Return what the first rank found that found something, and that rank; something vague only if all is."""
        found = [(each, rank) for rank, each in enumerate(self.all_ranks.each(find, evidence)) if each is not None]
        return min(found, key=lambda pair: pair[0].is_vague, default=(None, 0))


def repeated(explanation: Explanation) -> Explanation:
    """Return the explanation of a batch that overflows again, right after it was explained."""
    evidence = {"untraced": "repeat", **explanation["evidence"]}
    return {**explanation, "traced": False, "evidence": evidence}


def _bad_batch(cause: Cause, evidence: Explanation) -> Explanation:
    """Say which batch is to blame, and whose, if one is."""
    if cause is not Cause.data or not evidence["batch"]:
        return {}
    return {name: evidence["batch"][0][name] for name in ("batch_idx", "rank")}


def _signature(finding: Finding) -> Signature:
    return (finding.origin["operator"], finding.origin["location"], finding.origin["direction"])


def _origin_of(incident: Incident) -> Explanation:
    """Return what an earlier incident tells of its origin."""
    names = ("cause", "kind", "dtype", "direction", "layer", "operator", "location", "amax_in", "amax_out", "reason")
    return {name: getattr(incident, name) for name in names}
