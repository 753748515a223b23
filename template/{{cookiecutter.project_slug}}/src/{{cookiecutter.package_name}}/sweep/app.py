"""A worker of a sweep, from its settings to its results."""

import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from {{cookiecutter.package_name}}.checks import require_positive, require_seed
from {{cookiecutter.package_name}}.sweep.check import check_composes
from {{cookiecutter.package_name}}.sweep.command import train_script
from {{cookiecutter.package_name}}.sweep.results import write_results
from {{cookiecutter.package_name}}.sweep.space import Space, read_space
from {{cookiecutter.package_name}}.sweep.study import (
    alone,
    check_identity,
    check_names,
    make_identity,
    make_pruner,
    make_sampler,
    open_study,
    quieten,
)
from {{cookiecutter.package_name}}.sweep.worker import Plan, Worker

WHOLE_NUMBERS = ("n_trials", "n_jobs", "max_failures_in_a_row", "heartbeat_seconds")


def sweep(cfg: DictConfig) -> None:
    """Run trials of a study and write its results.

    Args:
        cfg: composed from conf/sweep.yaml.

    Raises:
        ValueError: in one sentence, if a setting is not acceptable or the sweep cannot go on.
        SystemExit: with status 130 after Ctrl-C or SIGTERM.
    """
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise ValueError("sweep.py is a sweep by itself: leave -m away, or use `python train.py -m` for a grid.")
    quieten()
    settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    space = read_settings(settings)
    train, metric, direction = list(settings["train"]), settings["metric"], settings["direction"]
    train_script()
    check_composes(train, space, metric)
    folder = Path(settings["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    pruner = make_pruner(settings["pruner"], settings["pruner_options"])
    with alone(folder):
        study = open_study(
            folder, settings["name"], settings["storage"], settings["heartbeat_seconds"], direction, pruner
        )
        check_identity(study, make_identity(space, train, metric, direction))
        if not study.get_trials(deepcopy=False) and (folder / "trials").exists():
            raise ValueError(f"{folder / 'trials'} holds the trials of a study that is gone: choose another name.")
    plan = Plan(
        folder=folder,
        space=space,
        train=train,
        metric=metric,
        direction=direction,
        n_trials=settings["n_trials"],
        n_jobs=settings["n_jobs"],
        max_seconds=None if settings["timeout_minutes"] is None else 60 * settings["timeout_minutes"],
        max_failures=settings["max_failures_in_a_row"],
        heartbeat_seconds=settings["heartbeat_seconds"],
        sampler=lambda n: make_sampler(settings["sampler"], settings["sampler_options"], settings["seed"], n),
    )
    console = Console(soft_wrap=True, highlight=False)
    worker = Worker(study, plan, lambda line: console.print(line, markup=False))
    # What ends a job on a cluster or a container is to leave the study in order, as Ctrl-C does.
    before = {number: signal.signal(number, worker.stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        worker.run()
    except KeyboardInterrupt:
        console.print(f"Stopped; `python sweep.py name={study.study_name}` with the same settings goes on.")
        raise SystemExit(130) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        write_results(study, folder, metric, train, groups_of(space, train))


def read_settings(settings: Mapping[str, Any]) -> Space:
    """Check all settings of a sweep that can be checked by themselves, and return the search space.

    Raises:
        ValueError: names the first that is not acceptable.
    """
    if not re.fullmatch(r"[\w.-]+", str(settings["name"])) or settings["name"] in (".", ".."):
        raise ValueError(f"name={settings['name']} is no name of a folder: use letters, digits, '-', '_' and '.'.")
    require_seed(seed=settings["seed"])
    for name in WHOLE_NUMBERS:
        require_positive(**{name: settings[name]})
        if not isinstance(settings[name], int):
            raise ValueError(f"{name}={settings[name]} is not a whole number.")
    if settings["timeout_minutes"] is not None:
        require_positive(timeout_minutes=settings["timeout_minutes"])
    check_names(settings["direction"], settings["sampler"], settings["pruner"])
    make_sampler(settings["sampler"], settings["sampler_options"], settings["seed"], 0)
    if not isinstance(settings.get("train"), list) or not isinstance(settings.get("space"), dict):
        raise ValueError("train must be a list of settings and space a mapping: see conf/search/.")
    return read_space(settings["space"])


def groups_of(space: Space, train: list[str]) -> dict[str, bool]:
    """Which of the keys in use are config groups."""
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    keys = [*space, *(setting.split("=", 1)[0].lstrip("+~") for setting in train)]
    return {key: bool(hydra.config_loader.get_group_options(key)) for key in keys}
