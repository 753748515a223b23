"""What is written beside the figures of a benchmark, and how they are summed up."""

import json
from importlib import import_module

import pytest

import mp_plugin


@pytest.fixture
def harness():
    return import_module("helpers.harness")


def test_everybody_is_first_in_turn_and_nobody_is_left_out(harness):
    rounds = list(harness.turns(["a", "b", "c"], 4))
    assert rounds == [(0, ["a", "b", "c"]), (1, ["b", "c", "a"]), (2, ["c", "a", "b"]), (3, ["a", "b", "c"])]


def test_a_spread_is_the_median_and_the_quartiles(harness):
    values = [7.0, 1.0, 3.0, 2.0, 6.0, 5.0, 4.0]
    assert harness.spread(values) == {"median": 4.0, "lower_quartile": 2.0, "upper_quartile": 6.0}
    assert harness.show_spread(values, digits=1) == "4.0 (2.0 to 6.0)"
    assert harness.show_spread([1.5], digits=1) == "1.5 (1.5 to 1.5)"


def test_the_version_comes_from_the_source_where_nothing_is_installed(harness):
    assert harness.versions("torch", "no-such-package")["no-such-package"] is None
    assert harness.circumstances()["versions"]["mp-plugin"] == mp_plugin.__version__


def test_a_result_is_named_after_its_device(harness, tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "FOLDER", tmp_path)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "NVIDIA H200 (SXM)")
    for device in ("cpu", "cuda"):
        harness.write("question", {"device": device}, device)
    files = {path.name: json.loads(path.read_text())["device"] for path in (tmp_path / "results").iterdir()}
    assert files == {"question.cpu.json": "cpu", "question.nvidia-h200-sxm.json": "cuda"}


def test_columns_line_up(harness, capsys):
    harness.print_table("Title", ("model", "ratio"), [("GPT", "1.00"), ("ResNet-50", "0.97")])
    title, heading, _, *rows, blank, end = capsys.readouterr().out.split("\n")
    assert (title, blank, end) == ("Title", "", "")
    assert [heading.find("ratio"), rows[0].find("1.00"), rows[1].find("0.97")] == [11, 11, 11]
