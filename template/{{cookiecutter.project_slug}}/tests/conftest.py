"""What the tests share: composed configs, made small."""

import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"

#: Overrides that make a run of an experiment on embedded data take about a second.
SMALL = {
    "digits": ["+trainer.limit_train_batches=4", "model.width=32"],
    "lm": ["+trainer.limit_train_batches=4", "model.width=32", "model.num_layers=1", "data.block_size=32"],
    "topics": ["+trainer.limit_train_batches=4", "data.num_buckets=1024"],
}
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml") if path.stem in SMALL)
QUICK = [
    "trainer.max_epochs=2",
    "+trainer.limit_val_batches=1",
    "+trainer.limit_test_batches=2",
    "trainer.log_every_n_steps=1",
]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test that takes an `experiment` once for each that the project has."""
    if "experiment" in metafunc.fixturenames:
        metafunc.parametrize("experiment", EXPERIMENTS)


@pytest.fixture(scope="session", autouse=True)
def _conf() -> Iterator[None]:
    """Open the config directory for `compose`."""
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        yield


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., DictConfig]:
    """Compose a script's config, with its files in a new directory below `tmp_path`."""

    def make(script: str, *overrides: str, name: str = "run") -> DictConfig:
        return compose(script, [f"paths.run_dir='{tmp_path / name}'", *overrides])

    return make


@pytest.fixture
def small(
    config: Callable[..., DictConfig], settings_of_small: Callable[[str], list[str]]
) -> Callable[..., DictConfig]:
    """Compose the config of a small, silent run of an experiment."""

    def make(experiment: str, *overrides: str, script: str = "train", name: str = "run") -> DictConfig:
        return config(script, *settings_of_small(experiment), *overrides, name=name)

    return make


@pytest.fixture
def settings_of_small() -> Callable[[str], list[str]]:
    """The overrides that make a run of an experiment small and silent."""
    quiet = ["logger=csv", "callbacks.progress_bar=null", "+trainer.enable_progress_bar=false"]
    return lambda experiment: [f"experiment={experiment}", *SMALL[experiment], *QUICK, *quiet]


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Run a script of the project's root in this process, as if started from an empty directory."""
    opened = GlobalHydra.instance().hydra
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.chdir(tmp_path)

    def run(script: str, *overrides: str) -> None:
        GlobalHydra.instance().clear()
        quiet = ["hydra/job_logging=none", "hydra/hydra_logging=none"]
        monkeypatch.setattr(sys, "argv", [script, *quiet, *overrides])
        runpy.run_path(str(ROOT / script), run_name="__main__")

    yield run
    GlobalHydra.instance().hydra = opened
