from typing import Any

import pytest

from mp_plugin.telemetry.advice import advice
from mp_plugin.telemetry.events import Action, Cause, Direction
from mp_plugin.telemetry.reason_rules import RULES
from tests.unit.telemetry.test_events import incident

SCALE_LOWERED = "Nothing: the loss scale was lowered. If it recurs,"


def forward(reason: str, **changes: Any) -> Any:
    fields = {
        "cause": Cause.forward,
        "direction": Direction.forward,
        "operator": "aten.mul.Tensor",
        "layer": "net.0",
        "action": Action.skip,
        "reason": reason,
    }
    return incident(**{**fields, **changes})


def backward(reason: str, **changes: Any) -> Any:
    return forward(reason, **{"cause": Cause.backward, "direction": Direction.backward, **changes})


@pytest.mark.parametrize(
    ("reason", "remedy"),
    [
        ("invalid: 0/0", "eps to the divisor"),
        ("division by zero", "eps to the divisor"),
        ("division by zero: layer norm of a constant, with eps 0", "norm an eps above zero"),
        ("division by zero: reciprocal square root of zero", "eps under the root"),
        ("invalid: square root of a negative number", "eps under the root"),
        ("logarithm of zero", "Use log_softmax, logsigmoid or logsumexp"),
        ("invalid: logarithm of a negative number", "why the input is below zero"),
        ("invalid: softmax over a row of -inf only", "-1e4, not with -inf"),
        ("invalid: attention over a row that is masked entirely", "-1e4, not with -inf"),
        ("invalid: softmax of +inf (inf - inf)", "logits overflowed"),
        ("invalid: variance of a single element", "too few elements"),
        ("invalid: 0/0, the mean loss over no targets", "no targets"),
        ("invalid: fractional power of a negative number", "base to at least zero"),
        ("logarithm of zero: logit of 0 or 1", "where the function is finite"),
        ("invalid: acos of a number outside [-1, 1]", "where the function is finite"),
        ("memory that nothing was written to yet", "torch.zeros"),
        ("multiplied by inf, a constant", "Replace that constant"),
        ("invalid: inf - inf", "infinite constant"),
        ("invalid operation on finite numbers", "Look at what this operator is given"),
    ],
)
def test_a_forward_reason_has_its_remedy(reason: str, remedy: str) -> None:
    assert remedy in advice(forward(reason))


@pytest.mark.parametrize("reason", sorted({rule.reason for rule in RULES}))
def test_every_reason_that_a_rule_gives_has_a_remedy_of_its_own(reason: str) -> None:
    assert advice(forward(reason)) != advice(forward("invalid operation on finite numbers"))
    assert "more range" not in advice(forward(reason)).lower()


OVERFLOW = "overflow: 131,072 is beyond the largest fp16 number, 65,504"


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (forward(OVERFLOW), "Fallback(auto=True) runs in fp32 what has to be"),
        (forward("an overflow inside the operator, whose result, 3, would fit fp16"), "use bf16"),
        (forward(OVERFLOW, layer=""), "or run this line in fp32"),
        (forward(OVERFLOW, evidence={"forward_finite_in_fp32": True}), "use bf16"),
        (forward(OVERFLOW, evidence={"forward_finite_in_fp32": False}), "More range is no help"),
        (forward("overflow: 4e+38 is beyond the largest bf16 number", dtype="bf16"), "More range is no help"),
        (forward("overflow: exp of 800", operator="aten.exp.default"), "Subtract the maximum"),
        (forward("overflow: exp of 800", operator="aten.exp_.default"), "Subtract the maximum"),
        (forward(OVERFLOW, operator="aten.expand.default"), "use bf16"),
        (backward("invalid: 0/0"), "torch.where after it does not protect the gradient"),
        (backward("division by zero"), "torch.where after it does not protect the gradient"),
        (backward("logarithm of zero"), "Use log_softmax, logsigmoid or logsumexp"),
        (backward("a non-finite input", action=Action.retry), "Look at what this operator is given"),
        (backward(OVERFLOW, action=Action.retry, cured=True), SCALE_LOWERED),
        (backward(OVERFLOW, action=Action.retry), "A lower LossScaling.init_scale is there sooner."),
        (backward(OVERFLOW, action=Action.backoff), SCALE_LOWERED),
        (
            forward(OVERFLOW, evidence={"proof": {"layers": ["a"], "refused": "a in FP32 would make 2 of 5 layers"}}),
            "a in FP32 would make 2 of 5 layers. Raise it, or name what was proved: Fallback(layers=['a']).",
        ),
        (forward(OVERFLOW, action=Action.fallback, culprits=("a", "b")), "Fallback(layers=['a', 'b']) does it from"),
        (backward(OVERFLOW), "Let the loss scale go lower"),
        (backward(OVERFLOW, loss_scale=1.0), "Look at what multiplies the gradient"),
        (backward(OVERFLOW, evidence={"backward_finite_at_lower_scale": False}), "A lower loss scale was no cure"),
        (incident(cause=Cause.loss, action=Action.retry), f"{SCALE_LOWERED} set a lower LossScaling.max_scale."),
        (incident(cause=Cause.loss, action=Action.skip), "a mean instead of a sum"),
    ],
)
def test_an_overflow_is_a_matter_of_dtype_pass_and_scale(case: Any, expected: str) -> None:
    assert expected in advice(case)


def part(path: str, *samples: int) -> dict[str, Any]:
    return {"path": path, "nan": 1, "inf": 0, "samples": list(samples)}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], "Look at batch 2, and"),
        ([part("batch[0]", 3)], "Look at sample 3 of batch[0], and"),
        ([part("batch[0]", 3, 5, 7)], "Look at samples 3, 5, 7 of batch[0], and"),
        ([part("batch[0]", 3, 5, 7, 9)], "Look at samples 3, 5, 7 ... of batch[0], and"),
        ([part("batch[0]"), part("batch[1]", 2)], "Look at batch[0] and sample 2 of batch[1], and"),
    ],
)
def test_a_bad_batch_is_pointed_at(parts: list[dict[str, Any]], expected: str) -> None:
    text = advice(incident(cause=Cause.data, evidence={"batch": parts}))
    assert text.startswith(expected)
    assert text.endswith("Telemetry(keep_batches=True) saves such batches.")


@pytest.mark.parametrize(
    ("tensor", "step", "expected"),
    [
        (
            "head.weight",
            7,
            "Look at head.weight, which is cast to fp16 here. It has grown: lower the learning rate, or",
        ),
        (
            "head.weight",
            0,
            "Look at head.weight, which is cast to fp16 here. Begin with smaller values, or use bf16, or",
        ),
        (
            "batch[0]",
            0,
            "Look at batch[0], which is cast to fp16 here. Normalise it, or use bf16, or Fallback(layers=[",
        ),
    ],
)
def test_what_was_too_large_before_the_first_step_has_not_grown(tensor: str, step: int, expected: str) -> None:
    assert advice(forward(OVERFLOW, step=step, evidence={"tensor": tensor})).startswith(expected)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "what writes to them."),
        (["a", "b", "c"], "what writes to a, b, c."),
        (["a", "b", "c", "d"], "what writes to a, b, c ...."),
    ],
)
def test_lost_weights_ask_for_a_checkpoint(names: list[str], expected: str) -> None:
    text = advice(incident(cause=Cause.weights, evidence={"weights": names}))
    assert text.startswith("Go back to a checkpoint from before this step.")
    assert text.endswith(expected)


@pytest.mark.parametrize("cause", [Cause.unknown, Cause.forward, Cause.backward])
def test_without_an_origin_it_tells_how_to_get_one(cause: Cause) -> None:
    def advised(**evidence: Any) -> str:
        return advice(incident(cause=cause, evidence=evidence))

    assert advised(untraced="budget") == "To have the operator and its line named, raise Telemetry.max_traced."
    assert advised(untraced="off") == advised(untraced="budget")
    assert advised(untraced="no closure").startswith("Wait for the next one")
    assert advised(untraced="seen late").endswith("AdaptivePrecision(exact=True) always waits.")
    report = "Please report it, with its line of telemetry/incidents.jsonl."
    assert advised() == report
    assert advised(missing=["no loss", "no batch"]) == f"{report} Not found out: no loss; no batch."
