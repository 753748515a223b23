import pytest
import torch

from mp_plugin.formats import FORMATS
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.sample_rows import SampleRows, merged
from mp_plugin.telemetry.stats_row import stats_of, stats_row

KIND = TensorKind.activation


def test_tensors_of_one_layer_come_out_as_one() -> None:
    torch.manual_seed(0)
    tensors = [torch.randn(7), torch.randn(3, 5).bfloat16(), torch.tensor([float("nan"), 0.0])]
    rows = SampleRows()
    for values in tensors:
        rows.add("head", KIND, values.dtype, stats_row(values, compute=FORMATS["fp16"], histogram=True))
    rows.add("tail", KIND, torch.float16, stats_row(torch.zeros(2), compute=FORMATS["fp16"], histogram=True))
    rows.read_back()
    found = rows.found()
    assert list(found) == [("head", KIND), ("tail", KIND)]
    dtype, stats = found["head", KIND]
    together = torch.cat([each.float().flatten() for each in tensors])
    expected = stats_of(stats_row(together, compute=FORMATS["fp16"], histogram=True).tolist())
    assert dtype == "bf16"  # the least precise of the two
    assert stats.sum_of_squares == pytest.approx(expected.sum_of_squares)
    assert (stats.numel, stats.nans, stats.zeros) == (24, 1, 1)
    assert (stats.amax, stats.smallest, stats.exponents) == (expected.amax, expected.smallest, expected.exponents)


def test_nothing_is_found_where_nothing_was_added() -> None:
    rows = SampleRows()
    rows.read_back()
    assert rows.found() == {}


def test_a_format_that_nobody_knows_goes_by_the_name_that_torch_has_for_it() -> None:
    rows, values = SampleRows(), torch.ones(2).to(torch.float8_e4m3fn)
    rows.add("head", KIND, values.dtype, stats_row(values, compute=FORMATS["e4m3"], histogram=False))
    rows.read_back()
    assert rows.found()["head", KIND][0] == "float8_e4m3fn"


def test_what_ranks_found_is_united() -> None:
    def found(*layers: str) -> dict[tuple[str, TensorKind], tuple[str, object]]:
        row = stats_row(torch.ones(2), compute=FORMATS["fp16"], histogram=False)
        return {(layer, KIND): ("fp32", stats_of(row.tolist())) for layer in layers}

    together = merged([found("a", "b"), found("b", "c")])  # type: ignore[list-item]
    assert {layer: stats.numel for (layer, _), (_, stats) in together.items()} == {"a": 2, "b": 4, "c": 2}
