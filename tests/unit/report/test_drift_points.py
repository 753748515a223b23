from mp_plugin.report.drift_points import drift_points
from mp_plugin.telemetry.drift_measure import Drift
from tests.helpers.planted_runs import planted_run


def points(*drifts):
    """As training writes them down."""
    return drift_points(planted_run(events=[{"event": "drift", "step": 7, **each.as_event()} for each in drifts]))


def test_what_was_measured():
    whole = Drift(batches=1, logits=4, squared_error=1, squared_norm=4, predictions=2, changed=1, losses=1, loss=3)
    (point,) = points(whole)
    assert point.step == 7
    assert point.values == {"logits_relative_error": 0.5, "changed_predictions": 0.5, "loss_difference": 3.0}
    assert point.lost == ()


def test_a_pass_that_was_not_finite_is_told_from_one_without_logits():
    spoiled = Drift(batches=1, logits=4, lost_logits=1, losses=1, loss=float("nan"), fp32_loss=1.0)
    nothing = Drift(batches=1)
    lost, unknown = points(spoiled, nothing)
    assert lost.lost == ("logits_relative_error", "loss_difference")
    assert unknown.lost == ()
    assert lost.values == unknown.values == {}


def test_events_of_another_shape_are_left_out():
    odd = ({"event": "drift"}, {"event": "given back", "step": 3}, {"event": "drift", "step": "x"})
    assert drift_points(planted_run(events=odd)) == []
    (point,) = drift_points(planted_run(events=({"event": "drift", "step": 1, "loss_difference": "x"},)))
    assert point.values == {}
