"""The same training twice: with every incident run again under a trace, and with none. Nothing else may differ."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from mp_plugin import AdaptivePrecision, LossScaling, Telemetry
from mp_plugin.telemetry.events import Incident
from tests.helpers.training import quiet_trainer, regression_data

TOO_HIGH = 2.0**20
"""A loss scale at which the backward pass of a regression overflows fp16, with a finite loss."""

HOOKS = sorted(name for name in dir(Callback) if name.startswith("on_") or name in ("setup", "teardown"))


class Twin(NamedTuple):
    """What is left of a training."""

    plugin: AdaptivePrecision
    model: Any
    trainer: pl.Trainer
    events: list[tuple[str, Any]]
    """Every call of a callback's hook, in order, with the numbers that it was given."""
    draws: list[float]
    """What each random stream gives next."""

    @property
    def traced(self) -> list[Incident]:
        """The incidents that were run again under a trace."""
        return [incident for incident in self.plugin.incidents if incident.traced]

    @property
    def state(self) -> dict[str, Any]:
        """Weights, buffers and the state of each optimizer."""
        optimizers = {str(place): each.state_dict() for place, each in enumerate(self.trainer.optimizers)}
        return {"model": self.model.state_dict(), "buffers": dict(self.model.named_buffers()), **optimizers}

    @property
    def metrics(self) -> dict[str, Any]:
        """What was logged last, to the progress bar and for callbacks; epoch means among it."""
        return {**self.trainer.callback_metrics, "bar": self.trainer.progress_bar_metrics}

    @property
    def csv(self) -> str:
        """What a logger wrote down, step by step."""
        return Path(self.trainer.log_dir, "metrics.csv").read_text()  # type: ignore[arg-type]


class Recorder(Callback):
    """Writes down each call of each hook."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def state_key(self) -> str:  # type: ignore[override]
        return "recorder"


def _record(hook: str) -> Callable[..., None]:
    def record(self: Recorder, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        given = {str(place): each for place, each in enumerate(args) if isinstance(each, torch.Tensor | dict | int)}
        tensors = torch.utils._pytree.tree_map(_number, given) if hook != "on_save_checkpoint" else None
        self.events.append((hook, tensors))

    return record


for _hook in HOOKS:
    if _hook not in ("on_save_checkpoint", "on_load_checkpoint"):
        setattr(Recorder, _hook, _record(_hook))


def _number(value: Any) -> Any:
    return repr(value.detach().double().sum().item()) if isinstance(value, torch.Tensor) else value


def train(
    make: Callable[[], Any],
    *,
    max_traced: int,
    precision: str = "fp16",
    directory: Path | None = None,
    data: Any = None,
    scaling: LossScaling | None = None,
    prepare: Callable[[Any], Any] = lambda model: model,
    plugin: AdaptivePrecision | None = None,
    **options: Any,
) -> Twin:
    """Train a model.

    Args:
        make: builds it.
        max_traced: incidents that are run again under a trace.
        precision: of the plugin.
        directory: where a `CSVLogger` writes; without one there is no logger.
        data: batches, by default those of the regression.
        scaling: for fp16, by default a scale that is too high for the first batches.
        prepare: what is done to the model before, such as compiling it.
        plugin: one that was used before, in place of a new one.
        options: for the trainer.
    """
    if precision == "fp16":
        scaling = scaling or LossScaling(init_scale=TOO_HIGH, retries=20)
    telemetry = Telemetry(max_traced=max_traced)
    plugin = plugin or AdaptivePrecision(precision, scaling=scaling, telemetry=telemetry)
    pl.seed_everything(3, verbose=False)
    model, recorder = make(), Recorder()
    logger = CSVLogger(directory, name=f"{precision}-{max_traced}") if directory is not None else False
    options = {"logger": logger, "log_every_n_steps": 1, **options}
    options["callbacks"] = [*options.get("callbacks", []), recorder]
    trainer = quiet_trainer(plugins=[plugin], **options)
    trainer.fit(prepare(model), regression_data() if data is None else data)
    draws = [random.random(), float(np.random.rand()), torch.rand(1).item()]
    return Twin(plugin, model, trainer, recorder.events, draws)


def twins(make: Callable[[], Any], **options: Any) -> tuple[Twin, Twin]:
    """Train with every incident traced, and with none."""
    traced, plain = train(make, max_traced=20, **options), train(make, max_traced=0, **options)
    assert traced.traced, traced.plugin.incidents
    assert not plain.traced
    return traced, plain


def same(traced: Twin, plain: Twin) -> None:
    """Nothing of a trace is left in what a training leads to.

    Raises:
        AssertionError: for the first difference.
    """
    for name in ("step", "action", "cured", "loss_scale"):
        one, other = ([getattr(each, name) for each in twin.plugin.incidents] for twin in (traced, plain))
        assert one == other, name
    equal(traced.state, plain.state)
    equal(traced.metrics, plain.metrics)
    assert traced.events == plain.events
    assert traced.draws == plain.draws


def equal(actual: Any, expected: Any) -> None:
    """Bit by bit, NaN included."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
