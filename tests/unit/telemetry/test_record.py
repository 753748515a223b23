import json
import re
from typing import Any

import pytest

from mp_plugin.errors import CheckpointError
from mp_plugin.telemetry.events import Cause
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
        "loss_scale": {"now": 2.0, "min": 2.0, "max": 8.0},
        "incidents": {
            "total": 2,
            "traced": 0,
            "untraced": {"unknown": 2},
            "by_cause": {"unknown": 2},
            "by_parameter": {"b": 2, "a": 1},
            "origins": {},
        },
    }
    assert list(summary["incidents"]["by_parameter"]) == ["b", "a"]


def explained() -> RunRecord:
    """One incident of one origin, and two of another that is found only once."""
    record = eventful()
    by_zero: dict[str, Any] = {"operator": "aten.div.Tensor", "location": "train.py:3 in f", "cause": Cause.backward}
    record.add(incident(operator="aten.exp.default", layer="net.0", cause=Cause.forward, traced=True))
    record.add(incident(**by_zero, layer="", traced=True))
    record.add(incident(**by_zero, layer="", evidence={"untraced": "repeat"}))
    record.add(incident(cause=Cause.backward, evidence={"untraced": "budget"}))
    return record


def test_counts_causes_traces_and_origins_the_most_frequent_first() -> None:
    incidents = explained().summary(precision="16-mixed", scale=2.0)["incidents"]
    assert list(incidents["by_cause"].items()) == [("backward", 3), ("unknown", 2), ("forward", 1)]
    assert list(incidents["origins"].items()) == [
        ("aten.div.Tensor (train.py:3 in f): backward", 2),
        ("aten.exp.default in net.0: forward", 1),
    ]
    assert (incidents["total"], incidents["traced"]) == (6, 2)
    assert incidents["untraced"] == {"unknown": 2, "repeat": 1, "budget": 1}
    assert json.loads(json.dumps(incidents)) == incidents


def test_a_checkpoint_of_a_release_that_explained_nothing_is_welcome() -> None:
    state = explained().state_dict()
    for name in ("by_cause", "by_origin", "by_trace"):
        del state[name]
    back = RunRecord.from_state_dict(state)
    assert (back.total_incidents, back.by_cause.total()) == (6, 0)
    assert back.summary(precision="16-mixed", scale=None)["incidents"]["traced"] == 0


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
    back = RunRecord.from_state_dict(json.loads(json.dumps(explained().state_dict())))
    before = explained()
    before.incidents.clear()
    assert back == before


@pytest.mark.parametrize("damage", [{"effective_step": -1}, {"skipped_steps": 1.0}, {"skips_in_a_row": None}], ids=str)
def test_damaged_state_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="accepted: a whole number, at least 0"):
        RunRecord.from_state_dict({**eventful().state_dict(), **damage})


@pytest.mark.parametrize(
    ("damage", "keys"),
    [
        ({"steps_at_turn": {"0": 1}}, "whole numbers, at least 0"),
        ({"steps_at_turn": {-1: 1}}, "whole numbers, at least 0"),
        ({"skips_by_optimizer": {True: 1}}, "whole numbers, at least 0"),
        ({"skips_by_optimizer": {0.0: 1}}, "whole numbers, at least 0"),
        ({"by_parameter": {3: 1}}, "strings"),
        ({"by_cause": {3: 1}}, "strings"),
        ({"by_origin": {None: 1}}, "strings"),
        ({"by_trace": {"traced": -1}}, "strings"),
    ],
    ids=str,
)
def test_a_table_by_something_else_is_refused(damage: dict[str, Any], keys: str) -> None:
    ((name, table),) = damage.items()
    message = re.escape(f"{name}={table!r}; accepted: a dict of counts by {keys}.")
    with pytest.raises(CheckpointError, match=message):
        RunRecord.from_state_dict({**eventful().state_dict(), **damage})


def test_tables_round_trip() -> None:
    record = RunRecord(steps_at_turn={0: 3, 2: 1})
    record.skips_by_optimizer[1] += 2
    assert RunRecord.from_state_dict(record.state_dict()) == record


def test_an_unknown_key_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"unknown \['bogus'\] in record; accepted: \['by_cause', "):
        RunRecord.from_state_dict({**eventful().state_dict(), "bogus": 1})
