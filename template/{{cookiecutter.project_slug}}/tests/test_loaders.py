"""Loaders: the same examples in the same order and form, whatever the workers and ranks, interrupted or not."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from {{cookiecutter.package_name}}.data.base import DataModule
from {{cookiecutter.package_name}}.data.epoch_shuffle import EpochShuffle
from {{cookiecutter.package_name}}.data.resumable_loader import ResumableLoader

SIZE, BATCH = 22, 4

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated"),
]


class NoisyPoints(Dataset[Any]):
    """Numbered points; in training with noise."""

    def __len__(self) -> int:
        return SIZE

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((3,), float(index))

    def draw(self, index: int, generator: np.random.Generator) -> Tensor:
        """The point, moved by less than a half."""
        return self[index] + float(generator.uniform(-0.4, 0.4))


class Points(DataModule):
    """Noisy points, changed once more on the device."""

    def make_datasets(self) -> dict[str, Dataset[Any]]:
        """The same points for all purposes."""
        return dict.fromkeys(("train", "val", "test"), NoisyPoints())

    def baselines(self) -> dict[str, float]:
        """None."""
        return {}

    def on_after_batch_transfer(self, batch: Tensor, dataloader_idx: int) -> Tensor:
        """Noise from torch's own generator."""
        return batch + 0.01 * torch.randn_like(batch) if self.trainer.training else batch


class Net(LightningModule):
    """A network with dropout, which keeps the batches that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.seen: list[Tensor] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Any loss will do."""
        self.seen.append(batch.clone())
        return self.net(batch / SIZE).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Takes random numbers, which training must not notice."""
        torch.rand(1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Momentum, so that the optimizer has a state."""
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)


class Keep(Callback):
    """Write a checkpoint after some batches, at the end of the others' epochs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """In the middle of an epoch."""
        trainer.save_checkpoint(self.folder / f"batch{trainer.fit_loop.total_batch_idx + 1}.ckpt")

    def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
        """After validation, before the epoch is counted as done."""
        trainer.save_checkpoint(self.folder / f"val{trainer.current_epoch}.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        """At the end of an epoch."""
        trainer.save_checkpoint(self.folder / f"epoch{trainer.current_epoch}.ckpt")


def fit(workers: int, checkpoint: Path | None = None, keep: Path | None = None, **settings: Any) -> Net:
    """Train for three epochs."""
    seed_everything(3, verbose=False)
    data, net = Points(BATCH, num_workers=workers), Net()
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[Keep(keep)] if keep else [],
        **settings,
    )
    trainer.fit(net, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    return net


def same(first: Net, second: Net) -> bool:
    """Whether two networks have the same weights bit by bit."""
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Net, Path]:
    """An uninterrupted run, and its checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    return fit(0, keep=folder), folder


@pytest.mark.parametrize("place", ["batch2", "batch8", "batch11", "val0", "epoch0", "val1", "epoch1"])
def test_resume_at_any_place(whole: tuple[Net, Path], place: str) -> None:
    net, folder = whole
    assert len(net.seen) == 18
    resumed = fit(0, folder / f"{place}.ckpt")
    done = int(place[5:]) if place.startswith("batch") else 6 * (int(place[-1]) + 1)
    assert len(resumed.seen) == 18 - done
    assert all(torch.equal(a, b) for a, b in zip(net.seen[done:], resumed.seen, strict=True))
    assert same(net, resumed)


def test_resume_with_workers(whole: tuple[Net, Path]) -> None:
    net, folder = whole
    assert same(net, fit(2))
    for place in ("batch8", "val0", "epoch0"):
        assert same(net, fit(2, folder / f"{place}.ckpt"))


def test_resume_in_part_of_an_epoch(tmp_path: Path) -> None:
    limits = {"limit_train_batches": 4, "val_check_interval": 2}
    net = fit(0, keep=tmp_path, **limits)
    for place in ("batch3", "epoch0", "batch6"):
        assert same(net, fit(0, tmp_path / f"{place}.ckpt", **limits))


def test_resume_with_accumulated_gradients(tmp_path: Path) -> None:
    net = fit(0, keep=tmp_path, accumulate_grad_batches=2)
    assert same(net, fit(0, tmp_path / "batch8.ckpt", accumulate_grad_batches=2))


def batches(workers: int, epoch: int) -> list[Tensor]:
    """One epoch's training batches."""
    torch.manual_seed(0)
    module = Points(BATCH, num_workers=workers)
    module.setup()
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_workers_change_nothing_and_epochs_change_all() -> None:
    alone = batches(0, epoch=1)
    assert all(torch.equal(a, b) for a, b in zip(alone, batches(2, epoch=1), strict=True))
    values = torch.cat(alone)[:, 0]
    assert sorted(values.round().int().tolist()) == list(range(SIZE))
    assert not torch.equal(values, values.round())
    other = torch.cat(batches(0, epoch=2))[:, 0]
    assert values.round().tolist() != other.round().tolist()
    assert not set((values - values.round()).tolist()) & set((other - other.round()).tolist())


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_share_the_examples(num_ranks: int) -> None:
    orders = []
    for epoch in range(2):
        ranks = [EpochShuffle(SIZE, 0, num_ranks, rank) for rank in range(num_ranks)]
        for sampler in ranks:
            sampler.set_epoch(epoch)
        shares = [[draw - epoch * SIZE for draw in sampler] for sampler in ranks]
        assert {len(share) for share in shares} == {len(ranks[0])} == {-(-SIZE // num_ranks)}
        counts = Counter(index for share in shares for index in share)
        assert sorted(counts) == list(range(SIZE))
        assert sum(counts.values()) - SIZE == -SIZE % num_ranks
        orders.append(shares)
    assert orders[0] != orders[1]


def test_another_batch_size_in_the_middle_of_an_epoch_is_refused() -> None:
    def loader(batch_size: int, done: int) -> ResumableLoader:
        return ResumableLoader(NoisyPoints(), batch_size, EpochShuffle(SIZE, 0), lambda: (done, 6))

    loader(8, 0).load_state_dict(loader(4, 6).state_dict())
    with pytest.raises(ValueError, match="with 4 examples per step over all ranks, and this run takes 8"):
        loader(8, 0).load_state_dict(loader(4, 1).state_dict())


def test_loaders_keep_the_workers_that_are_needed_again() -> None:
    module = Points(BATCH, num_workers=1)
    module.setup()
    loaders: list[DataLoader[Any]] = [module.train_dataloader(), module.val_dataloader(), module.test_dataloader()]
    assert [loader.persistent_workers for loader in loaders] == [True, True, False]
    assert all(loader.pin_memory == torch.cuda.is_available() for loader in loaders)
    assert Points(BATCH, pin_memory=True).pin_memory


def test_fingerprint_tells_data_apart() -> None:
    first, second, fewer = Points(BATCH), Points(2 * BATCH), Points(BATCH)
    fewer.datasets = {**first.make_datasets(), "val": [torch.zeros(3)]}
    assert first.fingerprint() == second.fingerprint() != fewer.fingerprint()
    assert first.fingerprint().startswith("sha256:")


@pytest.mark.parametrize("workers", [-1, 1.5, True])
def test_bad_number_of_workers_is_refused(workers: Any) -> None:
    with pytest.raises(ValueError, match=f"num_workers={workers} is out of range: it must be an integer, 0 or more"):
        Points(BATCH, num_workers=workers)
