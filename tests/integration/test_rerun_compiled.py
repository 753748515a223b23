"""Compiled models: a re-run is eager, and compiles and breaks nothing; afterwards the old code runs on."""

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader

from tests.helpers.training import Regression, regression_data
from tests.helpers.twins import same, train

pytestmark = [
    # Parts of torch's compiler that warn of other parts of torch.
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*Function'> should not be instantiated:DeprecationWarning"),
]

POISONED = 3


class Block(nn.Module):
    """A module of the user's own: torch compiles no container by itself."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            inputs = layer(inputs)
        return inputs


class Net(Regression):
    """Overflows in the forward pass of a batch that is finite itself."""

    def __init__(self) -> None:
        super().__init__(optimizer=torch.optim.AdamW, lr=0.01)
        first, tanh, last = self.net
        self.body = Block(first, nn.BatchNorm1d(16), tanh)
        self.net = Block(self.body, last)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(*batch)

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(self.net(inputs * 10).float(), targets)


class Checkpointed(Net):
    """Recomputes a compiled block in its backward pass."""

    def loss(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        hidden = checkpoint(self.body, inputs * 10, use_reentrant=False)
        return nn.functional.mse_loss(self.net.layers[1](hidden).float(), targets)


def data() -> list[Any]:
    """A compiler makes no new code for other numbers of the same shape."""
    batches = [list(batch) for batch in regression_data()]
    batches[POISONED][0] = torch.full_like(batches[POISONED][0], 3e38)
    return batches


def whole(model: Any, backend: str) -> Any:
    return torch.compile(model, backend=backend, dynamic=False)


def in_place(model: Any, backend: str) -> Any:
    model.net.compile(backend=backend, dynamic=False)
    return model


def one_block(model: Any, backend: str) -> Any:
    model.body.compile(backend=backend, dynamic=False)
    return model


def wrapped(model: Any, backend: str) -> Any:
    model.net = torch.compile(model.net, backend=backend, dynamic=False)
    return model


def by_function(model: Any, backend: str) -> Any:
    model.loss = torch.compile(model.loss, backend=backend, dynamic=False, fullgraph=True)
    return model


class Compilations(pl.Callback):
    """How much was compiled, guarded and broken so far, after each batch."""

    def __init__(self) -> None:
        self.after_batch: list[tuple[int, int, int]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        self.after_batch.append((*compiled(), sum(counters["graph_break"].values())))


def compiled() -> tuple[int, int]:
    return counters["stats"]["unique_graphs"], counters["frames"]["total"]


def run(make: Callable[[], Any], prepare: Any, *, max_traced: int, backend: str, precision: str) -> Any:
    torch._dynamo.reset()
    counters.clear()
    watch = Compilations()
    twin = train(
        make,
        max_traced=max_traced,
        precision=precision,
        prepare=lambda model: prepare(model, backend),
        callbacks=[watch],
        max_epochs=2,
        data=DataLoader(data(), batch_size=None),  # type: ignore[arg-type]
    )
    return twin, watch.after_batch


CASES = [
    (Net, whole, "eager", "fp16"),
    (Net, whole, "aot_eager", "bf16"),
    (Net, in_place, "eager", "fp16"),
    (Net, in_place, "aot_eager", "bf16"),
    (Net, one_block, "aot_eager", "fp16"),
    (Net, wrapped, "aot_eager", "fp16"),
    (Net, by_function, "aot_eager", "fp32"),
    (Checkpointed, one_block, "aot_eager", "fp16"),
    (Net, one_block, "inductor", "fp32"),
]


@pytest.mark.parametrize(
    ("make", "prepare", "backend", "precision"), CASES, ids=lambda value: getattr(value, "__name__", value)
)
def test_nothing_is_compiled_for_a_rerun_or_after_it(
    make: Callable[[], Any], prepare: Any, backend: str, precision: str
) -> None:
    options = {"backend": backend, "precision": precision}
    traced, compilations = run(make, prepare, max_traced=20, **options)
    plain, expected = run(make, prepare, max_traced=0, **options)
    assert traced.traced
    assert compilations == expected
    assert compilations[0][0] > 0
    assert compilations[-1][0] == compilations[0][0], "the model itself is compiled more than once"
    same(traced, plain)
    assert {incident.location for incident in traced.traced} != {None}


def test_a_recompilation_would_be_an_error() -> None:
    """The second epoch meets incidents under a compiler that must not compile any more."""

    class Strict(pl.Callback):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            torch._dynamo.config.error_on_recompile = trainer.current_epoch > 0

    torch._dynamo.reset()
    try:
        twin = train(
            Net,
            max_traced=20,
            data=DataLoader(data(), batch_size=None),  # type: ignore[arg-type]
            precision="bf16",
            max_epochs=2,
            callbacks=[Strict()],
            prepare=lambda model: whole(model, "aot_eager"),
        )
    finally:
        torch._dynamo.config.error_on_recompile = False
    assert [incident.batch_idx for incident in twin.plugin.incidents] == [POISONED] * 2
