"""The same seed gives the same weights, bit by bit, interrupted or not."""

from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig

from {{cookiecutter.package_name}}.training import train

EVERY_EPOCH = ["callbacks.model_checkpoint.save_top_k=-1", "callbacks.model_checkpoint.filename='{epoch}'"]


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The parameters in a checkpoint."""
    return {n: t for n, t in torch.load(path, weights_only=True)["state_dict"].items() if n.startswith("net.")}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of parameters are the same bit by bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_seed_and_resume(small: Callable[..., DictConfig], tmp_path: Path, experiment: str) -> None:
    train(small(experiment, *EVERY_EPOCH, "seed=0", name="whole"))
    train(small(experiment, *EVERY_EPOCH, "seed=0", name="again"))
    whole, again = (weights(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "again"))
    assert equal(whole, again)

    train(small(experiment, "seed=1", name="other"))
    assert not equal(whole, weights(tmp_path / "other" / "checkpoints" / "last.ckpt"))

    halfway = tmp_path / "whole" / "checkpoints" / "epoch=0.ckpt"
    assert not equal(whole, weights(halfway))
    train(small(experiment, "seed=0", f"ckpt_path='{halfway}'", name="resumed"))
    assert equal(whole, weights(tmp_path / "resumed" / "checkpoints" / "last.ckpt"))
