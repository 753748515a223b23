"""The parts of a run, made from its config, and what it leaves on disk."""

import inspect
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf

from {{cookiecutter.package_name}}.checkpoint import check_task, check_weights_fit
from {{cookiecutter.package_name}}.checkpoint_io import write_whole_checkpoints
from {{cookiecutter.package_name}}.checks import require_seed
from {{cookiecutter.package_name}}.data.base import DataModule
from {{cookiecutter.package_name}}.data.kept import check_kept
from {{cookiecutter.package_name}}.environment import environment
from {{cookiecutter.package_name}}.instantiate import instantiate_each, instantiate_trusted
from {{cookiecutter.package_name}}.launch import prepare_data
from {{cookiecutter.package_name}}.loggers import make_loggers
from {{cookiecutter.package_name}}.overrides import refuse_repeated
from {{cookiecutter.package_name}}.run_card import RunCard
from {{cookiecutter.package_name}}.tasks.base import num_parameters
from {{cookiecutter.package_name}}.terminal import quieten, show_config
from {{cookiecutter.package_name}}.trained_settings import KeepSettings
from {{cookiecutter.package_name}}.whole_file import write_text


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


def prepare(cfg: DictConfig, card: RunCard, checkpoint: dict[str, Any] | None = None, with_data: bool = True) -> Run:
    """Seed, and build all parts of a run.

    Args:
        cfg: the run's config; the model's settings that are null are filled in.
        card: the run's card, which learns about data and task.
        checkpoint: of the model, where a trained one is asked for.
        with_data: whether the splits are needed.

    Raises:
        ValueError: or one of its kin in `errors.BAD_REQUEST`, if a setting is not acceptable.
    """
    quieten()
    if HydraConfig.initialized():
        refuse_repeated(HydraConfig.get().overrides.task)
    require_seed(seed=cfg.seed)
    seed_everything(cfg.seed, workers=True, verbose=False)
    if checkpoint is not None:
        check_task(checkpoint, hydra.utils.get_class(cfg.model["_target_"]).__name__)
    datamodule = instantiate_trusted(cfg.data)
    if with_data:
        prepare_data(datamodule)
        datamodule.setup()
        if checkpoint is not None:
            check_kept(checkpoint.get("data") or {}, datamodule.settings_to_keep(), cfg.ckpt_path)
        fill_from_data(cfg.model, datamodule.facts())
        if checkpoint is None:
            require_filled(cfg)
        card.update(data=data_facts(datamodule, str(card.facts["choices"].get("data", type(datamodule).__name__))))
    model = instantiate_trusted(cfg.model) if checkpoint is None else trained_model(cfg.model, checkpoint)
    card.update(task=type(model).__name__)
    loggers = make_loggers(cfg.get("logger"), card.directory)
    callbacks = [*instantiate_each(cfg.get("callbacks")), KeepSettings(cfg, datamodule)]
    keep_telemetry_in_run(cfg)
    # An empty list would make Lightning choose a logger of its own.
    trainer = instantiate_trusted(cfg.trainer, logger=loggers or False, callbacks=callbacks)
    write_whole_checkpoints(trainer)
    card.update(environment=environment(trainer.strategy.root_device, trainer.world_size))
    return Run(card.directory, datamodule, model, trainer)


def trained_model(settings: DictConfig, checkpoint: dict[str, Any]) -> LightningModule:
    """The model of a checkpoint, with the hyperparameters that are stored in it.

    Args:
        settings: name the model's class.
        checkpoint: as read.

    Raises:
        ValueError: if its weights are not those of such a model.
    """
    kind = hydra.utils.get_class(settings["_target_"])
    model: LightningModule = kind(**checkpoint["hyper_parameters"])
    check_weights_fit(model, checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    return model


def data_facts(datamodule: DataModule, name: str) -> dict[str, Any]:
    """What the run card says about the data."""
    sizes = {split: len(dataset) for split, dataset in datamodule.datasets.items()}  # type: ignore[arg-type]
    return {"name": name, "fingerprint": datamodule.fingerprint(), **sizes}


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


def require_filled(cfg: DictConfig) -> None:
    """Check that the data have filled in what the model must know of them.

    Args:
        cfg: the run's config, after `fill_from_data`.

    Raises:
        ValueError: if a number that the model needs is still null.
    """
    parameters = inspect.signature(hydra.utils.get_class(cfg.model["_target_"])).parameters
    missing = [
        f"model.{name}"
        for name, value in cfg.model.items()
        if value is None and name in parameters and parameters[str(name)].annotation is int
    ]
    if missing:
        model, data = (cfg[part]["_target_"].rpartition(".")[2] for part in ("model", "data"))
        raise ValueError(
            f"{model} needs {', '.join(missing)}, which {data} does not tell: choose a model that suits the data."
        )


def keep_telemetry_in_run(cfg: DictConfig) -> None:
    """Have the precision plugin write telemetry/ into the run's directory, rather than into the first logger's."""
    # trainer.plugins names cfg.precision; once the config has been resolved, it holds a copy of its own.
    for part in (cfg.get("precision"), *(cfg.trainer.get("plugins") or ())):
        telemetry = part.get("telemetry") if isinstance(part, DictConfig) else None
        if isinstance(telemetry, DictConfig) and telemetry.get("directory", "") is None:
            telemetry.directory = cfg.paths.run_dir


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
        text = json.dumps({**values, "status": "finished", "run_dir": str(run.directory)}, indent=2)
        write_text(run.directory / "metrics.json", text + "\n")


def to_floats(metrics: dict[str, Any]) -> dict[str, float]:
    """Logged metrics as plain numbers."""
    return {name: float(value) for name, value in metrics.items()}
