import enum
import io
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mp_plugin.telemetry.plain import to_plain


class Colour(enum.IntEnum):
    red = 3


class Name(str, enum.Enum):
    left = "left"


class Image(torch.Tensor):
    """A tensor of a class of its own, as torchvision has."""


class ReadOnly(Mapping[str, int]):
    def __getitem__(self, key: str) -> int:
        return {"a": 1}[key]

    def __iter__(self) -> Iterator[str]:
        return iter(["a"])

    def __len__(self) -> int:
        return 1


@dataclass
class Sample:
    image: torch.Tensor
    label: int
    cache: Any = field(init=False)


Pair = namedtuple("Pair", "left right")


def through_a_file(value: Any) -> Any:
    file = io.BytesIO()
    torch.save(value, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def same(left: Any, right: Any) -> bool:
    """Equal, down to the exact types."""
    if type(left) is not type(right):
        return False
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return [*left] == [*right] and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


ONES = torch.ones(2)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (True, True),
        (7, 7),
        (2**100, 2**100),
        (0.5, 0.5),
        (1 + 2j, 1 + 2j),
        ("text", "text"),
        (b"\xff", b"\xff"),
        (Colour.red, 3),
        (Name.left, "left"),
        (np.float64(0.5), 0.5),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("a"), "a"),
        (ONES, ONES),
        (torch.nn.Parameter(ONES.clone()), ONES),
        (ONES.as_subclass(Image), ONES),
        (ONES.half(), ONES.half()),
        (np.ones(2, dtype="float32"), ONES),
        (np.arange(3)[::-1], torch.tensor([2, 1, 0])),
        (np.broadcast_to(np.float32(1), 2), ONES),
        ([1, (2, None)], [1, (2, None)]),
        ({1: ONES, "b": [2]}, {1: ONES, "b": [2]}),
        (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
        (UserDict(a=ONES), {"a": ONES}),
        (ReadOnly(), {"a": 1}),
        ({Colour.red: 1, (1, 2): 2}, {3: 1, (1, 2): 2}),
        (Pair(1, ONES), {"left": 1, "right": ONES}),
        (Sample(ONES, 1), {"image": ONES, "label": 1}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_becomes_what_any_torch_can_load(value: Any, expected: Any) -> None:
    plain, described = to_plain(value, "batch")
    assert same(plain, expected), plain
    assert same(through_a_file(plain), expected)
    assert described == []


@pytest.mark.parametrize(
    ("value", "expected", "described"),
    [
        (Path("a"), "PosixPath('a')", "batch (PosixPath)"),
        ([1, {"x": Sample}], [1, {"x": repr(Sample)}], "batch[1]['x'] (type)"),
        (Pair(1, {3}), {"left": 1, "right": "{3}"}, "batch.right (set)"),
        (Sample(ONES, range(3)), {"image": ONES, "label": "range(0, 3)"}, "batch.label (range)"),  # type: ignore[arg-type]
        (np.array(["a", None]), "array(['a', None], dtype=object)", "batch (ndarray)"),
        (torch.ones(1, device="meta"), "tensor(..., device='meta', size=(1,))", "batch (Tensor)"),
        (np.datetime64("2024-01-02"), "datetime.date(2024, 1, 2)", "batch (date)"),
        ({Path("a"): 1}, {"PosixPath('a')": 1}, "the key PosixPath('a') of batch (PosixPath)"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_anything_else_is_described_and_named(value: Any, expected: Any, described: str) -> None:
    plain, names = to_plain(value, "batch")
    assert same(plain, expected), plain
    assert same(through_a_file(plain), expected)
    assert names == [described]


def test_a_description_has_an_end() -> None:
    plain, _ = to_plain(set(range(10_000)), "batch")
    assert len(plain) == 1000


def test_tensors_are_copies_with_a_storage_of_their_own() -> None:
    large = torch.zeros(1000, requires_grad=True)
    plain, _ = to_plain({"slice": large[:2], "expanded": torch.zeros(1).expand(5)}, "batch")
    assert plain["slice"].untyped_storage().nbytes() == 2 * 4
    assert not plain["slice"].requires_grad
    with torch.no_grad():
        large.fill_(1)
    assert plain["slice"].tolist() == [0, 0]
    assert plain["expanded"].tolist() == [0] * 5


def test_tensors_of_inference_mode_are_copied() -> None:
    with torch.inference_mode():
        tensor = torch.ones(2)
    assert not to_plain(tensor, "batch")[0].is_inference()
