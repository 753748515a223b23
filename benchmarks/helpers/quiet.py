"""Trainings that say nothing, so that a benchmark's output is its tables."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings, the log, and what a fit prints at its end."""
    for name in ("lightning.pytorch", "lightning.fabric", "mp_plugin"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def trainer(plugin: Any, *callbacks: pl.Callback, steps: int, **options: Any) -> pl.Trainer:
    """Return a trainer of so many steps that leaves nothing behind; `plugin=None` is Lightning's own FP32."""
    return pl.Trainer(
        plugins=[plugin] if plugin is not None else [],
        callbacks=list(callbacks),
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=options.pop("folder", None) or _root().name,
        **options,
    )


@cache
def _root() -> TemporaryDirectory[str]:
    return TemporaryDirectory()
