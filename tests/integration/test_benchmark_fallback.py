"""The benchmark of FP32 by proof runs from end to end; what it measures is in benchmarks/results."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/fallback.py", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_a_quick_look_proves_the_culprits_and_writes_nothing_down():
    before = sorted((path, path.stat().st_mtime_ns) for path in (ROOT / "benchmarks" / "results").iterdir())
    done = run("--quick", "--only", "mlp: backward")
    assert done.returncode == 0, done.stderr
    (trained, offline, *_) = [line.split("│") for line in done.stdout.splitlines() if "mlp: backward" in line]
    assert [each.strip() for each in trained[2:7]] == ["10", "net.hidden.5", "1 of 1", "2 (14)", "0 of 1"]
    assert [each.strip() for each in offline[2:6]] == ["10", "1", "0 -", "0 -"]
    none, empty, auto = (re.findall(rf"\b{kind} (\d+) ", done.stdout) for kind in ("none", "empty", "auto"))
    assert len(none) == 2  # one for each precision
    assert none == empty == auto
    assert before == sorted((path, path.stat().st_mtime_ns) for path in (ROOT / "benchmarks" / "results").iterdir())


def test_a_model_that_is_not_there_is_refused_before_anything_is_measured():
    done = run("--only", "nothing")
    assert done.returncode == 2
    assert "no model has 'nothing' in its name; there are ['mlp: seen later'" in done.stderr
