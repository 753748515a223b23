"""Helpers of benchmarks import one another as the scripts do, from the folder of the scripts."""

from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(autouse=True)
def _import_as_scripts_do(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
