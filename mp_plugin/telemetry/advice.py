"""From the cause of an incident to what its reader can do about it."""

import re
from collections.abc import Mapping
from typing import Any

from mp_plugin.telemetry.events import Action, Cause, Direction, Incident

LISTED_PARTS = 3
"""Of a batch, or of the names of weights: enough to know where to look."""

REMEDIES = (
    (r"with eps 0", "Give that norm an eps above zero."),
    (r"softmax over a row of -inf|masked entirely", "Mask with a large finite negative such as -1e4, not with -inf."),
    (r"softmax of \+inf", "The logits overflowed: scale them down before the softmax, or compute them in fp32."),
    (
        r"outside \[|below -?1$|1 \+ x|logit of|atanh of|erfinv of|gamma of",
        "Clamp the input to where the function is finite.",
    ),
    (r"logarithm of zero", "Use log_softmax, logsigmoid or logsumexp, or clamp in fp32: x.float().clamp(min=1e-6)."),
    (r"logarithm of a negative", "Find out why the input is below zero, or clamp it to a small positive number."),
    (r"square root of", "Add an eps under the root, or clamp its input to at least an eps."),
    (r"variance of a single|no elements|no targets", "Leave out of the loss what has too few elements or no targets."),
    (r"0/0|by zero", "Add an eps to the divisor (1e-4 or more in fp16), or clamp it away from zero."),
    (r"fractional power of a negative", "Clamp the base to at least zero, or raise its absolute value instead."),
    (r"nothing was written to", "Fill that memory before it is used: torch.zeros instead of torch.empty."),
    (r"a constant", "Replace that constant by a finite number."),
    (r"inf/inf|inf - inf|0 \* inf|of inf", "Look for the infinite constant that went in, often a mask."),
)
"""What helps against a reason, known by its words; the first that is found counts."""

OUT_OF_RANGE = r"overflow"
BY_ZERO = r"0/0|by zero|0 \* inf|inf - inf"
LOWER_SCALE = "Let the loss scale go lower, by LossScaling.min_scale, or init_scale of a static one"
INFINITE_DERIVATIVE = (
    "The derivative is infinite here, as that of a root, a norm or a logarithm is at zero. Clamp the input before it; "
    "a torch.where after it does not protect the gradient."
)
EXPONENTIAL = re.compile(r"aten\.(exp|exp2|expm1|sinh|cosh)_?\.")


def advice(incident: Incident) -> str:
    """Say in one to three sentences what to do about an incident.

    Example:
        >>> incident = Incident(step=5, batch_idx=2, kind="nan", parameters=("weight",), rank=0, loss_scale=1.0,
        ...     dtype="fp32", action=Action.skip, cause=Cause.forward, operator="aten.log.default",
        ...     reason="logarithm of zero")
        >>> advice(incident)
        'Use log_softmax, logsigmoid or logsumexp, or clamp in fp32: x.float().clamp(min=1e-6).'
    """
    if incident.action is Action.fallback:
        return _fallback(incident)
    if "refused" in incident.evidence.get("proof", {}):
        return _refused(incident)
    if incident.cause is Cause.data:
        return _data(incident)
    if incident.cause is Cause.weights:
        return _weights(incident)
    if incident.cause is Cause.loss:
        return _loss(incident)
    if incident.cause is Cause.unknown or incident.operator is None:
        return _untraced(incident)
    if incident.direction is Direction.backward and re.search(BY_ZERO, incident.reason or ""):
        return INFINITE_DERIVATIVE
    for pattern, remedy in REMEDIES:
        if re.search(pattern, incident.reason or ""):
            return remedy
    if not re.search(OUT_OF_RANGE, incident.reason or ""):
        return "Look at what this operator is given: Telemetry(keep_batches=True) saves the batch to try it on."
    return _backward(incident) if incident.direction is Direction.backward else _forward(incident)


def _fallback(incident: Incident) -> str:
    layers = ", ".join(repr(name) for name in incident.culprits)
    return f"Nothing: this was proved on the batch. Fallback(layers=[{layers}]) does it from the start of another run."


def _refused(incident: Incident) -> str:
    proof = incident.evidence["proof"]
    layers = ", ".join(repr(name) for name in proof["layers"])
    return f"{proof['refused']}. Raise it, or name what was proved: Fallback(layers=[{layers}])."


def _data(incident: Incident) -> str:
    parts = [_part(part) for part in incident.evidence.get("batch", [])[:LISTED_PARTS]]
    where = f"Look at {' and '.join(parts)}" if parts else f"Look at batch {incident.batch_idx}"
    return f"{where}, and at what the data loader does to it. Telemetry(keep_batches=True) saves such batches."


def _part(part: Mapping[str, Any]) -> str:
    samples = part.get("samples", [])
    if not samples:
        return str(part["path"])
    shown = ", ".join(map(str, samples[:LISTED_PARTS])) + (" ..." if len(samples) > LISTED_PARTS else "")
    return f"sample{'s' if len(samples) > 1 else ''} {shown} of {part['path']}"


def _weights(incident: Incident) -> str:
    names = list(incident.evidence.get("weights", []))
    listed = f" {', '.join(names[:LISTED_PARTS])}{' ...' if len(names) > LISTED_PARTS else ''}" if names else " them"
    return f"Go back to a checkpoint from before this step. Then look for what writes to{listed}."


def _loss(incident: Incident) -> str:
    if incident.evidence.get("backward_finite_at_lower_scale") is False:
        return "No loss scale is low enough: make the loss smaller, by a mean instead of a sum, or its terms."
    if _is_scale_lowered(incident):
        return "Nothing: the loss scale was lowered. If it recurs, set a lower LossScaling.max_scale."
    return f"{LOWER_SCALE}, or make the loss smaller: a mean instead of a sum."


def _forward(incident: Incident) -> str:
    if EXPONENTIAL.match(incident.operator or ""):
        return "Subtract the maximum before the exponential, as softmax and logsumexp do, or clamp its input."
    if incident.dtype != "fp16" or incident.evidence.get("forward_finite_in_fp32") is False:
        return "More range is no help: look for activations that grow, a high learning rate, a missing norm."
    tensor = incident.evidence.get("tensor")
    if tensor is not None:
        if tensor.startswith("batch"):
            cure = "Normalise it"
        else:  # before the first step it cannot have grown
            cure = "It has grown: lower the learning rate" if incident.step else "Begin with smaller values"
        fallback = f"Fallback(layers=[{incident.layer!r}])" if incident.layer else "Fallback(auto=True)"
        return f"Look at {tensor}, which is cast to fp16 here. {cure}, or use bf16, or {fallback}."
    if not incident.layer:
        return "Use bf16, which has the range of fp32, or run this line in fp32, with autocast disabled around it."
    return (
        "Fallback(auto=True) runs in fp32 what has to be, Fallback(layers=[...]) the layers that you name. "
        "Or use bf16, which has the range of fp32."
    )


def _backward(incident: Incident) -> str:
    swallowed = incident.evidence.get("swallowed") or {}
    if swallowed.get("layer"):
        layer = swallowed["layer"]
        return (
            f"Look at {layer} first, whose Inf may be the reason: Fallback(layers=[{layer!r}]) keeps it from arising."
        )
    if incident.evidence.get("backward_finite_at_lower_scale") is False:
        return "A lower loss scale was no cure: Fallback(auto=True) finds layers that have to be in fp32. Or use bf16."
    if incident.loss_scale == 1:
        return "Look at what multiplies the gradient here: a large weight, a division by a small number."
    if incident.action is Action.retry and not incident.cured:
        return "Nothing: the loss scale falls until the gradients fit. A lower LossScaling.init_scale is there sooner."
    if _is_scale_lowered(incident):
        return "Nothing: the loss scale was lowered. If it recurs, use bf16, or a lower LossScaling.max_scale."
    return f"{LOWER_SCALE}, or use bf16."


def _is_scale_lowered(incident: Incident) -> bool:
    return incident.action in (Action.retry, Action.backoff)


def _untraced(incident: Incident) -> str:
    why = incident.evidence.get("untraced")
    if why in ("off", "budget"):
        return "To have the operator and its line named, raise Telemetry.max_traced."
    if why == "no closure":
        return "Wait for the next one: a step that cannot be run again is traced when it happens anew."
    if why == "seen late":
        return (
            "Wait for the next one: for a while every step is waited for, and traced if it overflows. "
            "AdaptivePrecision(exact=True) always waits."
        )
    return _unknown(incident)


def _unknown(incident: Incident) -> str:
    missing = "; ".join(incident.evidence.get("missing", []))
    reason = f" Not found out: {missing}." if missing else ""
    return f"Please report it, with its line of telemetry/incidents.jsonl.{reason}"
