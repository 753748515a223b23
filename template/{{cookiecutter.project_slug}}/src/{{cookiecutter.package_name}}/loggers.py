"""The loggers of a run, which write below its directory and tell nobody else."""

import os
from pathlib import Path

from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from {{cookiecutter.package_name}}.instantiate import instantiate_each

#: Where W&B keeps files that it needs beside those of the run; in the user's home if nobody says otherwise.
WANDB_FOLDERS = {"WANDB_CACHE_DIR": "cache", "WANDB_DATA_DIR": "data"}
CHOSEN_BY_USER = {name for name in WANDB_FOLDERS if name in os.environ}

#: Usage statistics and crash reports, which the trackers send to their makers unless they are told not to.
SILENCE = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}


def make_loggers(group: DictConfig | None, directory: Path) -> list[Logger]:
    """Build the loggers that the config names.

    Args:
        group: one node for each, by name; null entries are left out.
        directory: of the run.
    """
    for name, value in SILENCE.items():
        os.environ.setdefault(name, value)
    for name, folder in WANDB_FOLDERS.items():
        if name not in CHOSEN_BY_USER:
            os.environ[name] = str((directory / "wandb" / folder).absolute())
    return instantiate_each(group)
