from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from mp_plugin.report.verdict import Severity, verdict
from mp_plugin.telemetry.events import Action, Cause, Direction
from mp_plugin.telemetry.store import Run, open_run
from tests.helpers.planted_runs import UPDATED, info, overflow, planted_run, sample
from tests.helpers.recorded_runs import record_run

ROOMY = [sample("net.0", amax=1.0), sample("net.3", step=9, amax=65504 / 4)]
"""Two layers, of which the tighter one keeps two bits."""
TIGHTEST = "the tightest layer, net.3, keeps 2.0 bits of headroom in its activations"


def lost(count: int, **changes: object) -> tuple[object, ...]:
    return tuple(overflow(step, **changes) for step in range(count))


BACKED_OFF = {"action": Action.backoff, "cause": Cause.backward, "direction": Direction.backward, "evidence": {}}
CURED = {"action": Action.fallback, "cured": True, "culprits": ("net.head",)}
IN_FP32 = {"fp32_layers": {"net.head": "proved"}}
NEVER_FINITE = {"reason": "logarithm of zero", "evidence": {"forward_finite_in_fp32": False}, "operator": "aten.log"}

CASES = {
    "fits": (
        planted_run(ROOMY, info=info(steps=12_300)),
        "good",
        f"fp16 fits: 12,300 steps, none skipped; {TIGHTEST}.",
    ),
    "nothing is known": (planted_run(), "watch", "Nothing is known yet, without samples and incidents."),
    "nothing is known of a run that began": (
        planted_run(info=info(steps=0)),
        "watch",
        "Nothing is known yet, without samples and incidents.",
    ),
    "no samples": (
        planted_run(info=info()),
        "watch",
        "fp16 fits: 1,900 steps, none skipped; without samples its headroom is not known.",
    ),
    "no run.json": (
        planted_run(ROOMY),
        "watch",
        f"fp16 fits: 10 steps, none skipped; {TIGHTEST}; how it ended is not known, for want of run.json.",
    ),
    "only incidents": (
        planted_run(incidents=(overflow(9),)),
        "bad",
        "fp16 does not fit: 1 of 10 steps was skipped by overflows in net.head (aten.addmm, forward); "
        "Fallback(auto=True) would run it in FP32; how it ended is not known, for want of run.json.",
    ),
    "many skipped": (
        planted_run(ROOMY, info=info(skipped=214), incidents=lost(214)),
        "bad",
        "fp16 does not fit: 214 of 1,900 steps were skipped by overflows in net.head (aten.addmm, forward); "
        "Fallback(auto=True) would run it in FP32.",
    ),
    "few skipped": (
        planted_run(ROOMY, info=info(skipped=2), incidents=(*lost(1), overflow(7, layer="net.0"), overflow(8))),
        "watch",
        "fp16 fits but for a few steps: 3 of 1,900 steps were skipped mostly by overflows in net.head (aten.addmm, "
        f"forward); Fallback(auto=True) would run it in FP32; {TIGHTEST}.",
    ),
    "skipped to find the loss scale": (
        planted_run(ROOMY, info=info(skipped=15), incidents=lost(15, **BACKED_OFF)),
        "good",
        f"fp16 fits: 1,900 steps, 15 skipped to find the loss scale; {TIGHTEST}.",
    ),
    "no loss scale is found": (
        planted_run(ROOMY, info=info(skipped=19), incidents=lost(19, **BACKED_OFF)),
        "bad",
        "fp16 does not fit: 19 of 1,900 steps were skipped by overflows in net.head (aten.addmm, backward); "
        "Fallback(auto=True) would look for layers to run in FP32, and bf16 has more range.",
    ),
    "skipped, and why is not recorded": (
        planted_run(ROOMY, info=info(skipped=214)),
        "bad",
        "fp16 does not fit: 214 of 1,900 steps were skipped, and why was not recorded.",
    ),
    "not traced": (
        planted_run(info=info(skipped=50), incidents=lost(50, operator=None, reason=None, traced=False, evidence={})),
        "bad",
        "fp16 does not fit: 50 of 1,900 steps were skipped by overflows in the gradients, not traced; "
        "Fallback(auto=True) would look for layers to run in FP32, and bf16 has more range.",
    ),
    "refused": (
        planted_run(info=info(), incidents=lost(50, evidence={"proof": {"refused": "net.head is 2 of 5 layers"}})),
        "bad",
        "fp16 does not fit: 50 of 1,900 steps were skipped by overflows in net.head (aten.addmm, forward); "
        "FP32 would cure it, but net.head is 2 of 5 layers.",
    ),
    "cured": (
        planted_run(ROOMY, info=info(**IN_FP32), incidents=(overflow(3, **CURED),)),
        "good",
        f"fp16 fits with net.head in FP32: 1,900 steps, none skipped; FP32 cured 1 incident; {TIGHTEST}.",
    ),
    "cured for a batch only": (
        planted_run(ROOMY, info=info(), incidents=(overflow(3, **CURED),)),
        "good",
        f"fp16 fits: 1,900 steps, none skipped; FP32 cured 1 incident in net.head; {TIGHTEST}.",
    ),
    "skipped until it was cured": (
        planted_run(ROOMY, info=info(**IN_FP32), incidents=(*lost(214), overflow(214, **CURED))),
        "watch",
        "fp16 fits with net.head in FP32: 214 of 1,900 steps were skipped by overflows in net.head (aten.addmm, "
        f"forward), before FP32 cured it; {TIGHTEST}.",
    ),
    "skipped after it was cured": (
        planted_run(ROOMY, info=info(**IN_FP32), incidents=(overflow(0, **CURED), *lost(214)[1:])),
        "bad",
        "fp16 does not fit: 213 of 1,900 steps were skipped by overflows in net.head (aten.addmm, forward); "
        "Fallback(auto=True) would run it in FP32.",
    ),
    "underflow": (
        planted_run(
            [sample("net.1", kind="activation_gradient", dtype="bf16", compute_dtype="bf16", subnormal=31)],
            info=replace(info(), compute_dtype="bf16"),
        ),
        "watch",
        "bf16 has not overflowed: 1,900 steps, none skipped; but 31% of net.1's gradient values underflow.",
    ),
    "small activations": (
        planted_run([*ROOMY, sample("softmax", subnormal=90)], info=info()),
        "good",
        f"fp16 fits: 1,900 steps, none skipped; {TIGHTEST}.",
    ),
    "tight": (
        planted_run([*ROOMY, sample("net.4", step=1200, amax=60_000)], info=info()),
        "watch",
        "fp16 has not overflowed: 1,900 steps, none skipped; but net.4's activations came within 0.1 bits of "
        "overflow at step 1,200.",
    ),
    "a loss scale that is as high as it can be": (
        planted_run([sample("net.4", kind="parameter_gradient", amax=30.0, loss_scale=2048.0)], info=info()),
        "good",
        "fp16 fits: 1,900 steps, none skipped; the tightest layer, net.4, keeps 0.1 bits of headroom in its scaled "
        "gradients.",
    ),
    "a layer in FP32 is beyond fp16": (
        planted_run([*ROOMY, sample("net.5", dtype="fp32", amax=1e9)], info=info()),
        "good",
        f"fp16 fits: 1,900 steps, none skipped; {TIGHTEST}.",
    ),
    "all sampled layers are in FP32": (
        planted_run([sample("net.5", dtype="fp32")], info=info()),
        "good",
        "fp16 fits: 1,900 steps, none skipped; none of the sampled values can leave its range.",
    ),
    "the data": (
        planted_run(ROOMY, info=info(), incidents=lost(214, cause=Cause.data, reason="batch[0] holds nan")),
        "bad",
        "fp16 is not to blame: 214 of 1,900 steps were skipped by batches that were not finite themselves; "
        f"{TIGHTEST}.",
    ),
    "the model": (
        planted_run(ROOMY, info=info(), incidents=lost(2, **NEVER_FINITE)),
        "watch",
        f"fp16 is not to blame: 2 of 1,900 steps were skipped by Inf in net.head (aten.log, forward); {TIGHTEST}.",
    ),
    "fp32 overflows": (
        planted_run(info=replace(info(), compute_dtype="fp32"), incidents=lost(50, dtype="fp32", evidence={})),
        "bad",
        "fp32 is not to blame: 50 of 1,900 steps were skipped by overflows in net.head (aten.addmm, forward); "
        "without samples its headroom is not known.",
    ),
    "bf16 overflows where fp32 does not": (
        planted_run(info=replace(info(), compute_dtype="bf16"), incidents=lost(50, dtype="bf16")),
        "bad",
        "bf16 does not fit: 50 of 1,900 steps were skipped by overflows in net.head (aten.addmm, forward); "
        "Fallback(auto=True) would run it in FP32.",
    ),
    "bf16 skips, and nobody knows whether fp32 would": (
        planted_run(ROOMY, info=replace(info(), compute_dtype="bf16"), incidents=lost(2, dtype="bf16", evidence={})),
        "watch",
        "bf16 is not to blame: 2 of 1,900 steps were skipped by overflows in net.head (aten.addmm, forward); "
        f"{TIGHTEST}.",
    ),
    "fp16 overflows in fp32 too": (
        planted_run(ROOMY, info=info(), incidents=lost(2, evidence={"forward_finite_in_fp32": False})),
        "watch",
        "fp16 is not to blame: 2 of 1,900 steps were skipped by overflows in net.head (aten.addmm, forward); "
        f"{TIGHTEST}.",
    ),
    "backed off in vain, as no scale is low enough": (
        planted_run(
            ROOMY,
            info=info(),
            incidents=lost(
                2,
                **{**BACKED_OFF, "evidence": {"backward_finite_at_lower_scale": False}},
                reason="multiplied by inf, a constant",
            ),
        ),
        "watch",
        f"fp16 is not to blame: 2 of 1,900 steps were skipped by Inf in net.head (aten.addmm, backward); {TIGHTEST}.",
    ),
    "stopped": (
        planted_run(ROOMY, info=info(status="stopped")),
        "good",
        f"Stopped at step 1,900: fp16 fits, none skipped; {TIGHTEST}.",
    ),
    "gave up": (
        planted_run(info=info(steps=10_000, status="stopped"), incidents=(*lost(9), overflow(9, action=Action.raise_))),
        "bad",
        "Stopped at step 10,000: fp16 does not fit, 10 of 10,000 steps were skipped by overflows in net.head "
        "(aten.addmm, forward); Fallback(auto=True) would run it in FP32.",
    ),
    "lost weights": (
        planted_run(
            info=info(status="stopped"),
            incidents=(overflow(8, action=Action.raise_, cause=Cause.weights, evidence={"weights": ["net.w"]}),),
        ),
        "bad",
        "Stopped at step 1,900: net.w was not finite before step 8, training is lost.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_one_sentence(case: str) -> None:
    run, severity, sentence = CASES[case]
    found = verdict(run)
    assert found.sentence == sentence
    assert found.severity == severity


@pytest.mark.parametrize(
    ("silent_for", "severity", "start"),
    [
        (timedelta(minutes=1), "good", "Still running at step 1,900: fp16 fits so far, none skipped; "),
        (
            timedelta(days=1),
            "watch",
            "No sign of life since 2026-02-03 05:00 UTC, at step 1,900: fp16 fits so far, none skipped; ",
        ),
    ],
)
def test_a_run_that_did_not_say_that_it_ended(silent_for: timedelta, severity: str, start: str) -> None:
    run = planted_run(ROOMY, info=info(status="running"))
    found = verdict(run, now=datetime.fromisoformat(UPDATED) + silent_for)
    assert found.sentence == f"{start}{TIGHTEST}."
    assert found.severity == severity


def test_hostile_names_are_one_line_of_bounded_length(tmp_path: Path) -> None:
    name = "\x1b[31m\n" + "x" * 300
    found = verdict(planted_run(info=info(), incidents=lost(214, layer=name, operator=name, location=name)))
    assert found.sentence.isprintable()
    assert len(found.sentence) < 400


def test_a_recorded_run(tmp_path: Path) -> None:
    record_run(tmp_path)
    found = verdict(open_run(tmp_path))
    assert found.sentence.startswith("fp16 fits with ")
    assert "FP32 cured 1 incident" in found.sentence
    assert found.severity == "watch"


def test_gradients_that_are_zero_throughout_are_bad_and_one_layer_without_is_not() -> None:
    def run(num_zero: int) -> Run:
        samples = []
        for number in range(4):
            samples.append(sample(f"net.{number}", amax=1.0))
            nothing = {"amax": 0.0, "zeros": 100} if number < num_zero else {"amax": 0.1}
            samples.append(sample(f"net.{number}", kind="activation_gradient", loss_scale=1024.0, **nothing))
        return planted_run(samples, info=info())

    one, two, all_of_them = (verdict(run(number)) for number in (1, 2, 4))
    assert one.severity is Severity.good
    assert two.severity is all_of_them.severity is Severity.bad
    start = "fp16 has not overflowed: 1,900 steps, none skipped; but "
    assert two.sentence == f"{start}the gradients of 2 of 4 layers are zero throughout."
    assert all_of_them.sentence.endswith("but the gradients of all layers are zero throughout.")


def test_samples_without_a_number_tell_of_no_headroom() -> None:
    spoiled = [sample("net.0", amax=0.0, nans=100), sample("net.1", amax=0.0, infs=60, zeros=40)]
    found = verdict(planted_run(spoiled, info=info()))
    assert found.severity is Severity.watch
    assert "its samples hold no number but NaN, Inf and zero" in found.sentence
