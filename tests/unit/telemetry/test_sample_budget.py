import pytest

from mp_plugin.telemetry.sample_budget import FREE_SECONDS, SampleBudget


def test_the_first_sample_is_taken_at_any_cost() -> None:
    assert SampleBudget(max_overhead=1e-9).is_affordable(training_seconds=0.0)


@pytest.mark.parametrize("max_overhead", [0.01, 0.1])
def test_the_share_stays_below_its_limit_once_there_was_time(max_overhead: float) -> None:
    budget, now = SampleBudget(max_overhead=max_overhead), 0.0
    shares = []
    for step in range(20_000):
        now += 0.02
        if step % 100 == 0:
            if budget.is_affordable(training_seconds=now):
                cost = 0.08 + 0.04 * (step % 3)
                now += cost
                budget.took(cost)
            else:
                budget.left_out += 1
            shares.append(budget.seconds / now)
    assert budget.taken + budget.left_out == 200
    # The next one is judged by the newest, which may have been the cheapest.
    assert max(shares[60:]) <= max_overhead + 0.16 / now * 3
    assert shares[-1] > 0.5 * max_overhead or budget.left_out == 0


def test_samples_that_take_next_to_nothing_are_taken_from_the_start() -> None:
    budget = SampleBudget(max_overhead=0.01)
    while budget.is_affordable(training_seconds=0.1):
        budget.took(0.004)
    assert budget.seconds == pytest.approx(FREE_SECONDS, abs=0.004)


def test_one_sets_no_limit() -> None:
    budget = SampleBudget(max_overhead=1)
    budget.took(100.0)
    assert budget.is_affordable(training_seconds=1.0)


def test_the_summary_has_the_share() -> None:
    budget = SampleBudget(max_overhead=0.5)
    assert budget.summary(training_seconds=0.0)["share"] == 0.0
    budget.took(2.0)
    budget.took(1.0, saw_something=False)
    budget.left_out += 1
    expected = {"taken": 1, "left_out": 1, "seconds": 3.0, "training_seconds": 12.0, "share": 0.25}
    assert budget.summary(training_seconds=12.0) == expected
