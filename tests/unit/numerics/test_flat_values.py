import pytest
import torch
from torch import Tensor

from mp_plugin.numerics.flat_values import flat_values

NUMBERS = torch.arange(24.0)
SHARED = {
    "contiguous": NUMBERS.view(2, 3, 4),
    "transposed": NUMBERS.view(4, 6).t(),
    "permuted": NUMBERS.view(2, 3, 4).permute(2, 0, 1),
    "channels last": NUMBERS.view(1, 4, 3, 2).to(memory_format=torch.channels_last),
    "a dimension of one": NUMBERS.view(4, 6).t()[:, None],
    "a part": NUMBERS.view(4, 6)[1:3],
    "a scalar": NUMBERS[3],
    "empty": NUMBERS[:0],
}
COPIED = {
    "with gaps": NUMBERS.view(4, 6)[:, ::2],
    "expanded": NUMBERS[:3].expand(4, 3),
    "expanded scalar": NUMBERS[3].expand(5),
    "overlapping": NUMBERS.as_strided((3, 4), (2, 1)),
}


@pytest.mark.parametrize("tensor", SHARED.values(), ids=SHARED.keys())
def test_memory_without_gaps_is_read_as_it_lies(tensor: Tensor) -> None:
    flat = flat_values(tensor)
    assert flat.is_contiguous()
    assert flat.data_ptr() == tensor.data_ptr()
    assert sorted(flat.tolist()) == sorted(tensor.flatten().tolist())


@pytest.mark.parametrize("tensor", COPIED.values(), ids=COPIED.keys())
def test_each_place_counts_once(tensor: Tensor) -> None:
    flat = flat_values(tensor)
    assert flat.is_contiguous()
    assert flat.tolist() == tensor.flatten().tolist()
