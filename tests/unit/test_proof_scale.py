from collections.abc import Callable
from typing import Any

import pytest

from mp_plugin.config import LossScaling
from mp_plugin.proof_scale import scale_to_prove_at
from mp_plugin.scaling.guard import StepGuard
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.scaling.window import ScaleWindow
from mp_plugin.telemetry.events import Cause

EMPTY = ScaleWindow(lowest=512.0, highest=16.0, emptied_by=("blocks.1.lin",))
WIDE = ScaleWindow(lowest=16.0, highest=512.0)


def guard(**scaling: Any) -> StepGuard:
    return StepGuard(LossScaler(LossScaling(**{"init_scale": 2.0**10, "min_scale": 2.0, **scaling})), dtype="fp16")


def explained(cause: Cause = Cause.backward, *, layer: str | None = "blocks.1", **evidence: Any) -> dict[str, Any]:
    return {"cause": cause, "operator": "aten.mm.default", "layer": layer, "evidence": evidence}


def prove_at(
    explanation: dict[str, Any],
    by: StepGuard,
    window: ScaleWindow | None = None,
    *,
    is_auto: bool = True,
    tries: Callable[[float], bool | None] = {}.__getitem__,
) -> float | None:
    """By itself it may not try another scale."""
    return scale_to_prove_at(explanation, by, lambda: window, tries, is_auto=is_auto)


@pytest.mark.parametrize("cause", [Cause.data, Cause.weights, Cause.loss, Cause.unknown])
def test_other_causes_are_no_business_of_a_layer(cause: Cause) -> None:
    assert prove_at(explained(cause, backward_finite_at_lower_scale=False), guard(), EMPTY) is None


def test_what_was_not_traced_is_not_proved() -> None:
    assert prove_at({"cause": Cause.forward, "evidence": {}}, guard()) is None


def test_a_forward_overflow_is_proved_at_the_lowest_scale() -> None:
    assert prove_at(explained(Cause.forward), guard()) == 2.0
    assert prove_at(explained(Cause.forward), StepGuard(None, dtype="bf16")) == 1.0
    assert prove_at(explained(Cause.forward), guard(), is_auto=False) is None


def test_a_static_scale_has_no_lower_one() -> None:
    static = guard(policy="static")
    assert prove_at(explained(Cause.forward), static) == 2.0**10
    assert prove_at(explained(backward_finite_at_lower_scale=True), static) == 2.0**10


@pytest.mark.parametrize("hysteresis", [1, 3])
def test_a_backward_overflow_that_a_lower_scale_cures_needs_no_layer(hysteresis: int) -> None:
    """With hysteresis the scale does not move at once: that is no reason to move a layer."""
    for finite in (True, None):
        explanation = explained(backward_finite_at_lower_scale=finite)
        assert prove_at(explanation, guard(hysteresis=hysteresis), WIDE) is None


@pytest.mark.parametrize(("finite", "expected"), [(False, 2.0), (True, None), (None, None)])
def test_where_nobody_has_tried_a_lower_scale_it_is_tried(finite: bool | None, expected: float | None) -> None:
    """An origin that was known already is recognised, and no more."""
    explanation = explained()
    assert prove_at(explanation, guard(), tries={2.0: finite}.__getitem__) == expected
    assert explanation["evidence"] == {"backward_finite_at_lower_scale": finite}
    assert prove_at(explained(), guard(at_min_scale="fallback"), is_auto=False) is None


def test_a_backward_overflow_that_no_scale_cures_is_proved_at_the_lowest() -> None:
    assert prove_at(explained(backward_finite_at_lower_scale=False), guard(hysteresis=3)) == 2.0
    assert prove_at(explained(backward_finite_at_lower_scale=None), guard(init_scale=2.0)) == 2.0
    assert prove_at(explained(), StepGuard(None, dtype="bf16")) == 1.0


def test_at_the_floor_layers_may_move_without_auto_once_patience_is_over() -> None:
    at_floor = guard(init_scale=2.0, at_min_scale="fallback", patience=2)
    assert prove_at(explained(), at_floor, is_auto=False) is None
    assert at_floor.scaler is not None
    at_floor.scaler.state = at_floor.scaler.state_if_overflowed()
    assert prove_at(explained(), at_floor, is_auto=False) == 2.0


@pytest.mark.parametrize("layer", ["blocks.1.lin", "blocks.1", "blocks.1.lin.inside"])
def test_layers_that_empty_the_window_are_proved_at_the_scale_that_there_is(layer: str) -> None:
    explanation = explained(layer=layer, backward_finite_at_lower_scale=True)
    assert prove_at(explanation, guard(), EMPTY) == 2.0**10
    assert explanation["evidence"]["scale_window"] == {
        "lowest": 512.0,
        "highest": 16.0,
        "emptied_by": ("blocks.1.lin",),
    }
    assert prove_at(explained(layer=layer), guard(), EMPTY, is_auto=False) is None


@pytest.mark.parametrize("layer", [None, "", "blocks.10", "blocks.2", "head"])
def test_an_overflow_elsewhere_has_nothing_to_do_with_an_empty_window(layer: str | None) -> None:
    assert prove_at(explained(layer=layer, backward_finite_at_lower_scale=True), guard(), EMPTY) is None
