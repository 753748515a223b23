import math

import pytest

from mp_plugin.report.page_data import PageData
from mp_plugin.report.worst_layers import worst_layers
from mp_plugin.telemetry.store import open_run
from tests.helpers.planted_runs import planted_run, sample
from tests.helpers.recorded_runs import record_run

GRADIENT = "parameter_gradient"


def first_measure(*samples):
    run = planted_run(samples)
    return PageData(run, worst_layers(run, 1)[0]).first_measure


@pytest.mark.parametrize(("precision", "measure"), [("16-mixed", "headroom"), ("bf16-mixed", "amax")])
def test_headroom_is_shown_first_where_there_is_something_to_see(tmp_path, precision, measure):
    run = open_run(record_run(tmp_path, precision=precision))
    # By the definition, apart from the grid; layer 2 of the recorded run underflows in fp16 too.
    assert PageData(run).first_measure == measure


def test_a_run_with_inf_in_every_sampled_step():
    broken = [sample("net", step=step, kind=GRADIENT, amax=0.0, infs=100) for step in (0, 5)]
    assert first_measure(*broken) == "non_finite"
    assert first_measure(*broken, sample("net", step=9, kind=GRADIENT)) == "headroom"


def test_masked_scores_are_no_overflow():
    assert first_measure(sample("scores", infs=3), sample("net", kind=GRADIENT)) == "headroom"
    assert first_measure(sample("scores", infs=3)) == "non_finite"


def test_a_run_whose_gradients_vanish():
    vanishing = sample("net", kind=GRADIENT, amax=2.0**-20, subnormal=90, flushed=10)
    assert first_measure(sample("net"), vanishing) == "underflow"
    assert first_measure(sample("net", amax=60_000.0), vanishing) == "headroom"


def test_the_ends_of_what_is_much_headroom():
    for bits, measure in ((20, "headroom"), (21, "amax")):
        assert first_measure(sample("net", amax=65504 / 2**bits)) == measure
    assert math.isnan(PageData(planted_run([sample("net", amax=0.0)])).grid.cells["headroom"].item())
    assert first_measure(sample("net", amax=0.0, zeros=100)) == "headroom"


def test_without_samples():
    assert PageData(planted_run()).first_measure == "headroom"
