"""The benchmark of step times runs from end to end; what it measures is in benchmarks/results."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/step_time.py", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_a_quick_look_compares_every_setting_and_writes_nothing_down():
    before = sorted((path, path.stat().st_mtime_ns) for path in RESULTS.iterdir())
    done = run("--quick", "--only", "GPT")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("GPT, tiny")]
    assert [("bf16" in row, "foreach" in row, "stock foreach" in row) for row in rows] == [
        (is_bf16, is_foreach or clips, clips and not is_foreach)
        for is_bf16 in (False, True)
        for is_foreach in (False, True)
        for clips in (False, True)
    ]
    assert sorted((path, path.stat().st_mtime_ns) for path in RESULTS.iterdir()) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_it_says_so_in_one_sentence():
    done = run("--device", "cuda")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("--device cuda needs a GPU")
    assert len(done.stderr.splitlines()) == 1
