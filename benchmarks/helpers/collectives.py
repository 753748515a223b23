"""What the ranks of a training send one another in a step: every collective, counted where torch dispatches it."""

import json
import logging
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from helpers.quiet_fit import fit
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

sys.path.insert(0, str(Path(__file__).parents[2]))  # the tests are no installed package

from mp_plugin import AdaptivePrecision, Telemetry
from tests.helpers.ranks import run_on_ranks

WIDTH, LAYERS, STEPS = 256, 8, 6


class CountCollectives(TorchDispatchMode):
    """Note the bytes that this process hands over to each collective."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes_of_calls: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.bytes_of_calls.append(sum(value.nbytes for value in tree_leaves(args) if isinstance(value, Tensor)))
        return func(*args, **(kwargs or {}))


class CountLastStep(pl.Callback):
    """Count in the last step: after the first one DDP still rearranges what it sends."""

    def __init__(self) -> None:
        self.counter = CountCollectives()

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == STEPS - 1:
            self.counter.__enter__()

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == STEPS - 1:
            self.counter.__exit__(None, None, None)


class Perceptron(pl.LightningModule):
    """Half a million parameters, whose gradients DDP adds up over the ranks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.net(batch[0]).float().square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def bytes_per_step(kind: str, world_size: int) -> dict[str, Any]:
    """Train on the CPU in 16-mixed, with clipping, and return what the first rank hands over in a step.

    Args:
        kind: `stock` or `ours`.
        world_size: processes, joined by gloo.

    Returns:
        `gradients`, the bytes of all gradients together, and `calls`, the bytes of each collective.
    """
    with TemporaryDirectory() as folder:
        run_on_ranks(_train, kind, world_size, folder, world_size=world_size)
        return json.loads((Path(folder) / "found.json").read_text())  # type: ignore[no-any-return]


def _train(kind: str, world_size: int, folder: str) -> None:
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)  # it welcomes every rank
    stock = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))
    ours = AdaptivePrecision("fp16", telemetry=Telemetry(every_n_steps=0))
    counting, module = CountLastStep(), Perceptron()
    data = DataLoader(TensorDataset(torch.randn(STEPS * 8 * world_size, WIDTH)), batch_size=8)
    options = {"accelerator": "cpu", "strategy": "ddp", "devices": world_size, "gradient_clip_val": 1.0}
    plugin = stock if kind == "stock" else ours
    fit(module, data, plugin, counting, steps=STEPS, **options)
    if torch.distributed.get_rank() == 0:
        found = {
            "gradients": sum(parameter.nbytes for parameter in module.parameters()),
            "calls": sorted(counting.counter.bytes_of_calls),
        }
        (Path(folder) / "found.json").write_text(json.dumps(found))
