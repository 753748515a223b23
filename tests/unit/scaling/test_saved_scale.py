import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from mp_plugin.config import LossScaling, Policy
from mp_plugin.errors import CheckpointError
from mp_plugin.scaling.predictive import observe
from mp_plugin.scaling.saved_scale import pack_scale, unpack_scale
from mp_plugin.scaling.schedule import ScaleState, initial_state

DYNAMIC = LossScaling(init_scale=2.0**10, hysteresis=3)
PREDICTIVE = replace(DYNAMIC, policy=Policy.predictive)
STATE = ScaleState(scale=2.0**12, growth_tracker=7, hysteresis_tracker=2, overflows_at_floor=1)


@pytest.mark.parametrize("config", [DYNAMIC, PREDICTIVE], ids=["dynamic", "predictive"])
def test_there_and_back(config: LossScaling) -> None:
    state = STATE
    if config.policy is Policy.predictive:
        state = replace(state, model=observe(state.model, -3.0))
    packed = pack_scale(state, config)
    assert unpack_scale(packed, config) == state
    assert unpack_scale(packed, DYNAMIC) == replace(STATE)


def test_torch_s_scaler_and_ours_read_each_other() -> None:
    theirs = torch.amp.GradScaler("cpu")
    theirs.load_state_dict(pack_scale(STATE, DYNAMIC))
    assert (theirs.get_scale(), theirs._get_growth_tracker()) == (2.0**12, 7)
    # It knows of no hysteresis and no floor: those begin anew.
    expected = ScaleState(scale=2.0**12, growth_tracker=7, hysteresis_tracker=3)
    assert unpack_scale(theirs.state_dict(), DYNAMIC) == expected


def test_a_count_of_another_policy_is_dropped() -> None:
    """A predictive scale counts steps with room for more, a dynamic one all clean steps."""
    assert unpack_scale(pack_scale(STATE, DYNAMIC), PREDICTIVE).growth_tracker == 0


def test_what_is_configured_now_holds() -> None:
    packed = pack_scale(STATE, DYNAMIC)
    assert unpack_scale(packed, replace(DYNAMIC, max_scale=2.0**11)).scale == 2.0**11
    assert unpack_scale(packed, replace(DYNAMIC, init_scale=2.0**14, min_scale=2.0**13)).scale == 2.0**13
    assert unpack_scale(packed, replace(DYNAMIC, hysteresis=1)).hysteresis_tracker == 1
    assert unpack_scale(packed, replace(DYNAMIC, policy=Policy.static)).scale == 2.0**10


@pytest.mark.parametrize("key", ["_growth_tracker", "hysteresis_tracker", "overflows_at_floor"])
@pytest.mark.parametrize("value", [-1, 1.5, None, "3", True])
def test_counts_are_whole_numbers(key: str, value: Any) -> None:
    packed = {**pack_scale(STATE, DYNAMIC), key: value}
    with pytest.raises(CheckpointError, match=f"{key}={value!r}; accepted: a whole number, at least 0"):
        unpack_scale(packed, DYNAMIC)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan, None, "8"])
def test_a_scale_is_a_number_above_zero(scale: Any) -> None:
    with pytest.raises(CheckpointError, match="accepted: a finite number above 0"):
        unpack_scale({**pack_scale(STATE, DYNAMIC), "scale": scale}, DYNAMIC)


def test_what_is_missing_or_unknown_is_named() -> None:
    packed = pack_scale(initial_state(DYNAMIC), DYNAMIC)
    with pytest.raises(CheckpointError, match=r"unknown \['scael'\]"):
        unpack_scale({**packed, "scael": 1.0}, DYNAMIC)
    del packed["_growth_tracker"]
    with pytest.raises(CheckpointError, match="_growth_tracker=None"):
        unpack_scale(packed, DYNAMIC)
    with pytest.raises(CheckpointError, match="accepted: a dict"):
        unpack_scale(None, DYNAMIC)
