"""A checkpoint holds the settings it was trained with, and `eval.py` and `predict.py` take them from there."""

import importlib
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf, open_dict

from {{cookiecutter.package_name}}.data.base import DataModule

#: The parts of the config that a checkpoint keeps; each has an option `as_trained` in eval and predict.
PARTS = ("data", "model", "precision")
AS_TRAINED = "as_trained"
PACKAGE = __name__.partition(".")[0]
#: What a precision config may name; everything else in a checkpoint's settings belongs to this package.
PLUGIN = {f"mp_plugin.{name}" for name in ("AdaptivePrecision", "LossScaling", "Fallback", "Telemetry")}


class KeepSettings(Callback):
    """Put into each checkpoint what it takes to use it: plain values only.

    Args:
        cfg: the run's config, with the model's settings filled in.
        datamodule: the run's data.
    """

    def __init__(self, cfg: DictConfig, datamodule: DataModule) -> None:
        self.config = {part: OmegaConf.to_container(cfg[part], resolve=True) for part in PARTS if part in cfg}
        self.datamodule = datamodule

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config, and what the data module wants to know again when it predicts."""
        checkpoint["config"] = self.config
        checkpoint["data"] = self.datamodule.settings_to_keep()


def take_settings(cfg: DictConfig, checkpoint: dict[str, Any], path: str) -> None:
    """Replace the parts of a config that are `as_trained` by the checkpoint's; settings added by `+` win over these.

    Args:
        cfg: the run's config; changed.
        checkpoint: as read.
        path: its file.

    Raises:
        ValueError: if the checkpoint does not hold a part, or names what is not this project's.
    """
    for part in PARTS:
        if cfg[part].get("_target_") != AS_TRAINED:
            continue
        kept = (checkpoint.get("config") or {}).get(part)
        if not isinstance(kept, dict) or "_target_" not in kept:
            raise ValueError(f"ckpt_path={path} does not hold its {part} settings: name {part}=... yourself.")
        for target in targets_in(kept):
            if not (target in PLUGIN if part == "precision" else is_ours(target)):
                raise ValueError(f"ckpt_path={path} asks for {target}, which is not part of this project.")
        added = {name: value for name, value in cfg[part].items() if name != "_target_"}
        with open_dict(cfg):
            cfg[part] = OmegaConf.merge(kept, added)
    plugins = cfg.trainer.get("plugins") or []
    # The plugin stands there by reference, which is a copy once a config has been resolved.
    for place, plugin in enumerate(plugins):
        if isinstance(plugin, DictConfig) and plugin.get("_target_") == AS_TRAINED:
            plugins[place] = cfg.precision


def refuse_as_trained(cfg: DictConfig) -> None:
    """Check that every part of a config has settings of its own.

    Raises:
        ValueError: names a part that is left to a checkpoint.
    """
    for part in PARTS:
        if cfg[part].get("_target_") == AS_TRAINED:
            raise ValueError(f"{part}=as_trained is for eval.py and predict.py: name the {part} to train with.")


def targets_in(settings: Any) -> Iterator[str]:
    """Everything that settings would have Hydra call, at any depth."""
    if isinstance(settings, dict):
        if "_target_" in settings:
            yield str(settings["_target_"])
        settings = list(settings.values())
    if isinstance(settings, list):
        for value in settings:
            yield from targets_in(value)


def is_ours(target: str) -> bool:
    """Whether a dotted name is that of a class defined in this package, not of something imported there."""
    module, _, name = target.rpartition(".")
    if not module.startswith(f"{PACKAGE}."):
        return False
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError:
        return False
    return isinstance(found, type) and found.__module__.startswith(f"{PACKAGE}.")
