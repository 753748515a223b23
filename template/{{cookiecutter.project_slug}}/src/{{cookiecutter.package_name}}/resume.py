"""Going on where another run, or this one before it was killed, left off."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, TensorBoardLogger
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from {{cookiecutter.package_name}}.checkpoint import (
    check_epochs_left,
    check_task,
    check_weights_fit,
    read_checkpoint,
)
from {{cookiecutter.package_name}}.csv_logger import CSVLogger
from {{cookiecutter.package_name}}.data.kept import check_kept
from {{cookiecutter.package_name}}.data.resumable_loader import check_place
from {{cookiecutter.package_name}}.locks import is_in_use
from {{cookiecutter.package_name}}.processes import is_first_process
from {{cookiecutter.package_name}}.run import Run
from {{cookiecutter.package_name}}.run_card import RunCard, read_card

MODES = (None, "weights", "everything", "latest")
#: What may differ between a run and its continuation.
FREE = ("resume", "ckpt_path", "paths")
#: Stands for the run's directory when two runs' settings are compared.
RUN_DIR = "<run_dir>"


def resume(cfg: DictConfig, run: Run, card: RunCard) -> str | None:
    """Do what `resume` and `ckpt_path` ask for.

    Args:
        cfg: the run's config.
        run: its parts; the model gets its weights here when only these are wanted.
        card: learns which checkpoint the run goes on from.

    Returns:
        The checkpoint whose whole state the trainer is to load, if any.

    Raises:
        ValueError: if there is no such checkpoint, or it does not fit.
    """
    path, checkpoint = _checkpoint(cfg, card.directory)
    step = 0 if checkpoint is None or cfg.resume == "weights" else checkpoint["global_step"]
    if cfg.resume == "latest":
        for logger in run.trainer.loggers:
            go_on_from(logger, step)
    if checkpoint is None:
        return None
    check_task(checkpoint, type(run.model).__name__)
    kept = checkpoint.get("data") or {}
    if cfg.resume == "weights":  # which may learn other classes from here on, as long as the words keep their numbers
        kept = {name: value for name, value in kept.items() if name != "class_names"}
    # Before the weights, whose shapes follow from the numbers of tokens and classes.
    check_kept(kept, run.datamodule.settings_to_keep(), str(path))
    check_weights_fit(run.model, checkpoint)
    card.update(resumed_from=path)
    if cfg.resume == "weights":
        run.model.load_state_dict(checkpoint["state_dict"])
        return None
    # Before training, for a sentence in place of a traceback; the loader checks it again.
    for state in checkpoint["loops"]["fit_loop"]["state_dict"].get("combined_loader", ()):
        check_place(state, run.datamodule.batch_size * run.trainer.num_devices * run.trainer.num_nodes)
    if cfg.resume != "latest":  # a run killed in its final test has nothing left but that
        check_epochs_left(run.trainer.max_epochs, checkpoint, str(path))
    return path


def _checkpoint(cfg: DictConfig, directory: Path) -> tuple[str | None, dict[str, Any] | None]:
    if cfg.resume not in MODES:
        raise ValueError(f"resume={cfg.resume} is unknown; accepted: null, weights, everything, latest.")
    path = cfg.ckpt_path
    if cfg.resume == "latest":
        if path is not None:
            raise ValueError(f"resume=latest finds its own checkpoint: leave out ckpt_path={path}.")
        last = directory / "checkpoints" / "last.ckpt"
        path = str(last) if last.exists() else None
    elif cfg.resume is None and not path:
        return None, None
    if path is None and cfg.resume == "latest":
        return None, None
    return path, read_checkpoint(path)


def go_on_from(logger: Logger, step: int) -> None:
    """Tell a logger that knows how to that what was logged from a step on will be logged again."""
    if isinstance(logger, CSVLogger):
        logger.go_on_from(step)
    elif isinstance(logger, TensorBoardLogger):
        logger._kwargs["purge_step"] = step  # of torch's SummaryWriter, which is made when something is logged


def finished_already(cfg: DictConfig) -> dict[str, float] | None:
    """The metrics of the run in the config's directory, if `resume=latest` and it is done; None otherwise.

    The first process decides for all: the others start when it goes on, and the card that they would find is its own.

    Raises:
        ValueError: if the directory holds a run with other settings.
    """
    directory = Path(cfg.paths.run_dir)
    card = read_card(directory) if cfg.get("resume") == "latest" and is_first_process() else None
    if card is None:
        return None
    other = differences(settings_of(card["config"]), settings_of(cfg))
    if other:
        raise ValueError(f"hydra.run.dir={directory} holds a run with other settings: {'; '.join(other[:3])}.")
    if card["status"] != "finished":
        return None
    print(f"{directory} has finished already.")
    metrics: dict[str, float] = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))["metrics"]
    return metrics


def newest_unfinished(cfg: DictConfig, runs: Path) -> Path | None:
    """The directory of the newest run that has a config's settings, did not finish, and is not at work.

    Args:
        cfg: a run's config, in which `paths.run_dir` need not be known yet.
        runs: the folder that holds the runs' directories.
    """
    wanted = settings_of(cfg)
    found = []
    for directory in sorted(path.parent for path in runs.glob("*/run.json")):
        card = read_card(directory)
        if card is None or card["status"] == "finished" or is_in_use(directory):
            continue
        if not differences(settings_of(card["config"]), wanted):
            found.append((card["started"], directory))
    return max(found)[1] if found else None


def settings_of(config: DictConfig | Mapping[str, Any]) -> dict[str, Any]:
    """The settings that make two runs the same, by dotted name; the run's directory is left out of them.

    Args:
        config: a config, or one that was resolved and saved.
    """
    if isinstance(config, DictConfig):
        config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        try:
            OmegaConf.to_container(config.paths, resolve=True)
        except OmegaConfBaseException:  # Hydra has not settled on a directory yet
            OmegaConf.update(config, "paths.run_dir", RUN_DIR)
        plain: Any = OmegaConf.to_container(config, resolve=True)
    else:
        plain = config
    run_dir = str(plain["paths"]["run_dir"])
    kept = {name: value for name, value in plain.items() if name not in FREE}
    return {name: _without(run_dir, value) for name, value in _flat(kept)}


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Say in words what differs between two runs' settings."""
    names = dict.fromkeys([*there, *here])
    absent = "absent"
    return [
        f"{name} is {there.get(name, absent)} there and {here.get(name, absent)} here"
        for name in names
        if there.get(name, absent) != here.get(name, absent)
    ]


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    children: Any = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    if not children:
        yield name, value
    for key, child in children:
        yield from _flat(child, f"{name}.{key}" if name else str(key))


def _without(run_dir: str, value: Any) -> Any:
    return value.replace(run_dir, RUN_DIR) if isinstance(value, str) else value
