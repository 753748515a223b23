import json
import re
from dataclasses import replace
from typing import Any

import pytest

from mp_plugin.config import Fallback
from mp_plugin.errors import CheckpointError
from mp_plugin.fallback.policy import FallbackState, Share, after_proof, after_step, is_within


def proved(state: FallbackState, *names: str, step: int = 0, config: Fallback | None = None) -> FallbackState:
    return after_proof(state, names, why="proved", step=step, config=config or Fallback())[0]


def clean_steps(state: FallbackState, steps: int, config: Fallback) -> tuple[FallbackState, list[tuple[str, ...]]]:
    """The state after so many steps, and what each of them gave back."""
    given_back = []
    for _ in range(steps):
        state, names = after_step(state, config)
        given_back.append(names)
    return state, given_back


def test_a_proved_layer_moves_at_once_by_default():
    state, stays = after_proof(FallbackState(), ("head",), why="overflow", step=7, config=Fallback())
    assert stays
    assert list(state.demoted) == ["head"]
    assert (state.demoted["head"].why, state.demoted["head"].since_step) == ("overflow", 7)


def test_patience_counts_the_incidents_that_one_set_cured():
    config, state, stayed = Fallback(patience=3), FallbackState(), []
    for names in (("a",), ("b",), ("a",), ("a", "b"), ("a",), ("b",)):
        state, stays = after_proof(state, names, why="", step=0, config=config)
        stayed.append(stays)
    assert stayed == [False, False, False, False, True, False]
    assert list(state.demoted) == ["a"]


def test_a_layer_is_given_back_after_its_probation_and_then_watched():
    config = Fallback(probation_steps=3)
    state, given_back = clean_steps(proved(FallbackState(), "head"), 3, config)
    assert given_back == [(), (), ("head",)]
    assert not state.demoted
    assert state.watched == {"head": 0}
    state, given_back = clean_steps(state, 3, config)
    assert given_back == [(), (), ()]
    assert not state.watched, "watched for as long as it was in FP32"


def test_each_layer_has_a_clock_of_its_own():
    config = Fallback(probation_steps=4)
    state, _ = clean_steps(proved(FallbackState(), "a"), 2, config)
    state, given_back = clean_steps(proved(state, "b"), 4, config)
    assert given_back == [(), ("a",), (), ("b",)]


def test_a_layer_that_fails_while_it_is_watched_goes_back_whatever_the_patience():
    config = Fallback(probation_steps=2, patience=2)
    state = proved(proved(FallbackState(), "a", config=config), "a", config=config)
    state, _ = clean_steps(state, 2, config)
    state, stays = after_proof(state, ("a", "other"), why="again", step=5, config=config)
    assert stays
    assert set(state.demoted) == {"a", "other"}
    assert state.failures == {"a": 1}
    assert not state.watched


def test_a_layer_that_fails_twice_stays():
    config, state = Fallback(probation_steps=2), FallbackState()
    history = []
    for _ in range(4):
        if "a" not in state.demoted:
            state = proved(state, "a", config=config)
        state, given_back = clean_steps(state, 2, config)
        history.append("a" in given_back[-1])
    assert history == [True, True, False, False]
    assert state.failures == {"a": 2}


def test_a_layer_that_passed_its_watch_has_not_failed_when_it_comes_back():
    config = Fallback(probation_steps=2)
    state, _ = clean_steps(proved(FallbackState(), "a"), 4, config)
    assert proved(state, "a").failures == {}


def test_nothing_happens_to_a_run_without_layers_in_fp32():
    state = FallbackState()
    assert after_step(state, Fallback())[0] is state


@pytest.mark.parametrize(
    ("layers", "total", "members", "max_fraction", "allowed"),
    [
        (2, 10, 2, 0.2, True),
        (3, 10, 3, 0.2, False),
        (0, 10, 1, 0.0, True),  # a layer without parameters is no share of anything
        (1, 10, 1, 0.0, False),
        (1, 3, 1, 0.2, True),  # a small model
        (2, 3, 2, 0.2, False),
        (2, 4, 1, 0.2, True),
        (3, 4, 1, 0.2, False),  # a part that is most of the model
        (29, 100, 29, 0.29, True),
        (30, 100, 30, 0.29, False),
        (10, 10, 10, 1.0, True),
    ],
)
def test_a_share_of_the_model(layers: int, total: int, members: int, max_fraction: float, allowed: bool):
    assert is_within(Share(layers=layers, total=total), members=members, max_fraction=max_fraction) is allowed


def test_a_state_survives_a_checkpoint():
    config = Fallback(probation_steps=2)
    state, _ = clean_steps(proved(FallbackState(), "a", "b"), 2, config)
    state = proved(state, "a", step=9)
    assert all((state.demoted, state.watched, state.failures, state.cured))
    plain = state.as_dict()
    assert FallbackState.from_dict(json.loads(json.dumps(plain))) == state


def damaged(**changes: Any) -> dict[str, Any]:
    return {**proved(FallbackState(), "a").as_dict(), **changes}


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {},
        damaged(demoted={"a": {}}),
        damaged(demoted={"a": {"why": "x", "since_step": -1, "clean_steps": 0}}),
        damaged(demoted={"a": {"why": "x", "since_step": 1, "clean_steps": True}}),
        damaged(demoted={3: {"why": "x", "since_step": 1, "clean_steps": 0}}),
        damaged(watched={"a": "3"}),
        damaged(failures={"": 1}),
        damaged(cured={"a": 1}),
        damaged(cured=[["a"]]),
    ],
)
def test_a_damaged_state_is_refused(values: Any):
    with pytest.raises(CheckpointError, match=re.escape(f"fallback={values!r}; accepted: ")):
        FallbackState.from_dict(values)


def test_a_state_is_never_changed_in_place():
    state = proved(FallbackState(), "a")
    before = replace(state, demoted=dict(state.demoted))
    proved(state, "b")
    clean_steps(state, 3, Fallback(probation_steps=1))
    assert state == before
