import math

import pytest

from mp_plugin.formats import FORMATS
from mp_plugin.telemetry.layer_sample import LayerSample, TensorKind
from mp_plugin.telemetry.stats_files import SCHEMA, SCHEMA_VERSION, VERSION_KEY, rows_of
from mp_plugin.telemetry.tensor_stats import TensorStats

RUN = "2026-02-03T04:05:06.789+00:00"


def sample(step: int = 7, layer: str = "net.0", **stats: object) -> LayerSample:
    values = {
        "numel": 20,
        "zeros": 1,
        "nans": 2,
        "infs": 3,
        "amax": 3.0,
        "smallest": 2.0**-30,
        "sum_of_squares": 60.0,
        "flushed": 4,
        "subnormal": 5,
        "saturated": 6,
        "exponents": {-30: 4, -27: 9, 2: 1},
    }
    return LayerSample(
        step=step,
        layer=layer,
        kind=TensorKind.activation_gradient,
        dtype="fp32",
        compute_dtype="fp16",
        loss_scale=2.0**10,
        stats=TensorStats(**{**values, **stats}),  # type: ignore[arg-type]
    )


def test_a_sample_is_a_row_with_a_value_for_each_column() -> None:
    (row,) = rows_of([sample()], RUN).to_pylist()
    assert row == {
        "run": RUN,
        "step": 7,
        "layer": "net.0",
        "kind": "activation_gradient",
        "dtype": "fp32",
        "compute_dtype": "fp16",
        "loss_scale": 1024.0,
        "numel": 20,
        "zeros": 1,
        "nans": 2,
        "infs": 3,
        "flushed": 4,
        "subnormal": 5,
        "saturated": 6,
        "amax": 3.0,
        "rms": 2.0,  # 15 of the 20 are finite
        "smallest": 2.0**-30,
        "headroom_bits": pytest.approx(math.log2(FORMATS["fp16"].max / (3 * 1024))),
        "lowest_exponent": -30,
        "exponent_counts": [4, 0, 0, 9, *[0] * 28, 1],
    }
    assert list(row) == SCHEMA.names


def test_a_sample_without_histogram_or_values_has_nulls() -> None:
    empty = sample(numel=0, zeros=0, nans=0, infs=0, amax=0.0, smallest=None, sum_of_squares=0.0, exponents={})
    (row,) = rows_of([empty], RUN).to_pylist()
    assert [row[name] for name in ("smallest", "headroom_bits", "lowest_exponent", "exponent_counts")] == [None] * 4
    assert (row["amax"], row["rms"]) == (0.0, 0.0)


def test_rows_keep_the_order_and_the_schema_its_version() -> None:
    table = rows_of([sample(layer="b"), sample(layer="a")], RUN)
    assert table["layer"].to_pylist() == ["b", "a"]
    assert table.schema.equals(SCHEMA, check_metadata=True)
    assert table.schema.metadata == {VERSION_KEY: str(SCHEMA_VERSION).encode()}
    assert rows_of([], RUN).num_rows == 0


def test_the_largest_numbers_fit() -> None:
    huge = sample(numel=2**62, amax=1.7e308, exponents={-149: 2**40, 128: 2**41})
    (row,) = rows_of([huge], RUN).to_pylist()
    assert (row["numel"], row["amax"], row["exponent_counts"][0]) == (2**62, 1.7e308, 2**40)
    assert len(row["exponent_counts"]) == 278
