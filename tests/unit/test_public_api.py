import subprocess
import sys

import pytest

import mp_plugin


def test_the_public_names_are_the_agreed_list() -> None:
    assert mp_plugin.__all__ == [
        "AdaptivePrecision",
        "CostMeter",
        "Fallback",
        "LossScaling",
        "Telemetry",
        "__version__",
    ]
    assert dir(mp_plugin) == mp_plugin.__all__
    for name in mp_plugin.__all__:
        assert getattr(mp_plugin, name) is not None


def test_importing_the_package_imports_neither_torch_nor_hydra() -> None:
    code = "import sys, mp_plugin; print(sorted({'torch', 'lightning', 'hydra', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_another_name_is_refused_with_the_list() -> None:
    with pytest.raises(
        AttributeError, match="has no attribute 'Adaptive'; it has: AdaptivePrecision, CostMeter, Fallback"
    ):
        _ = mp_plugin.Adaptive
