"""Ten of the test suite's planted faults, and what one incident costs."""

import contextlib
import io
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parents[2]))  # the tests are no installed package

from mp_plugin.telemetry.trace import Trace
from tests.helpers.faults.batches import batches
from tests.helpers.faults.catalogue import fault
from tests.helpers.faults.fault import FOLDER, SCALING, Fault, culprit_line
from tests.helpers.faults.fit import plugin_for
from tests.helpers.faults.training import Planted
from tests.helpers.training import quiet_trainer

TEN = (
    *("matmul", "exp", "zero-over-zero", "masked-softmax", "attention-logits"),
    *("loss-sum", "large-weight", "custom-function", "masked-log", "nan-sample"),
)
FAULTY, COUNT, WARM_UP = 30, 40, 10
"""The spoiled batch, of how many, and after how many the healthy ones are timed."""
CODE = str(FOLDER)


class Cost(NamedTuple):
    """What one incident cost."""

    plain_runs: int
    """Forward passes beside the first, most with a backward pass, in which no operator is watched."""
    traced_runs: int
    traced_ratio: float
    """Duration of the instrumented pass in eager steps."""
    whole_ratio: float
    """Duration of the whole step with its incident, in eager steps."""


def stock() -> MixedPrecision:
    """Lightning's own plugin, at the loss scale of the planted faults."""
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALING.init_scale, backoff_factor=SCALING.backoff_factor)
    return MixedPrecision("16-mixed", "cpu", scaler)


def train_stock(planted: Fault, **options: Any) -> None:
    """Train a planted fault with the stock plugin."""
    _fit(planted, planted.make(), stock(), **options)


def train_ours(planted: Fault) -> tuple[Any, Cost]:
    """Train a planted fault with our plugin, and return the plugin and what its incident cost."""
    plugin, model = plugin_for(planted), planted.make()
    runs: list[tuple[float, int, bool]] = []
    step = model.training_step

    def timed(batch: Any, batch_idx: int) -> Any:
        is_traced = any(isinstance(mode, Trace) for mode in _get_current_dispatch_mode_stack())
        runs.append((time.perf_counter(), batch_idx, is_traced))
        return step(batch, batch_idx)

    model.training_step = timed  # type: ignore[method-assign]
    _fit(planted, model, plugin)
    ends = [start for start, _, _ in runs[1:]] + [time.perf_counter()]
    seconds = [end - start for (start, _, _), end in zip(runs, ends, strict=True)]
    # The last batch is left out: after it the training ends.
    healthy = [
        took for (_, index, _), took in zip(runs[:-1], seconds, strict=False) if index >= WARM_UP and index != FAULTY
    ]
    eager = sorted(healthy)[len(healthy) // 2]
    traced = [took for (_, _, is_traced), took in zip(runs, seconds, strict=True) if is_traced]
    incident = [took for (_, index, _), took in zip(runs, seconds, strict=True) if index == FAULTY]
    cost = Cost(len(incident) - len(traced) - 1, len(traced), max(traced, default=0) / eager, sum(incident) / eager)
    return plugin, cost


def culprit(planted: Fault) -> str:
    """The line of the culprit, as `file:line`; a dash for a fault that no line is guilty of."""
    marker = planted.accepted[0].marker
    if marker is None:
        return "-"
    path, line, _ = culprit_line(marker)
    return f"{path.name}:{line}"


def ten_faults() -> list[Fault]:
    """Faults of every kind, in fp16."""
    return [fault(name) for name in TEN]


def _fit(planted: Fault, model: Planted, plugin: Any, **options: Any) -> None:
    data = DataLoader(batches(planted, faulty=(FAULTY,), count=COUNT), batch_size=None)  # type: ignore[arg-type]
    trainer = quiet_trainer(plugins=[plugin], **options)
    with contextlib.redirect_stdout(io.StringIO()):
        trainer.fit(model, data)
