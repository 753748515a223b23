"""Writing checkpoints."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch import Trainer

from {{cookiecutter.package_name}}.whole_file import whole_file


class WholeCheckpointIO(TorchCheckpointIO):
    """Checkpoint files that are never half written: Lightning's own are built in /tmp and then copied."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write beside the file, then move into place."""
        with whole_file(Path(path)) as partial:
            torch.save(checkpoint, partial)


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Have a trainer write whole checkpoints, unless its config names a CheckpointIO of its own."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = WholeCheckpointIO()
