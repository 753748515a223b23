from mp_plugin.scaling.clean_steps import EXACT_STEPS, CleanSteps


def after(*scales: float) -> CleanSteps:
    steps = CleanSteps()
    for scale in scales:
        steps.another(scale)
    return steps


def test_it_takes_so_many_at_one_scale() -> None:
    assert not CleanSteps().are_steady(0.0)
    assert not after(*[8.0] * (EXACT_STEPS - 1)).are_steady(8.0)
    assert after(*[8.0] * EXACT_STEPS).are_steady(8.0)
    assert after(*[8.0] * (EXACT_STEPS + 5)).are_steady(8.0)


def test_another_scale_begins_anew() -> None:
    assert not after(*[8.0] * EXACT_STEPS).are_steady(4.0)
    assert not after(*[8.0] * EXACT_STEPS, 4.0).are_steady(4.0)
    assert not after(*[8.0] * EXACT_STEPS, 4.0, 8.0).are_steady(8.0)
    assert after(8.0, *[4.0] * EXACT_STEPS).are_steady(4.0)


def test_an_incident_begins_anew() -> None:
    steps = after(*[8.0] * EXACT_STEPS)
    steps.broken()
    assert not steps.are_steady(8.0)
    for _ in range(EXACT_STEPS - 1):
        steps.another(8.0)
    assert not steps.are_steady(8.0)
    steps.another(8.0)
    assert steps.are_steady(8.0)
