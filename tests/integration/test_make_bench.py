"""`make bench-gpu` runs on what the machine has, and one benchmark that fails does not keep the others from running."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

RECORD = """#!/bin/sh
echo "PYTHONPATH=$PYTHONPATH $*" >> calls
case "$*" in *"{failing}"*) exit 3 ;; esac
"""


def make(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    command = ["make", "bench-gpu", *arguments]
    # As typed: within `make test` it would know of the make above it.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False)


def recorded(folder: Path, *, failing: str) -> tuple[list[str], "subprocess.CompletedProcess[str]"]:
    """What a machine is asked to run, where the interpreter fails at some of it; and how that ends."""
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "python").write_text(RECORD.format(failing=failing))
    (folder / "python").chmod(0o755)
    done = make(folder, "PYTHON=./python", "GPU_BENCHMARKS=one two three")
    return [line.removeprefix("PYTHONPATH=") for line in (folder / "calls").read_text().splitlines()], done


ALL = [f". benchmarks/{name}.py --device cuda" for name in ("one", "two", "three")]
ALL.append(". benchmarks/performance_page.py")


def test_all_benchmarks_run_where_there_is_a_gpu(tmp_path):
    (first, *others), done = recorded(tmp_path, failing="nothing")
    assert first.endswith("benchmarks/helpers/devices.py --device cuda")
    assert others == ALL
    assert done.returncode == 0, done.stderr


def test_one_that_fails_keeps_no_other_from_running(tmp_path):
    calls, done = recorded(tmp_path, failing="two.py")
    assert calls[1:] == ALL
    assert done.returncode != 0
    assert "These failed: two." in done.stderr


def test_the_tests_run_first_and_keep_no_benchmark_from_running(tmp_path):
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    calls, done = recorded(tmp_path, failing="-m pytest")
    assert "-c import pytest" in calls[1]
    assert calls[2].endswith("tests/gpu")
    assert calls[3:] == ALL
    assert done.returncode != 0
    assert "These failed: tests/gpu." in done.stderr


def test_without_pytest_the_tests_are_left_out(tmp_path):
    (tmp_path / "tests" / "gpu").mkdir(parents=True)
    calls, done = recorded(tmp_path, failing="import pytest")
    assert calls[2:] == ALL
    assert done.returncode == 0, done.stderr


def test_without_a_device_nothing_runs(tmp_path):
    calls, done = recorded(tmp_path, failing="devices.py")
    assert len(calls) == 1
    assert done.returncode != 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence_and_writes_nothing():
    before = sorted((ROOT / "benchmarks" / "results").iterdir())
    done = make(ROOT, f"PYTHON={sys.executable}")
    assert done.returncode != 0
    told, from_make = done.stderr.splitlines()
    assert told.startswith("--device cuda needs a GPU")
    assert from_make.startswith("make: ***")
    assert sorted((ROOT / "benchmarks" / "results").iterdir()) == before


def test_every_benchmark_belongs_to_a_target():
    names = set()
    for line in (ROOT / "Makefile").read_text().splitlines():
        _, is_list, listed = line.partition("BENCHMARKS = ")
        names |= {each for each in listed.split() if is_list and not each.startswith("$")}
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert names == scripts - {"performance_page"}  # which writes a page of their results
