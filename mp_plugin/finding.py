"""Trace a training step in a rehearsal, and put into plain values what this rank found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from mp_plugin.numerics.finiteness import Kind, is_finite
from mp_plugin.numerics.grad_totals import all_finite
from mp_plugin.parameter_names import plain_name
from mp_plugin.rehearsal import forward, rehearsal
from mp_plugin.scaling.verdict import has_other_ranks
from mp_plugin.step_start import MicroBatch, StepStart
from mp_plugin.telemetry.batch_report import non_finite_parts, tensors_by_path
from mp_plugin.telemetry.events import Direction, Signature
from mp_plugin.telemetry.layer_stack import LayerStack
from mp_plugin.telemetry.origin import Origin, Source, Step
from mp_plugin.telemetry.reason import diagnose
from mp_plugin.telemetry.trace import Trace
from mp_plugin.telemetry.writers import storage_of

CONSTANT = "aten.lift_fresh.default"
"""What takes in a Python number as a tensor."""

CASTS = frozenset({"aten._to_copy.default", "aten.copy_.default"})


Scale = Callable[[Tensor], Tensor]
"""Multiplies a loss by the loss scale."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """Where the non-finite numbers of a step came from, as far as one rank knows."""

    batch_idx: int
    origin: dict[str, Any]
    """Fields of an `Incident`: operator, layer, location, direction, kind; dtype, amax and reason if they are known."""
    there_before: str | None = None
    """`batch` or `weights`, if the numbers were there before the step."""
    name: str | None = None
    """Of the tensor that held them, or that was cast: a path into the batch, or a parameter's or buffer's name."""
    in_scaling: bool = False
    """Whether only the product of loss and scale overflowed."""
    exact_amax: float | None = None
    """Largest magnitude that the operator gives in float64."""
    ran_at: str | None = None
    """Line of user code inside the backward pass."""
    is_vague: bool = False
    """Whether the numbers came from memory that nobody was seen to write: on another rank there may be a better one."""
    swallowed: dict[str, str | None] | None = None
    """Of a backward origin: operator, layer and line of the first Inf in the forward pass that no loss shows."""
    failure: str | None = None
    """Why some operators could not be looked at, so that an earlier one may be to blame."""


def trace_step(start: StepStart, scale: Scale | None, only: frozenset[Signature] | None = None) -> Finding | None:
    """Run a step again under a trace, batch by batch, until one of them tells where its non-finite numbers are from.

    All ranks together. With other ranks every batch is run to its end, as the ranks may meet in either pass.

    Args:
        start: where the step began.
        scale: scales a loss; None without loss scaling.
        only: look for these origins only; finds nothing else, and is faster.
    """
    found, failure = None, None
    with rehearsal(start):
        for batch in start.window:
            layers = LayerStack(start.module)
            trace = Trace(layers, only=only)
            with layers, trace:
                loss, scaled = _run(start.module, batch, scale, trace)
            # Other ranks may wait for this one in the next batch: what went wrong here is told after the last.
            try:
                found = found or _find(start.module, trace, batch, loss, scaled)
            except Exception as error:
                failure = failure or error
            failure = failure or trace.failure
            if found is not None and not has_other_ranks():
                break
    if found is None and failure is not None:
        raise failure
    return found if failure is None or found is None else replace(found, failure=f"{type(failure).__name__}: {failure}")


def is_forward_finite_in_fp32(start: StepStart, batch_idx: int) -> bool:
    """Whether the loss of a batch is finite without autocast: one forward pass."""
    device_type = start.module.device.type
    with rehearsal(start):
        loss = forward(start.module, _batch(start, batch_idx), inside=torch.autocast(device_type, enabled=False))
        return loss is not None and is_finite(loss) is not False


def is_step_finite(start: StepStart, scale: float, *, in_fp32: bool = False) -> bool:
    """Whether all losses and gradients of a step are finite at another loss scale: one run of the step.

    Args:
        start: where the step began.
        scale: what losses are multiplied by.
        in_fp32: run without autocast.
    """
    device_type, finite = start.module.device.type, True
    with rehearsal(start):
        for batch in start.window:
            inside = torch.autocast(device_type, enabled=False) if in_fp32 else None
            loss = forward(start.module, batch, inside=inside)
            if loss is None:
                continue
            finite &= is_finite(loss) is not False
            # With other ranks every batch is run to its end, as the ranks may meet in either pass.
            if not finite and not has_other_ranks():
                return False
            start.module.backward(loss.float() * scale)
        gradients = [each.grad for each in start.module.parameters() if each.grad is not None]
        return finite and bool(all_finite(gradients))


def find_live(start: StepStart, trace: Trace, losses: Sequence[Tensor], gradients: Sequence[Tensor]) -> Finding | None:
    """Return what a trace of the step itself saw, where it could not be run again."""
    lost = [loss for loss in losses if is_finite(loss) is False]
    if not start.window:
        return None
    spoiled = lost or gradients
    found, origin = _describe(start.module, trace, start.window[-1], spoiled), trace.find_origin(spoiled)
    if found is None and trace.failure is not None:
        raise trace.failure
    if found is None or origin is None or lost:
        return found
    # A training step that optimizes by itself may write to its gradients: after their backward pass, not before.
    is_edit = not set(map(storage_of, gradients)).isdisjoint(trace.steps[origin.step].writes)
    return _replaced(found, direction=Direction.backward) if is_edit else found


def _run(
    module: "pl.LightningModule", batch: MicroBatch, scale: Scale | None, trace: Trace
) -> tuple[Tensor | None, Tensor | None]:
    loss = forward(module, batch)
    if loss is None:
        return None, None
    scaled = loss if scale is None else scale(loss)
    if has_other_ranks() or is_finite(scaled) is not False:
        with trace.backward():
            module.backward(scaled)
    return loss, scaled


def _find(
    module: "pl.LightningModule", trace: Trace, batch: MicroBatch, loss: Tensor | None, scaled: Tensor | None
) -> Finding | None:
    if trace.only is not None:
        # Of what was not watched nothing is known: only finite inputs, masks and the batch speak for themselves.
        for place, step in enumerate(trace.steps):
            if _is_own(step):
                return _of_step(module, trace, place, batch)
            bad = next((each for each in step.sources if _whose(module, batch, each)[0] == "batch"), None)
            if bad is not None:
                return _of_origin(module, trace, batch, Origin(place, bad))
        return None
    if loss is None or scaled is None:
        return None
    if is_finite(loss) is False:
        return _describe(module, trace, batch, [loss])
    if is_finite(scaled) is False:
        found = _describe(module, trace, batch, [scaled])
        layer, location = trace.made_at(loss)
        return None if found is None else replace(_replaced(found, layer=layer, location=location), in_scaling=True)
    gradients = [each.grad for each in module.parameters() if each.grad is not None]
    found = _describe(module, trace, batch, gradients)
    return None if found is None else replace(found, swallowed=_swallowed(trace))


def _swallowed(trace: Trace) -> dict[str, str | None] | None:
    """Return where the forward pass made an Inf of finite numbers that became finite again, as 1/inf is."""
    for step in trace.steps:
        is_own = step.is_maker and not step.sources and not step.is_given
        if step.direction is Direction.forward and is_own and Kind.inf in step.made:
            return {"operator": step.operator, "layer": step.layer, "location": step.location}
    return None


def _describe(
    module: "pl.LightningModule", trace: Trace, batch: MicroBatch, spoiled: Sequence[Tensor]
) -> Finding | None:
    origin = trace.find_origin(spoiled)
    if origin is None:
        return None
    found = _of_origin(module, trace, batch, origin)
    if not found.is_vague:
        return found
    # What comes back from the other ranks went out before: the first operator that was given finite numbers only.
    own = (place for place, step in enumerate(trace.steps) if step.is_maker and not step.sources and not step.is_given)
    first = next(own, None)
    return found if first is None else _of_step(module, trace, first, batch)


def _of_origin(module: "pl.LightningModule", trace: Trace, batch: MicroBatch, origin: Origin) -> Finding:
    found = _of_step(module, trace, origin.step, batch)
    source = origin.source
    if source is None and found.origin["operator"] != CONSTANT:
        return found
    where, name = (None, None) if source is None else _whose(module, batch, source)
    is_mask = source is not None and source.is_mask
    if where is None and not is_mask and (parts := non_finite_parts(batch.batch)):
        # Made of something in the batch by means that no trace sees, as of a NumPy array.
        where, name = "batch", parts[0]["path"]
    kind = found.origin["kind"] if source is None else "nan" if source.has_nan else "inf"
    if where is None:
        if source is None or is_mask:
            return found
        there = "a tensor that was not finite before the step"
        return replace(_replaced(found, reason=there, kind=kind), is_vague=True)
    holds = f"{name} holds {kind}" if where == "batch" else f"{name} was {kind} before the step"
    return _replaced(found, there_before=where, name=name, reason=holds, kind=kind)


def _is_own(step: Step) -> bool:
    return step.is_maker and all(each.is_mask for each in step.sources)


def _of_step(module: "pl.LightningModule", trace: Trace, place: int, batch: MicroBatch) -> Finding:
    step = trace.steps[place]
    origin: dict[str, Any] = {
        "operator": step.operator,
        "layer": step.layer,
        "location": step.location,
        "direction": step.direction,
        "kind": "nan" if step.makes_nan else "inf",
    }
    exact, name = None, None
    if step.operator == CONSTANT:
        origin["reason"] = "a constant that is not finite"
    if step.call is not None and step.operator != CONSTANT:
        diagnosis = diagnose(step.call.operator, step.call.args, step.call.kwargs, step.call.output)
        origin |= {"dtype": diagnosis.dtype, "amax_in": diagnosis.amax_in, "amax_out": diagnosis.amax_out}
        origin |= {"reason": diagnosis.reason}
        exact = diagnosis.exact_amax
        if step.operator in CASTS and step.call.args:
            # Which tensor is cast, a line of code that calls a layer does not tell.
            name = step.call.name or _owner(module, batch, storage_of(step.call.args[0]))[1]
            origin["reason"] += f", in {name}" if name else ""
    return Finding(batch_idx=batch.batch_idx, origin=origin, name=name, exact_amax=exact, ran_at=step.ran_at)


def _replaced(found: Finding, *, there_before: str | None = None, name: str | None = None, **origin: Any) -> Finding:
    return replace(found, there_before=there_before, name=name, origin={**found.origin, **origin})


def _whose(module: "pl.LightningModule", batch: MicroBatch, source: Source) -> tuple[str | None, str | None]:
    """Say what a non-finite tensor that was there before belongs to: batch or weights, and its name there."""
    where, name = _owner(module, batch, source.storage)
    # -Inf in a buffer is a mask.
    is_mask = (
        source.is_mask and where == "weights" and name not in {plain_name(n) for n, _ in module.named_parameters()}
    )
    return (None, None) if is_mask else (where, name)


def _owner(module: "pl.LightningModule", batch: MicroBatch, storage: int) -> tuple[str | None, str | None]:
    """Return what some memory belongs to, `batch` or `weights`, and its name there."""
    for path, tensor in tensors_by_path(batch.batch):
        if storage_of(tensor) == storage:
            return "batch", path
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        if storage_of(tensor) == storage:
            return "weights", plain_name(name)
    return None, None


def _batch(start: StepStart, batch_idx: int) -> MicroBatch:
    return next((each for each in start.window if each.batch_idx == batch_idx), start.window[-1])
