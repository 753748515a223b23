import pytest
import torch

from mp_plugin.numerics import launch_tables
from mp_plugin.numerics.launch_tables import MAX_CHUNKS, Layout, tables_of

BLOCK, MIN_CHUNK = 8, 32


def layout_of(*numels: int) -> Layout:
    return launch_tables._layout(numels, torch.device("cpu"), BLOCK, MIN_CHUNK)


@pytest.mark.parametrize(
    "numels", [(1,), (32,), (33,), (1, 31, 32, 33, 64, 65, 1000), (10**9, 1, 2**33), (1,) * 10_000]
)
def test_every_number_is_in_one_chunk(numels: tuple[int, ...]) -> None:
    layout = layout_of(*numels)
    assert layout.numels.tolist() == list(numels)
    *segments, of_all = layout.segments.tolist()
    expected_row = 0
    for tensor, (numel, (begin, end)) in enumerate(zip(numels, segments, strict=True)):
        assert begin == expected_row
        assert (end - begin - 1) * layout.chunk_numel < numel <= (end - begin) * layout.chunk_numel
        assert layout.tensor_of_row[begin:end].tolist() == [tensor] * (end - begin)
        expected_row = end
    assert of_all == [0, expected_row]
    assert layout.tensor_of_row.numel() == expected_row
    assert expected_row <= MAX_CHUNKS + len(numels)
    assert layout.chunk_numel % BLOCK == 0


GPT2_NUMELS = [
    50257 * 768,
    1024 * 768,
    *([768, 768, 1769472, 2304, 589824, 768, 768, 768, 2359296, 3072, 2359296, 768] * 12),
]


@pytest.mark.parametrize(
    "numels", [GPT2_NUMELS, [64] * 10_000, [10**7] * 100], ids=["GPT-2", "10,000 tiny", "100 large"]
)
def test_less_than_a_kilobyte_per_tensor(numels: list[int]) -> None:
    layout = launch_tables._layout(numels, torch.device("cpu"), 4096, 16384)
    tables = sum(table.nbytes for table in layout[:3]) + 8 * len(numels)
    rows = (2 + 3) * 4 * layout.tensor_of_row.numel()
    results = 3 * (4 + 8) * (len(numels) + 1)
    assert tables + rows + results < 1000 * len(numels)


def test_tables_are_kept_while_tensors_stay_where_they_are() -> None:
    tensors = [torch.ones(5), torch.ones(70)]
    first = tables_of(tensors, BLOCK, MIN_CHUNK)
    again = tables_of([tensor.view(-1) for tensor in tensors], BLOCK, MIN_CHUNK)
    assert first is not None
    assert again is not None
    assert again.addresses is first.addresses
    assert again.layout is first.layout
    assert first.addresses.tolist() == [tensor.data_ptr() for tensor in tensors]
    moved = tables_of([tensors[0].clone(), tensors[1]], BLOCK, MIN_CHUNK)
    assert moved is not None
    assert moved.layout is first.layout
    assert moved.addresses.tolist() != first.addresses.tolist()


def test_what_is_kept_is_bounded() -> None:
    tensors = [torch.ones(index + 1) for index in range(50)]
    for tensor in tensors:
        assert tables_of([tensor], BLOCK, MIN_CHUNK) is not None
    assert len(launch_tables._layouts) <= 16
    assert len(launch_tables._addresses) <= 16
