import json

from mp_plugin.telemetry.events import Action, Incident


def incident(**changes: object) -> Incident:
    fields = {
        "step": 5,
        "batch_idx": 2,
        "kind": "inf",
        "parameters": ("a", "b", "c", "d"),
        "rank": 0,
        "loss_scale": 1024.0,
        "dtype": "fp16",
        "action": Action.backoff,
    }
    return Incident(**{**fields, **changes})  # type: ignore[arg-type]


def test_reads_as_a_sentence() -> None:
    assert str(incident()) == "step 5 (batch 2): inf gradients in a, b, c and 1 more at loss scale 1,024"
    assert (
        str(incident(parameters=("a",), rank=3)) == "step 5 (batch 2): inf gradients in a on rank 3 at loss scale 1,024"
    )


def test_is_json() -> None:
    back = json.loads(json.dumps(incident().as_dict()))
    assert back["parameters"] == ["a", "b", "c", "d"]
    assert back["action"] == "backoff"
