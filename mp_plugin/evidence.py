"""What can be known about a step whose gradients are not finite without running it again."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from mp_plugin.scaling.blame import blame_weights
from mp_plugin.scaling.guard import Explanation, StepGuard
from mp_plugin.scaling.verdict import gather
from mp_plugin.step_start import MicroBatch, StepStart
from mp_plugin.telemetry.batch_report import non_finite_parts
from mp_plugin.telemetry.cause import Evidence


def gather_evidence(
    guard: StepGuard,
    optimizer: Optimizer,
    module: Module,
    start: StepStart | None,
    on_all_ranks: Callable[[Callable[[], Any], Explanation], list[Any]],
) -> tuple[Explanation, Evidence]:
    """Look at batches, weights and losses; all ranks together.

    Args:
        guard: knows the losses and their scale.
        optimizer: whose weights.
        module: knows their names.
        start: holds the batches; None outside a fit.
        on_all_ranks: tries something on each rank, returns all results, and writes failures to the evidence.

    Returns:
        The evidence as plain values, and as what a cause is decided by.
    """
    evidence: Explanation = {"missing": []}
    window = start.window if start is not None else []
    batches = on_all_ranks(lambda: _non_finite_batches(window), evidence)
    batch = [{**part, "rank": rank} for rank, parts in enumerate(batches) for part in parts or []]
    lost = blame_weights(optimizer, module)
    losses = [loss.float() for loss in guard.losses]
    known = Evidence(
        batch_finite=not batch if window and None not in batches else None,
        weights_finite=not lost.parameters,
        loss_finite=_all_finite(losses),
        scaled_loss_finite=_all_finite([loss * guard.loss_scale for loss in losses]),
    )
    evidence |= {
        "batch_finite": known.batch_finite,
        "weights_finite": known.weights_finite,
        "loss_finite": known.loss_finite,
        "batch": batch,
    }
    if lost.parameters:
        evidence |= {"weights": list(lost.parameters), "weights_rank": lost.rank}
    if losses:
        loss = float(losses[-1].sum())
        evidence["loss"] = loss if math.isfinite(loss) else str(loss)  # JSON has no number for it
    return evidence, known


def _non_finite_batches(window: Sequence[MicroBatch]) -> list[dict[str, Any]]:
    return [{**part, "batch_idx": each.batch_idx} for each in window for part in non_finite_parts(each.batch)]


def _all_finite(losses: Sequence[Tensor]) -> bool | None:
    """Whether all losses of all ranks are finite; None if there are none."""
    everywhere = gather((bool(losses), all(bool(loss.isfinite().all()) for loss in losses)))
    return all(finite for _, finite in everywhere) if any(seen for seen, _ in everywhere) else None


def tidy(evidence: Explanation) -> Explanation:
    """Leave out what is not known."""
    return {name: value for name, value in evidence.items() if value is not None and value != []}
