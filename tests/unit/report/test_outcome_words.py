import pytest

from mp_plugin.report.incident_groups import incident_groups
from mp_plugin.report.outcome_words import outcome, outcomes
from mp_plugin.telemetry.events import Action
from tests.helpers.planted_runs import overflow


def test_a_run_that_was_stopped_after_several_skips():
    incidents = [overflow(step) for step in range(9)] + [overflow(9, action=Action.raise_)]
    (group,) = incident_groups(incidents)
    assert list(outcomes(group)) == ["9 skipped", "1 stopped the run"]


def test_layers_that_cured_are_named():
    (group,) = incident_groups([overflow(1, action=Action.fallback, cured=True, culprits=("a", "b", "c"))])
    assert list(outcomes(group)) == ["1 cured by a, b and 1 more in FP32"]


@pytest.mark.parametrize("action", Action)
def test_every_action_has_words(action):
    assert outcome(action, cured=False)
    assert outcome(action, cured=True, culprits=["a"])
