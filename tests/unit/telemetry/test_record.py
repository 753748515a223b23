import json
from typing import Any

import pytest

from mp_plugin.errors import CheckpointError
from mp_plugin.telemetry.record import KEPT_INCIDENTS, RunRecord
from tests.unit.telemetry.test_events import incident


def eventful() -> RunRecord:
    record = RunRecord()
    record.took_step(8.0)
    for parameters in [("a", "b"), ("b",)]:
        record.add(incident(parameters=parameters))
        record.skipped_step(4.0)
    return record


def test_counts() -> None:
    record = eventful()
    assert (record.steps, record.effective_step, record.skipped_steps, record.skips_in_a_row) == (3, 1, 2, 2)
    record.took_step(2.0)
    assert (record.steps, record.skips_in_a_row) == (4, 0)


def test_summary_is_json_with_the_worst_parameter_first() -> None:
    summary = eventful().summary(precision="16-mixed", scale=2.0)
    assert json.loads(json.dumps(summary)) == {
        "precision": "16-mixed",
        "steps": 3,
        "effective_steps": 1,
        "skipped_steps": 2,
        "retried_steps": 0,
        "loss_scale": {"now": 2.0, "min": 4.0, "max": 8.0},
        "incidents": {"total": 2, "by_parameter": {"b": 2, "a": 1}},
    }
    assert list(summary["incidents"]["by_parameter"]) == ["b", "a"]


def test_without_a_scale_there_is_none_to_report() -> None:
    assert RunRecord().summary(precision="bf16-mixed", scale=None)["loss_scale"] is None


def test_memory_is_bounded() -> None:
    record = RunRecord()
    for step in range(KEPT_INCIDENTS + 5):
        record.add(incident(step=step))
    assert len(record.incidents) == KEPT_INCIDENTS
    assert record.incidents[-1].step == KEPT_INCIDENTS + 4
    assert record.total_incidents == KEPT_INCIDENTS + 5


def test_state_round_trip() -> None:
    back = RunRecord.from_state_dict(json.loads(json.dumps(eventful().state_dict())))
    before = eventful()
    before.incidents.clear()
    assert back == before


@pytest.mark.parametrize("damage", [{"effective_step": -1}, {"skipped_steps": 1.0}, {"skips_in_a_row": None}], ids=str)
def test_damaged_state_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="accepted: a whole number, at least 0"):
        RunRecord.from_state_dict({**eventful().state_dict(), **damage})
