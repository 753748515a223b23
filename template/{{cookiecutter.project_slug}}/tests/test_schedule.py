"""The learning rate over a run."""

import pytest

from {{cookiecutter.package_name}}.tasks.base import lr_factor


def test_rises_then_falls() -> None:
    factors = [lr_factor(step, warmup=10, total=100) for step in range(101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == pytest.approx(1.0)
    assert factors[55] == pytest.approx(0.5)
    assert factors[100] == pytest.approx(0.0)
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_no_warmup_and_beyond_the_end() -> None:
    assert lr_factor(0, warmup=0, total=1) == 1.0
    assert lr_factor(200, warmup=10, total=100) == pytest.approx(0.0)
