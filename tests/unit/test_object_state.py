import random
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mp_plugin import object_state
from mp_plugin.object_state import ObjectState


class Meter:
    """Stands for a class of the user's own."""

    def __init__(self) -> None:
        self.count, self.values, self.arrays = 0, [1], {"counts": np.zeros(2)}

    def update(self) -> None:
        self.count += 1
        self.values.append(self.count)
        self.arrays["counts"][0] += 1
        self.late = True


@pytest.mark.parametrize(
    ("value", "change"),
    [
        ([1, 2], lambda each: each.append(3)),
        ([1, 2], lambda each: each.reverse()),
        (deque([1], maxlen=1), lambda each: each.append(3)),
        ({1, 2}, lambda each: each.discard(1)),
        ({"a": 1}, lambda each: each.update(a=2)),
        (defaultdict(list), lambda each: each["new"].append(1)),
        (Counter("aab"), lambda each: each.update("b")),
        (OrderedDict(a=1, b=2), lambda each: each.move_to_end("a")),
        ({"of": [{"many": deque([1])}]}, lambda each: each["of"][0]["many"].clear()),
        (SimpleNamespace(a=1), lambda each: vars(each).update(a=2)),
        (UserDict(a=[1]), lambda each: each["a"].append(2)),
        (([1],), lambda each: each[0].clear()),
    ],
    ids=lambda value: "edit" if callable(value) else repr(value),
)
def test_containers_go_back(value: Any, change: Any) -> None:
    before = repr(value)
    state = ObjectState([value])
    change(value)
    assert repr(value) != before
    state.restore()
    assert repr(value) == before


def test_a_user_s_object_goes_back_with_what_it_holds() -> None:
    meter = Meter()
    inner = meter.values
    state = ObjectState([{"meters": [meter]}])
    meter.update()
    meter.values = []
    state.restore()
    assert (meter.count, meter.values, meter.arrays["counts"][0]) == (0, [1], 0)
    assert meter.values is inner
    assert not hasattr(meter, "late")


@pytest.mark.parametrize(
    ("generator", "draw"),
    [
        (torch.Generator(), lambda each: torch.rand(1, generator=each).item()),
        (random.Random(1), lambda each: each.gauss(0, 1)),
        (np.random.default_rng(1), lambda each: each.random()),
        (np.random.RandomState(1), lambda each: each.randn()),
        (np.random.Philox(1), lambda each: each.random_raw()),
    ],
    ids=lambda each: type(each).__name__,
)
def test_random_generators_go_back(generator: Any, draw: Any) -> None:
    draw(generator)
    state = ObjectState([[generator]])
    first = draw(generator)
    state.restore()
    assert draw(generator) == first


def test_an_operating_system_s_generator_has_no_state() -> None:
    ObjectState([random.SystemRandom()]).restore()


def test_modules_go_back_but_for_what_is_left_out() -> None:
    module = torch.nn.BatchNorm1d(2)
    module.register_buffer("pointer", torch.zeros(2, dtype=torch.long))
    pointer = module.pointer
    state = ObjectState([[module]], besides=frozenset({"_parameters", "kept"}))
    module.eval()
    module.pointer = pointer + 1
    module.momentum, module.kept = 0.5, 1
    state.restore()
    assert (module.training, module.momentum, module.kept) == (True, 0.1, 1)
    assert module.pointer is pointer


def test_an_object_that_holds_itself_ends_the_search() -> None:
    meter = Meter()
    meter.values.append(meter)
    ObjectState([meter]).restore()


def test_what_belongs_to_python_and_torch_stays_closed() -> None:
    event, optimizer = Event(), torch.optim.SGD([torch.zeros(1)], lr=1.0)
    state = ObjectState([event, optimizer])
    event.set()
    optimizer.param_groups = []
    state.restore()
    assert event.is_set()
    assert optimizer.param_groups == []


def test_large_arrays_and_what_lies_far_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_state, "LARGEST_ARRAYS", 100)
    large, small = np.zeros(20), np.zeros(10)
    state = ObjectState([large, small])
    large += 1
    small += 1
    state.restore()
    assert (large[0], small[0]) == (1, 0)
    monkeypatch.setattr(object_state, "MOST_OBJECTS", 2)
    near, far = [1], [[1]]
    state = ObjectState([near, far])
    near.append(2)
    far[0].append(2)
    state.restore()
    assert (near, far) == ([1], [[1, 2]])


def test_an_array_that_nobody_can_write_to_is_no_trouble() -> None:
    array = np.zeros(2)
    array.flags.writeable = False
    ObjectState([array]).restore()
