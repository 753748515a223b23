"""A training that says nothing and leaves nothing behind."""

import contextlib
import io
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
from helpers.paced_fit import be_quiet


def fit(
    module: pl.LightningModule, data: Any, plugin: Any, *callbacks: pl.Callback, steps: int, **options: Any
) -> None:
    """Train for so many steps; `plugin=None` is Lightning's own FP32."""
    be_quiet()
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):  # the summary at the end of a fit
        trainer = pl.Trainer(
            plugins=[plugin] if plugin is not None else [],
            callbacks=list(callbacks),
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            **options,
        )
        trainer.fit(module, data)
