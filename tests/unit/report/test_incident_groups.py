from mp_plugin.report.incident_groups import incident_groups, lost_steps
from mp_plugin.telemetry.events import Action, Cause
from tests.helpers.planted_runs import overflow


def test_one_group_for_each_origin_the_most_frequent_first() -> None:
    groups = incident_groups(
        [
            overflow(1, layer="other"),
            overflow(2, cause=Cause.backward),
            overflow(9, traced=False, evidence={"untraced": "repeat"}),
            overflow(3),
            overflow(5, operator=None, kind="nan", traced=False),
            overflow(4),
        ]
    )
    assert [[each.step for each in group.incidents] for group in groups] == [[9, 3, 4], [1], [2], [5]]
    most = groups[0]
    assert (most.first_step, most.last_step, most.example.step) == (3, 9, 3)
    assert groups[3].example.step == 5


def test_outcomes_and_culprits() -> None:
    cured = {"action": Action.fallback, "cured": True}
    (group,) = incident_groups(
        [
            overflow(1),
            overflow(2, culprits=("b", "a"), **cured),
            overflow(3, culprits=("a",), **cured),
            overflow(4, action=Action.fallback, culprits=("c",)),
        ]
    )
    assert group.outcomes == {
        (Action.fallback, True): 2,
        (Action.skip, False): 1,
        (Action.fallback, False): 1,
    }
    assert group.culprits == ("b", "a")


def test_no_incidents_no_groups() -> None:
    assert incident_groups([]) == []


def test_a_step_is_lost_if_its_last_run_was_in_vain() -> None:
    lost = lost_steps(
        [
            overflow(1, action=Action.retry),
            overflow(1, action=Action.backoff),
            overflow(2, action=Action.retry),
            overflow(2, action=Action.retry, cured=True),
            overflow(3, action=Action.zeroed),
            overflow(4, action=Action.raise_),
        ]
    )
    assert {step: each.action for step, each in lost.items()} == {1: Action.backoff, 4: Action.raise_}
