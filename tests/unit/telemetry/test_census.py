import json
import logging
from pathlib import Path

import pytest

from mp_plugin.telemetry.census import NOT_BY_ITSELF, NOT_RUN, Census, computes, merged, write_census


def census(counts=None, on_parameters=None, lent=()) -> Census:
    return Census(counts=counts or {}, on_parameters=on_parameters or {}, lent=frozenset(lent))


@pytest.mark.parametrize(
    ("operators", "expected"),
    [
        ({"aten.mm.default": {"fp16": 1}}, "fp16"),
        ({"aten.mm.default": {"fp32": 9, "fp16": 1}}, "fp16"),
        ({"aten.mm.default": {"bf16": 1}, "aten.add.Tensor": {"fp16": 5}}, "bf16"),
        ({"aten.mm.default": {"fp64": 1}, "aten.add.Tensor": {"fp32": 5}}, "fp32"),
        ({"aten.mm.default": {"fp64": 1}}, "fp64"),
        ({"aten._scaled_mm.default": {"float8_e4m3fn": 1, "bf16": 3}}, "float8_e4m3fn"),
        # Casts, copies and numbers made of nothing decide nothing.
        ({"aten._to_copy.default": {"fp16": 3}, "aten.mm.default": {"fp32": 1}}, "fp32"),
        ({"aten.copy_.default": {"fp16": 1}, "aten.mm.default": {"fp32": 1}}, "fp32"),
        ({"aten.zeros_like.default": {"bf16": 1}, "aten.mm.default": {"fp32": 1}}, "fp32"),
        ({"aten.empty.memory_format": {"fp16": 1}, "aten.bernoulli_.float": {"fp16": 1}}, NOT_RUN),
        ({"c10d.allgather_.default": {"fp16": 1}, "aten.mm.default": {"fp32": 1}}, "fp32"),
        ({}, NOT_RUN),
    ],
    ids=str,
)
def test_the_least_precise_operator_that_computes_decides(operators, expected) -> None:
    assert census({"layer": operators}).format_of("layer") == expected


def test_operators_on_parameters_decide_where_there_are_any() -> None:
    # Attention in fp16 whose softmax and norms ran in other formats.
    counts = {"attn": {"aten.addmm.default": {"fp32": 2}, "aten.bmm.default": {"fp16": 1}}}
    assert census(counts).format_of("attn") == "fp16"
    assert census(counts, {"attn": {"fp32": 2}}).format_of("attn") == "fp32"


def test_a_layer_whose_parameters_another_one_used() -> None:
    counts = {"attn": {"aten.addmm.default": {"fp16": 2}}}
    found = census(counts, {"attn": {"fp16": 2}}, lent=["attn.out_proj", "attn"])
    assert found.format_of("attn.out_proj") == NOT_BY_ITSELF
    assert found.format_of("attn") == "fp16"
    assert found.format_of("unused") == NOT_RUN


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        ("aten.mm.default", True),
        ("aten.embedding.default", True),
        ("aten.index.Tensor", True),
        ("mylib.fused_op.default", True),
        ("flex_attention", True),
        ("aten._to_copy.default", False),
        ("aten.cat.default", False),
        ("aten.new_empty_strided.default", False),
        ("_c10d_functional.all_reduce.default", False),
    ],
)
def test_what_computes(operator, expected) -> None:
    assert computes(operator) is expected


def test_ranks_are_added_up() -> None:
    one = census({"a": {"aten.mm.default": {"fp16": 1}}}, {"a": {"fp16": 1}}, lent=["b"])
    other = census(
        {"a": {"aten.mm.default": {"fp16": 2, "fp32": 1}}, "c": {"aten.add.Tensor": {"fp32": 1}}},
        {"a": {"fp16": 2}, "c": {"fp32": 1}},
    )
    assert merged([one, other]) == census(
        {"a": {"aten.mm.default": {"fp16": 3, "fp32": 1}}, "c": {"aten.add.Tensor": {"fp32": 1}}},
        {"a": {"fp16": 3}, "c": {"fp32": 1}},
        lent=["b"],
    )
    assert merged([one]) == one


def full() -> Census:
    counts = {"attn": {"aten.addmm.default": {"fp16": 2}}, "": {"aten.sum.default": {"fp32": 1}}}
    return census(counts, {"attn": {"fp16": 2}}, lent=["attn.out_proj"])


def test_it_is_written_beside_the_incidents(tmp_path: Path) -> None:
    write_census(full(), tmp_path / "run")
    write_census(full(), tmp_path / "run")  # once more into the same directory
    (file,) = (tmp_path / "run" / "telemetry").iterdir()
    assert file.name == "census.json"
    assert json.loads(file.read_text()) == {
        "version": 1,
        "layers": {
            "attn": {"format": "fp16", "operators": {"aten.addmm.default": {"fp16": 2}}},
            "": {"format": "fp32", "operators": {"aten.sum.default": {"fp32": 1}}},
        },
        "not run by themselves": ["attn.out_proj"],
    }


def test_a_directory_that_cannot_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "telemetry").write_text("a file where the directory should be")
    with caplog.at_level(logging.WARNING):
        write_census(full(), tmp_path)
    (record,) = caplog.records
    assert "census.json cannot be written (" in record.getMessage()
