"""The parts of a run, made from its config, and what it leaves on disk."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf

from {{cookiecutter.package_name}}.checks import require_seed
from {{cookiecutter.package_name}}.data.base import DataModule
from {{cookiecutter.package_name}}.instantiate import instantiate_each, instantiate_trusted
from {{cookiecutter.package_name}}.launch import prepare_data
from {{cookiecutter.package_name}}.loggers import make_loggers
from {{cookiecutter.package_name}}.overrides import refuse_repeated
from {{cookiecutter.package_name}}.tasks.base import num_parameters
from {{cookiecutter.package_name}}.terminal import quieten, show_config


@dataclass(frozen=True)
class Run:
    """Everything that a run needs, ready to start.

    Args:
        directory: where its files go.
        datamodule: set up, so that missing data has come to light.
        model: with new weights.
        trainer: with callbacks, loggers and the precision plugin.
    """

    directory: Path
    datamodule: DataModule
    model: LightningModule
    trainer: Trainer


def prepare(cfg: DictConfig) -> Run:
    """Seed, and build all parts of a run.

    Raises:
        ValueError: or one of its kin in `errors.BAD_REQUEST`, if a setting is not acceptable.
    """
    quieten()
    if HydraConfig.initialized():
        refuse_repeated(HydraConfig.get().overrides.task)
    directory = Path(cfg.paths.run_dir)
    directory.mkdir(parents=True, exist_ok=True)
    require_seed(seed=cfg.seed)
    seed_everything(cfg.seed, workers=True, verbose=False)
    datamodule = instantiate_trusted(cfg.data)
    prepare_data(datamodule)
    datamodule.setup()
    fill_from_data(cfg.model, datamodule.facts())
    model = instantiate_trusted(cfg.model)
    loggers = make_loggers(cfg.get("logger"), directory)
    callbacks = instantiate_each(cfg.get("callbacks"))
    # An empty list would make Lightning choose a logger of its own.
    trainer = instantiate_trusted(cfg.trainer, logger=loggers or False, callbacks=callbacks)
    return Run(directory, datamodule, model, trainer)


def fill_from_data(settings: DictConfig, facts: Mapping[str, Any]) -> None:
    """Set the model's settings that are null to what the data have.

    Raises:
        ValueError: if a setting contradicts the data.
    """
    for name, value in facts.items():
        if name not in settings:
            continue
        if settings[name] is None:
            settings[name] = value
        elif settings[name] != value:
            raise ValueError(f"model.{name}={settings[name]}, but the data have {value}: leave it null.")


def announce(cfg: DictConfig, run: Run) -> None:
    """Show and save the settings, and log them as hyperparameters; opens the loggers, so it comes after all checks."""
    if run.trainer.is_global_zero:
        show_config(cfg, f"{type(run.model).__name__}, {num_parameters(run.model):,} parameters", run.directory)
    settings = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    for logger in run.trainer.loggers:
        logger.log_hyperparams(settings)


def close_loggers(trainer: Trainer) -> None:
    """End the W&B run and session, which the next run of a sweep in this process would otherwise continue."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            import wandb

            logger.experiment.finish()
            wandb.teardown()


def precision_name(trainer: Trainer) -> str:
    """The precision in use, such as bf16-mixed."""
    return str(trainer.precision_plugin.precision)


def precision_summary(trainer: Trainer) -> dict[str, Any] | None:
    """What the precision plugin has to say about the run: steps, skipped steps, loss scale; None for stock plugins."""
    summary = getattr(trainer.precision_plugin, "summary", None)
    return summary() if summary is not None else None


def precision_line(trainer: Trainer) -> str:
    """The precision in use and what became of the steps, in one line."""
    summary = precision_summary(trainer)
    if summary is None:
        return precision_name(trainer)
    steps = f"{summary['effective_steps']:,} of {summary['steps']:,} steps taken, {summary['skipped_steps']:,} skipped"
    scale = f", loss scale {summary['loss_scale']['now']:,.15g}" if summary["loss_scale"] else ""
    return f"{summary['precision']}: {steps}{scale}"


def write_metrics(run: Run, **values: Any) -> None:
    """Write metrics.json, on one process only."""
    if run.trainer.is_global_zero:
        text = json.dumps({**values, "run_dir": str(run.directory)}, indent=2)
        (run.directory / "metrics.json").write_text(text + "\n", encoding="utf-8")


def to_floats(metrics: dict[str, Any]) -> dict[str, float]:
    """Logged metrics as plain numbers."""
    return {name: float(value) for name, value in metrics.items()}
