"""Prove which layers have to run in FP32 for a step to be finite, by running it."""

from collections.abc import Callable, Collection
from typing import Any

from torch import Tensor

from mp_plugin.all_ranks import AllRanks
from mp_plugin.fallback.islands import Islands
from mp_plugin.fallback.isolate import CURED, Isolation, Trial, isolate
from mp_plugin.fallback.layers import is_below, layers_by_name
from mp_plugin.finding import Finding, is_step_finite, trace_step
from mp_plugin.scaling.guard import Explanation
from mp_plugin.step_start import StepStart

MOST_RERUNS = 64
"""Runs of one batch: enough for three independent culprits among 300 layers, and an end for what has no cure."""


def prove(
    start: StepStart,
    explanation: Explanation,
    islands: Islands,
    scale: float,
    all_ranks: AllRanks,
    *,
    is_small: Callable[[str], bool],
) -> Isolation | None:
    """Find the smallest set of layers that makes a step finite when they run in FP32; all ranks together.

    Args:
        start: where the step began.
        explanation: of its overflow; its evidence is added to.
        islands: of the model; what is in FP32 already stays so, and is not searched.
        scale: the lowest loss scale there is: a higher one is nothing that a layer could cure.
        all_ranks: which try everything together.
        is_small: whether a layer may be in FP32 as a whole, or something inside of it should be found.

    Returns:
        What was found; None if the step is not finite even wholly in FP32, which no layer can cure, or if one of its
        runs failed, as for want of memory.
    """
    evidence: dict[str, Any] = explanation["evidence"]
    before = islands.names
    reruns = 0

    def is_finite(layers: Collection[str] = (), *, in_fp32: bool = False) -> bool:
        nonlocal reruns
        reruns += 1

        def attempt() -> bool:
            with islands.tried({*before, *layers}):
                return is_step_finite(start, scale, in_fp32=in_fp32)

        finite = all_ranks.everywhere(attempt, evidence)
        if finite is None:
            raise _RunFailed
        return finite

    def next_origin(layers: frozenset[str]) -> str | None:
        nonlocal reruns
        reruns += 1

        def attempt() -> Finding | None:
            with islands.tried({*before, *layers}):
                return trace_step(start, _times(scale))

        found = all_ranks.each(attempt, evidence)
        return next((str(each.origin["layer"] or "") for each in found if each is not None), None)

    in_fp32 = evidence.get("forward_finite_in_fp32")
    if in_fp32 is None:
        try:
            in_fp32 = evidence["step_finite_in_fp32"] = is_finite(in_fp32=True)
        except _RunFailed:
            # A module with an autocast region of its own does not run without the one around it. It may as an island.
            in_fp32 = True
    if not in_fp32:
        return None
    layers = layers_by_name(start.module)
    candidates = [
        name
        for name, layer in layers.items()
        if not any(is_below(name, above) for above in before) and islands.accepts(name, layer)
    ]
    origin = explanation.get("layer")
    try:
        found = isolate(
            is_finite, candidates, origin=origin, next_origin=next_origin, is_small=is_small, limit=MOST_RERUNS
        )
    except _RunFailed:
        # To take it for a layer that cures nothing would put others in FP32 without need.
        return None
    evidence["proof"] = {**found.as_dict(), "reruns": reruns}
    return found


def prove_swallowed(
    start: StepStart, explanation: Explanation, islands: Islands, scale: float, all_ranks: AllRanks
) -> Isolation | None:
    """Find out whether an Inf that the forward pass makes and swallows is gone with its layer in FP32; one traced run.

    Whether the step is finite then is another question: a lower loss scale may cure it with the Inf in it, which spoils
    what the layer returns all the same.

    Args:
        start: where the step began.
        explanation: of its overflow; its evidence is added to.
        islands: of the model.
        scale: the loss scale that there is.
        all_ranks: which try it together.

    Returns:
        The layer; None if there is no such Inf, it stays, or the layer cannot be in FP32.
    """
    evidence: dict[str, Any] = explanation["evidence"]
    name = str((evidence.get("swallowed") or {}).get("layer") or "")
    before, layer = islands.names, layers_by_name(start.module).get(name)
    if layer is None or any(is_below(name, above) for above in before) or not islands.accepts(name, layer):
        return None

    def is_gone() -> bool:
        with islands.tried({*before, name}):
            found = trace_step(start, _times(scale))
        return found is None or found.swallowed is None

    if not all_ranks.everywhere(is_gone, evidence):
        return None
    trial = Trial(num_layers=1, layers=(name,), outcome="no Inf in the forward pass")
    found = Isolation(layers=(name,), reruns=1, is_minimal=True, why=CURED, tried=(trial,))
    evidence["proof"] = found.as_dict()
    return found


class _RunFailed(Exception):
    """On some rank; the evidence has the reason."""


def in_words(explanation: Explanation) -> str:
    """Say what a traced incident was, as the reason for layers in FP32."""
    layer, location = explanation.get("layer"), explanation.get("location")
    where = "".join([f" in {layer}" if layer else "", f" ({location})" if location else ""])
    return f"{explanation['operator']} made {explanation['kind']}{where}"


def _times(scale: float) -> Callable[[Tensor], Tensor]:
    return lambda loss: loss.float() * scale
