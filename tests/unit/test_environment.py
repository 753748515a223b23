import os
import platform
from importlib.metadata import version

import torch

from mp_plugin.environment import environment, versions


def test_versions_are_those_that_are_installed() -> None:
    found = versions()
    assert found["python"] == platform.python_version()
    assert found["torch"] == version("torch")
    assert found["mp-plugin"] == version("mp-plugin")


def test_a_package_that_is_not_there_is_told(monkeypatch) -> None:
    monkeypatch.setattr("mp_plugin.environment.PACKAGES", ("no-such-package",))
    assert versions()["no-such-package"] == "not installed"


def test_the_environment_says_where_it_ran() -> None:
    found = environment(torch.device("cpu"), ranks=4, strategy="DDPStrategy")
    assert (found["ranks"], found["strategy"]) == ("4", "DDPStrategy")
    assert found["device"].startswith("cpu")
    assert found["CPU cores"] == str(os.cpu_count())
    assert versions().items() <= found.items()
