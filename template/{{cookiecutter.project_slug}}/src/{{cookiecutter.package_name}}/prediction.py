"""Writing a trained model's predictions to a file."""

import csv
from pathlib import Path
from typing import cast

import torch
from omegaconf import DictConfig
from torch import Tensor

from {{cookiecutter.package_name}}.errors import BAD_REQUEST, refusing
from {{cookiecutter.package_name}}.evaluation import trained_model
from {{cookiecutter.package_name}}.launch import on_all_processes, start_other_processes
from {{cookiecutter.package_name}}.run import announce, prepare
from {{cookiecutter.package_name}}.terminal import show_results


@on_all_processes
def predict(cfg: DictConfig) -> Path:
    """Write predictions.csv in the run's directory, one row per example of the data module's predict split.

    Args:
        cfg: composed from conf/predict.yaml.

    Returns:
        The file.

    Raises:
        Refusal: if a setting is not acceptable.
    """
    with refusing(*BAD_REQUEST):
        run = prepare(cfg)
        model = trained_model(run, cfg.ckpt_path)
        start_other_processes(run.trainer)
    announce(cfg, run)
    batches = cast(list[dict[str, Tensor]], run.trainer.predict(model, run.datamodule))
    file = run.directory / "predictions.csv"
    # Each batch is a dict of columns, which differ from task to task.
    columns = {name: torch.cat([batch[name] for batch in batches]).tolist() for name in batches[0]}
    with open(file, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["index", *columns])
        writer.writerows(enumerate_rows(columns))
    show_results({}, {}, files=run.directory, predictions=file)
    return file


def enumerate_rows(columns: dict[str, list[float]]) -> list[tuple[float, ...]]:
    """Rows of equally long columns, each with its number in front."""
    return [(index, *row) for index, row in enumerate(zip(*columns.values(), strict=True))]
