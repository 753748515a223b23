import pytest

from mp_plugin.report.sample_cost import sample_cost
from mp_plugin.telemetry.sample_budget import SampleBudget
from mp_plugin.telemetry.table import TELLING_SECONDS
from tests.helpers.planted_runs import info, planted_run

TOLD = {"taken": 4, "left_out": 1, "seconds": 0.5, "training_seconds": 20.0, "share": 0.025}


def cost_of(**changes):
    return sample_cost(planted_run(info=info(telemetry={**TOLD, **changes})))


def test_the_share_of_a_training_long_enough_to_tell():
    assert cost_of().share == 0.5 / 20
    assert cost_of(training_seconds=TELLING_SECONDS).share == 0.5 / TELLING_SECONDS
    assert cost_of(training_seconds=TELLING_SECONDS - 0.1).share is None


def test_it_reads_what_a_run_writes():
    assert set(TOLD) == set(SampleBudget(max_overhead=0.01).summary(training_seconds=20.0))


@pytest.mark.parametrize("changes", [{"taken": None}, {"taken": 1.5}, {"seconds": "x"}, {"seconds": -1.0}], ids=str)
def test_of_another_shape_it_is_not_on_record(changes):
    assert cost_of(**changes) is None


def test_without_a_summary_it_is_not_on_record():
    assert sample_cost(planted_run()) is None
    assert sample_cost(planted_run(info=info(telemetry=[]))) is None
