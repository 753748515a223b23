"""Writing a trained model's predictions to a file."""

import csv
import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig
from torch.utils.data import DataLoader

from {{cookiecutter.package_name}}.checkpoint import read_checkpoint
from {{cookiecutter.package_name}}.errors import BAD_REQUEST, refusing
from {{cookiecutter.package_name}}.launch import on_all_processes, start_other_processes
from {{cookiecutter.package_name}}.prediction_file import PredictionFile, rows_of
from {{cookiecutter.package_name}}.run import Run, announce, close_loggers, prepare
from {{cookiecutter.package_name}}.run_card import recorded
from {{cookiecutter.package_name}}.terminal import show_results
from {{cookiecutter.package_name}}.trained_settings import take_settings
from {{cookiecutter.package_name}}.whole_file import whole_file


@on_all_processes
def predict(cfg: DictConfig) -> Path:
    """Write predictions.parquet in the run's directory, one row per example of the test split or of the given files.

    Args:
        cfg: composed from conf/predict.yaml.

    Returns:
        The file.

    Raises:
        Refusal: if a setting is not acceptable.
    """
    with recorded(cfg) as card:
        with refusing(*BAD_REQUEST):
            checkpoint = read_checkpoint(cfg.ckpt_path)
            take_settings(cfg, checkpoint, cfg.ckpt_path)
            paths = input_paths(cfg.input)
            run = prepare(cfg, card, checkpoint, with_data=not paths)
            kept = checkpoint.get("data") or {}
            source = files_loader(run, paths, kept) if paths else run.datamodule
            start_other_processes(run.trainer)
        announce(cfg, run)
        file = run.directory / "predictions.parquet"
        # What is predicted goes to the file, batch by batch; Lightning would collect it all.
        run.trainer.callbacks.append(PredictionFile(file, kept.get("class_names")))  # type: ignore[attr-defined]
        run.trainer.predict(run.model, source, return_predictions=False)
        if run.trainer.is_global_zero:
            if cfg.csv:
                write_csv(file)
            show_results({}, {}, files=run.directory, predictions=file)
        close_loggers(run.trainer)
    return file


def input_paths(value: str | ListConfig | None) -> list[Path]:
    """The files and folders of the setting `input`: none, one or a list.

    Raises:
        ValueError: names the first one that does not exist.
    """
    names = [] if value is None else [value] if isinstance(value, str) else list(value)
    paths = [Path(str(name)) for name in names]
    for path in paths:
        if not path.exists():
            raise ValueError(f"input={path} does not exist: name a file, a folder or a list of them.")
    return paths


def files_loader(run: Run, paths: list[Path], kept: dict[str, Any]) -> DataLoader[Any]:
    """Batches of the user's own files, read as the test split's are."""
    dataset = run.datamodule.files_dataset(paths, kept)
    workers = getattr(run.datamodule, "num_workers", 0)
    return DataLoader(dataset, batch_size=run.datamodule.batch_size, num_workers=workers)


def write_csv(file: Path) -> Path:
    """Write a prediction file's content as csv beside it, row by row; lists become JSON."""
    target = file.with_suffix(".csv")
    with whole_file(target) as partial, open(partial, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        for number, row in enumerate(rows_of(file)):
            if number == 0:
                writer.writerow(row)
            writer.writerow([json.dumps(value) if isinstance(value, list) else value for value in row.values()])
    return target
