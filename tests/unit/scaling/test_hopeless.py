import re
from typing import Any

import pytest

from mp_plugin.config import LossScaling
from mp_plugin.errors import TrainingDivergedError
from mp_plugin.scaling.hopeless import stop_if_hopeless
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.telemetry.events import Action, Cause, Incident


def incident(action: Action, **fields: Any) -> Incident:
    found = {
        "step": 4,
        "batch_idx": 4,
        "kind": "inf",
        "parameters": ("a.weight", "b.weight"),
        "rank": 0,
        "loss_scale": 1.0,
        "dtype": "fp16",
    }
    return Incident(**{**found, "action": action, **fields})


def stop(given: Incident, scaler: LossScaler | None = None, *, scale_is_to_blame: bool = False) -> None:
    stop_if_hopeless(given, scaler, patience=3, scale_is_to_blame=scale_is_to_blame)


@pytest.mark.parametrize("action", [action for action in Action if action is not Action.raise_])
def test_there_is_hope(action: Action) -> None:
    stop(incident(action))
    stop(incident(action, cause=Cause.weights))
    stop(incident(action), LossScaler(), scale_is_to_blame=True)


def test_too_many_in_a_row() -> None:
    with pytest.raises(TrainingDivergedError, match=re.escape("3 such steps in a row. The weights are those")) as error:
        stop(incident(Action.raise_))
    assert "Parameters with inf gradients: a.weight, b.weight." in str(error.value)
    assert "LossScaling" not in str(error.value)


@pytest.mark.parametrize(("policy", "bound"), [("dynamic", "min_scale"), ("static", "init_scale")])
def test_the_scale_is_named_if_it_is_to_blame(policy: Any, bound: str) -> None:
    scaler = LossScaler(LossScaling(policy=policy, init_scale=4096.0))
    with pytest.raises(TrainingDivergedError, match="at a loss scale of 4,096 that cannot go lower") as error:
        stop(incident(Action.raise_), scaler, scale_is_to_blame=True)
    assert f"a lower LossScaling.{bound} gives" in str(error.value)
    with pytest.raises(TrainingDivergedError) as error:
        stop(incident(Action.raise_), scaler)
    assert "4,096" not in str(error.value)
    assert "LossScaling(at_min_scale='skip') goes on regardless" in str(error.value)


def test_lost_weights_stop_at_once() -> None:
    given = incident(Action.raise_, cause=Cause.weights, evidence={"weights": ["a.weight", "c.bias"]})
    with pytest.raises(TrainingDivergedError, match="2 weights, 'a.weight' among them, were not finite before this"):
        stop(given)
