from collections import UserDict
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
import torch

from mp_plugin.batch import BatchStart


@dataclass
class Pair:
    inputs: Any
    labels: Any


def test_what_a_step_takes_out_is_put_back() -> None:
    inputs, labels = torch.ones(2), torch.zeros(2)
    inner: list[Any] = [inputs, {"labels": labels}]
    batch = {"pair": Pair(inputs, labels), "rest": (inner, UserDict(a=1))}
    start = BatchStart(batch)
    del batch["pair"].labels  # type: ignore[attr-defined]
    inner[1].pop("labels")
    inner[1]["added"] = 1
    inner.append("more")
    batch["rest"][1]["a"] = 2  # type: ignore[index]
    batch.clear()
    assert start.restore()
    assert batch["pair"] == Pair(inputs, labels)
    assert batch["rest"] == (inner, {"a": 1})
    assert inner == [inputs, {"labels": labels}]


def test_a_write_in_place_is_noticed_and_a_read_is_not() -> None:
    batch = [torch.ones(2), {"deep": (torch.ones(2),)}]
    start = BatchStart(batch)
    batch[0] + 1  # type: ignore[operator]
    assert start.restore()
    batch[1]["deep"][0].mul_(2)  # type: ignore[call-overload, index]
    assert not start.restore()


@pytest.mark.parametrize("batch", [None, 3, "text", torch.ones(1), MappingProxyType({"a": 1}), {1, 2}], ids=str)
def test_any_batch_will_do(batch: Any) -> None:
    assert BatchStart(batch).restore()


def test_tensors_of_inference_mode_count_no_versions() -> None:
    with torch.inference_mode():
        batch = [torch.ones(1)]
    assert BatchStart(batch).restore()
