"""Reading checkpoints with care."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule

#: What a checkpoint of this project holds besides the plugin's state; without it training cannot go on.
REQUIRED = ("task", "state_dict", "hyper_parameters", "epoch", "global_step", "loops", "optimizer_states")
#: Differences that a message names.
SHOWN = 3


def read_checkpoint(path: str | None) -> dict[str, Any]:
    """Read a checkpoint and check that it is one of this project.

    Args:
        path: the file; loaded with `weights_only=True`, so nothing in it is executed.

    Raises:
        ValueError: in one sentence, if there is no such file, or if it is damaged.
    """
    if not path:
        raise ValueError("ckpt_path is missing: name a checkpoint, such as .../checkpoints/last.ckpt.")
    if not Path(path).is_file():
        raise ValueError(f"ckpt_path={path} is not a file: name a checkpoint, such as .../checkpoints/last.ckpt.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever the reader trips over, the file is not a checkpoint
        raise ValueError(f"ckpt_path={path} is damaged or no checkpoint: it does not load as plain data.") from error
    missing = [key for key in REQUIRED if key not in checkpoint] if isinstance(checkpoint, dict) else REQUIRED
    if missing:
        raise ValueError(f"ckpt_path={path} is damaged or not from this project: it lacks {', '.join(missing)}.")
    return checkpoint


def check_task(checkpoint: dict[str, Any], task: str) -> None:
    """Check that a checkpoint is one of a task.

    Args:
        checkpoint: as read.
        task: name of the task's class.

    Raises:
        ValueError: if it belongs to another class.
    """
    if checkpoint["task"] != task:
        raise ValueError(
            f"The checkpoint holds a {checkpoint['task']}, but the settings ask for a {task}: "
            "name the experiment of the run that wrote it."
        )


def check_weights_fit(model: LightningModule, checkpoint: dict[str, Any]) -> None:
    """Check that a checkpoint's weights have the names and shapes of the model's.

    Raises:
        ValueError: names the first differences.
    """
    found = {name: getattr(value, "shape", None) for name, value in checkpoint["state_dict"].items()}
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    differing = [name for name in dict.fromkeys([*wanted, *found]) if found.get(name) != wanted.get(name)]
    if differing:
        said = [f"{name} is {_shape(found.get(name))} there and {_shape(wanted.get(name))} here" for name in differing]
        more = f", and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
        raise ValueError(f"The checkpoint does not fit the model: {', '.join(said[:SHOWN])}{more}.")


def check_epochs_left(max_epochs: int | None, checkpoint: dict[str, Any], path: str) -> None:
    """Check that a run that is to be resumed has something left to do.

    Args:
        max_epochs: epochs in all; None or -1 for no end.
        checkpoint: where the run stopped.
        path: its file.

    Raises:
        ValueError: if the run has trained for so many epochs already.
    """
    # A checkpoint at the end of an epoch counts that epoch as done.
    done = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
    if max_epochs is not None and 0 <= max_epochs <= done:
        raise ValueError(
            f"ckpt_path={path} has trained for {done} epochs, and trainer.max_epochs={max_epochs}: raise it to go on."
        )


def _shape(shape: torch.Size | None) -> str:
    return "absent" if shape is None else str(tuple(shape))
