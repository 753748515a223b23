from itertools import product

import pytest

from mp_plugin.scaling.step_plan import SEPARATE, Route, StepPlan, is_exact, plan_step

ALL = [
    dict(zip(("attended", "by_value", "foldable", "exact"), each, strict=True))
    for each in product((True, False), repeat=4)
]


@pytest.mark.parametrize("max_norm", [None, 0.5])
@pytest.mark.parametrize("given", ALL, ids=str)
def test_every_plan(given: dict[str, bool], max_norm: float | None) -> None:
    plan = plan_step(
        is_attended=given["attended"],
        clips_by_value=given["by_value"],
        max_norm=max_norm,
        is_foldable=given["foldable"],
        is_exact=given["exact"],
    )
    if given["attended"] or given["by_value"]:
        assert plan == SEPARATE
    elif given["foldable"]:
        assert plan == StepPlan(route=Route.folded, max_norm=max_norm, is_exact=given["exact"])
    elif max_norm is None:
        assert plan == SEPARATE
    else:
        # Only the device's own verdict comes late, which nobody but a fused optimizer obeys.
        assert plan == StepPlan(route=Route.one_pass, max_norm=max_norm, is_exact=True)
    assert plan.is_unattended is (plan.route in (Route.folded, Route.one_pass))


def test_the_separate_route_waits_and_clips_by_itself() -> None:
    assert (SEPARATE.route, SEPARATE.max_norm, SEPARATE.is_exact, SEPARATE.is_unattended) == (
        Route.separate,
        None,
        True,
        False,
    )


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (SEPARATE, "checked separately"),
        (StepPlan(route=Route.one_pass), "clipped in one pass"),
        (StepPlan(route=Route.folded, is_exact=False), "folded into the optimizer, verdict one step later"),
    ],
)
def test_a_plan_in_words(plan: StepPlan, words: str) -> None:
    assert str(plan) == words


@pytest.mark.parametrize("is_steady", [True, False])
@pytest.mark.parametrize("needs_batch", [True, False])
@pytest.mark.parametrize("is_free", [True, False])
@pytest.mark.parametrize("exact", [True, False, None])
def test_who_waits(exact: bool | None, is_free: bool, needs_batch: bool, is_steady: bool) -> None:
    given = {"is_free": is_free, "needs_batch": needs_batch, "is_steady": is_steady}
    by_itself = is_free or needs_batch or not is_steady
    assert is_exact(exact, **given) is (by_itself if exact is None else exact)
