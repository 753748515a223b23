from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mp_plugin.telemetry.batch_report import non_finite_parts, tensors_by_path

NAN, INF = float("nan"), float("inf")
Pair = namedtuple("Pair", "inputs targets")


@dataclass
class Sample:
    image: Tensor
    name: str = "a"


@dataclass(slots=True)
class Slotted:
    image: Tensor


@dataclass(frozen=True)
class Frozen:
    images: list[Tensor]


BATCHES: list[Any] = [
    torch.ones(2),
    [torch.ones(2), (torch.zeros(1),)],
    {"a": torch.ones(2), 3: {"b": torch.zeros(1)}},
    OrderedDict(a=torch.ones(1)),
    UserDict(a=torch.ones(1)),
    Pair(torch.ones(2), torch.zeros(2)),
    Sample(torch.ones(1)),
    Slotted(torch.ones(1)),
    Frozen([torch.ones(1)]),
    [np.ones(2), {"x": np.float32(1.0)}],
    torch.nn.utils.rnn.pack_sequence([torch.ones(2, 1)]),
    ["text", None, 3, {"deep": [[[torch.ones(1)]]]}],
]


@pytest.mark.parametrize("batch", BATCHES, ids=lambda batch: type(batch).__name__)
def test_a_path_finds_its_tensor(batch: Any) -> None:
    found = dict(tensors_by_path(batch))
    assert found
    for path, tensor in found.items():
        assert torch.equal(torch.as_tensor(eval(path)), tensor)


def test_what_is_not_finite_is_counted_and_its_samples_are_named() -> None:
    image = torch.ones(4, 3)
    image[1, 2], image[3, 0], image[3, 1] = NAN, INF, -INF
    batch = {"image": image, "label": torch.arange(4), "mask": torch.full((2, 2), -INF), "fine": torch.ones(2)}
    assert non_finite_parts(batch) == [{"path": "batch['image']", "nan": 1, "inf": 2, "samples": [1, 3]}]


def test_numpy_arrays_share_their_memory() -> None:
    array = np.array([[1.0], [NAN]])
    assert non_finite_parts((array, np.array(["a"]), np.arange(2))) == [
        {"path": "batch[0]", "nan": 1, "inf": 0, "samples": [1]}
    ]
    ((_, tensor),) = tensors_by_path(array)
    array[1] = 5
    assert tensor.tolist() == [[1.0], [5.0]]


def test_read_only_arrays_are_read() -> None:
    array = np.array([NAN, 1.0])
    array.flags.writeable = False
    assert [part["nan"] for part in non_finite_parts([array])] == [1]


def test_a_batch_that_holds_itself_stops_nobody() -> None:
    endless: list[Any] = [torch.tensor([NAN])]
    endless.append(endless)
    assert [part["path"] for part in non_finite_parts(endless)] == ["batch[0]"]


def test_numbers_that_torch_does_not_have_are_left_out() -> None:
    batch = [np.array([NAN], dtype=np.longdouble), np.array([NAN], dtype=">f4"), np.array(["a"]), np.array([NAN + 1j])]
    assert [part["path"] for part in non_finite_parts(batch)] == ["batch[3]"]
