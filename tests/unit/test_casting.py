from typing import Any

import pytest
import torch

from mp_plugin.casting import cast_floating, default_dtype


def test_casts_floating_point_wherever_it_is_nested() -> None:
    data: dict[str, Any] = {
        "x": [torch.ones(1)],
        "y": (torch.ones(1, dtype=torch.int64), torch.ones(1).cfloat(), "text"),
    }
    cast = cast_floating(data, torch.bfloat16)
    assert cast["x"][0].dtype is torch.bfloat16
    assert [value.dtype for value in cast["y"][:2]] == [torch.int64, torch.complex64]
    assert cast["y"][2] == "text"
    assert data["x"][0].dtype is torch.float32


def test_default_dtype_comes_back_after_an_error() -> None:
    def fail() -> None:
        with default_dtype(torch.float16):
            assert torch.zeros(1).dtype is torch.float16
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.get_default_dtype() is torch.float32
