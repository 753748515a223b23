"""The page of numbers shows the results that are there, says which are missing, and holds no other figure."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PAGE = ROOT / "docs" / "performance.md"
# Names with digits in them, which are no measurements.
OTHERS = ("grad_stats, counting flushed", "check and unscale", "norm 2", "norm inf")
NAMES = re.compile(r"`[^`]*`|fp16|bf16|fp32|FP32|TF32|GPT-2|ResNet-50|ViT-B/16", re.DOTALL)


@pytest.fixture
def page():
    import performance_page

    return performance_page


@pytest.fixture
def kernel_result():
    """A result as kernel_bandwidth.py writes it on a GPU."""
    spread = {"median": 0.9, "lower_quartile": 0.88, "upper_quartile": 0.93}
    row = {
        "shapes": "GPT-2 small",
        "dtype": "fp32",
        "bytes": 497_759_232,
        "tensors": 148,
        "seconds": {"grad_stats": [1e-4, 2e-4, 3e-4]},
        "share_of_copy": {"grad_stats": spread},
        "time_beside_grad_stats": dict.fromkeys(OTHERS, spread),
        "launches": {"grad_stats": {"kernels": 2, "copies": 1}},
    }
    versions = {"torch": "2.11.0", "lightning": "2.6.0"}
    around = {"command": "python x.py", "device": "A GPU", "processor": "A CPU", "cores": 2, "versions": versions}
    return {**around, "rows": [row], "left_out": [{"shapes": "GPT-2 XL", "dtype": "fp32"}]}


def test_the_page_shows_the_results_that_are_there(page):
    text = PAGE.read_text()
    assert page.render(text, page.load()) == text, "run: python benchmarks/performance_page.py"


def test_every_table_has_its_place_on_the_page(page):
    assert sorted(page.MARKED.findall(PAGE.read_text())) == sorted(["bytes", "goals", *page.TABLES])


def test_no_figure_stands_outside_the_tables(page):
    by_hand = NAMES.sub("", page.MARKED.sub("", PAGE.read_text()))
    assert re.findall(r".*\d.*", by_hand) == []


@pytest.mark.parametrize("name", ["step_time", "kernel_bandwidth", "growth_parameters", "growth_tensors", "precisions"])
def test_what_was_not_measured_is_said_to_be_missing(page, name):
    text = page.render(f"<!-- table: {name} -->\n<!-- end -->", {})
    assert "On a CPU: not measured yet: `make bench`." in text
    assert "On a GPU: not measured yet: `make bench-gpu`." in text


def test_the_bytes_of_ranks_do_not_wait_for_a_gpu(page):
    text = page.render("<!-- table: growth_ranks -->\n<!-- end -->", {})
    assert "On a CPU: not measured yet: `make bench`." in text
    assert "GPU" not in text


def test_goals_that_were_not_measured_are_neither_met_nor_missed(page):
    lines = page.render("<!-- table: goals -->\n<!-- end -->", {}).splitlines()
    goals = [line for line in lines if "not measured yet" in line]
    assert len(goals) == 9
    assert all(line.rstrip().endswith("| -   |") for line in goals)
    assert "yes" not in "".join(lines)


def test_a_result_stands_below_its_command_and_its_device(page, kernel_result):
    text = page.render("<!-- table: kernel_bandwidth -->\n<!-- end -->", {"kernel_bandwidth": {"a-gpu": kernel_result}})
    assert "`python x.py` on A GPU, with torch 2.11.0, lightning 2.6.0:" in text
    assert re.search(r"\| GPT-2 small +\| fp32 +\| 497.8 +\| 148 +\| 0.200 +\| 90 % \(88 to 93\)", text)
    assert "2 + 1" in text
    assert "Left out for want of memory: GPT-2 XL in fp32." in text
    assert "On a CPU: not measured yet" in text
    assert "On a GPU: not measured yet" not in text


def test_rendering_twice_changes_nothing(page, kernel_result):
    results = {"kernel_bandwidth": {"cpu": kernel_result}}
    once = page.render(PAGE.read_text(), results)
    assert page.render(once, results) == once


def test_a_marker_that_names_no_table_is_refused(page):
    with pytest.raises(ValueError, match="There is no table 'speed'; accepted: bytes, goals, step_time"):
        page.render("<!-- table: speed -->\n<!-- end -->", {})


def test_results_are_read_by_benchmark_and_device(page, tmp_path):
    for name in ("growth.cpu", "growth.nvidia-h100", "advisor.cpu"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"name": name}))
    loaded = page.load(tmp_path)
    assert loaded == {"growth": {"cpu": {"name": "growth.cpu"}, "nvidia-h100": {"name": "growth.nvidia-h100"}}}
