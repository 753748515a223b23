"""Validation batches that are run in FP32 too: the numbers, and that nothing else remains of it."""

import copy
import csv
import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.nn import BatchNorm1d, Linear, Sequential, Tanh
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from mp_plugin import AdaptivePrecision, Fallback, Telemetry
from tests.helpers.training import Regression, assert_bitwise_equal, quiet_trainer, regression_data

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16, "bf16_true": torch.bfloat16, "fp16_true": torch.float16}


class Validated(Regression):
    """Returns the loss of its validation batches, and logs it."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = self.net(batch[0])
        loss = torch.nn.functional.mse_loss(outputs.float(), batch[1].float())
        self.log("val_loss", loss)
        return loss


def plugin_of(
    precision: str, directory: Path, *, every: int = 1, batches: int = 4, **options: Any
) -> AdaptivePrecision:
    drift = {"drift_every_n_validations": every, "drift_batches": batches}
    # Without samples, which measure time: two runs are to log the same.
    telemetry = Telemetry(every_n_steps=0, directory=str(directory), **drift)
    return AdaptivePrecision(precision, telemetry=telemetry, **options)


def fitted(plugin: AdaptivePrecision, model: Any, data: Any = None, **options: Any) -> Any:
    trainer = quiet_trainer(plugins=[plugin], **options)
    trainer.fit(model, regression_data(), data or regression_data())
    return trainer


def events_in(directory: Path) -> list[dict[str, Any]]:
    file = directory / "telemetry" / "incidents.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line for line in lines if line.get("event") == "drift"]


def drift_metrics(trainer: Any) -> dict[str, float]:
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {name.removeprefix("precision/drift/"): each for name, each in found.items() if "/drift/" in name}


# The numbers.


@pytest.mark.parametrize("precision", HALF)
def test_it_is_what_two_passes_by_hand_differ_by(precision: str, tmp_path: Path) -> None:
    model = Validated()
    trainer = fitted(plugin_of(precision, tmp_path, batches=3), model)
    squares, norms, losses = 0.0, 0.0, [0.0, 0.0]
    in_fp32 = copy.deepcopy(model.net).float()
    for inputs, targets in list(regression_data())[:3]:
        if precision.endswith("true"):
            inputs, targets = inputs.to(HALF[precision]), targets.to(HALF[precision])
            low = model.net(inputs)
        else:
            with torch.autocast("cpu", HALF[precision]):
                low = model.net(inputs)
        fp32 = in_fp32(inputs.float())
        squares += (low.double() - fp32.double()).square().sum().item()
        norms += fp32.double().square().sum().item()
        for place, outputs in enumerate((low, fp32)):
            losses[place] += torch.nn.functional.mse_loss(outputs.float(), targets.float()).item() / 3
    (event,) = events_in(tmp_path)
    assert 1e-5 < event["logits_relative_error"] < 1e-1
    assert event["logits_relative_error"] == pytest.approx((squares / norms) ** 0.5, rel=1e-9)
    assert event["loss_difference"] == pytest.approx(losses[0] - losses[1], rel=1e-9)
    assert (event["step"], event["epoch"], event["batches"], event["logits"]) == (8, 0, 3, 12)
    names = ("logits_relative_error", "loss_difference", "loss_relative_difference")
    assert drift_metrics(trainer) == {name: pytest.approx(event[name], rel=1e-6) for name in names}


class Rounded(Validated):
    """Its second class wins by less than the format can tell: there the two are equal, and the first one wins."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.classes = Linear(1, 2, bias=False)
        self.classes.weight.data = torch.tensor([[1.0], [1.0 + gain]])

    def forward(self, inputs: Tensor) -> Tensor:
        return self.classes(inputs)  # type: ignore[no-any-return]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self(batch[0])


@pytest.mark.parametrize(("precision", "gain"), [("fp16", 2.0**-12), ("bf16", 2.0**-9)])
def test_a_known_loss_of_precision_and_its_flipped_predictions(precision: str, gain: float, tmp_path: Path) -> None:
    # Of a negative input the first class is the largest in both formats.
    inputs = torch.tensor([[1.0], [2.0], [-1.0], [4.0]])
    data = DataLoader(TensorDataset(inputs, inputs), batch_size=2)
    fitted(plugin_of(precision, tmp_path), Rounded(gain), data)
    (event,) = events_in(tmp_path)
    assert event["logits_relative_error"] == pytest.approx(gain / (1 + (1 + gain) ** 2) ** 0.5, rel=1e-6)
    assert (event["changed_predictions"], event["predictions"]) == (0.75, 4)
    assert (event["loss"], event["loss_difference"]) == (None, None)


def test_logits_that_overflow_are_told(tmp_path: Path) -> None:
    model = Rounded(0.0)
    model.classes.weight.data = torch.tensor([[1.0], [400.0]])
    inputs = torch.tensor([[200.0], [100.0]])
    trainer = fitted(plugin_of("fp16", tmp_path), model, DataLoader(TensorDataset(inputs), batch_size=2))
    (event,) = events_in(tmp_path)
    assert (event["logits_relative_error"], event["lost_logits"]) == (None, 1)
    assert drift_metrics(trainer)["logits_relative_error"] == float("inf")


def test_layers_in_fp32_drift_less(tmp_path: Path) -> None:
    for name, fallback in (("without", None), ("with", Fallback(layers=["net.0", "net.2"]))):
        fitted(plugin_of("bf16_true", tmp_path / name, fallback=fallback), Validated())
    (without,), (with_islands,) = events_in(tmp_path / "without"), events_in(tmp_path / "with")
    assert 0 < with_islands["logits_relative_error"] < without["logits_relative_error"]


@pytest.mark.parametrize("whole", [False, True], ids=["a layer", "the whole model"])
def test_compiled_code_runs_eagerly(whole: bool, tmp_path: Path) -> None:
    for name in ("eager", "compiled"):
        model: Any = Silent()
        if name == "compiled" and whole:
            model = torch.compile(model, backend="eager")
        elif name == "compiled":
            model.net.compile(backend="eager")
        quiet_trainer(plugins=[plugin_of("bf16", tmp_path / name)]).validate(model, regression_data(), verbose=False)
    torch._dynamo.reset()
    one, other = ({**events_in(tmp_path / name)[0], "run": "", "time": ""} for name in ("eager", "compiled"))
    assert one == other
    assert one["logits_relative_error"] > 0


# When.


@pytest.mark.parametrize(("every", "expected"), [(0, []), (1, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (9, [0])])
def test_every_so_many_validation_runs_from_the_first(every: int, expected: list[int], tmp_path: Path) -> None:
    fitted(plugin_of("bf16", tmp_path, every=every), Validated(), max_epochs=5, num_sanity_val_steps=2)
    assert [event["epoch"] for event in events_in(tmp_path)] == expected


class Counting(Validated):
    """Writes down the format of each pass outside of the module, where nothing takes it back."""

    passes: list[torch.dtype] = []

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        Counting.passes.append(self.net(batch[0]).dtype)
        return super().validation_step(batch, batch_idx)


def test_it_costs_two_forward_passes_a_batch(tmp_path: Path) -> None:
    Counting.passes = []
    fitted(plugin_of("bf16", tmp_path, batches=2), Counting(), num_sanity_val_steps=1)
    low, fp32 = torch.bfloat16, torch.float32
    assert Counting.passes == [low] + [low, low, fp32] * 2 + [low] * 6


def test_a_run_in_fp32_has_none(tmp_path: Path) -> None:
    assert drift_metrics(fitted(plugin_of("fp32", tmp_path), Validated())) == {}
    assert events_in(tmp_path) == []


def test_validation_outside_of_a_fit(tmp_path: Path) -> None:
    trainer = quiet_trainer(plugins=[plugin_of("bf16", tmp_path)])
    (results,) = trainer.validate(Validated(), regression_data(), verbose=False)
    (event,) = events_in(tmp_path)
    assert results["precision/drift/loss_difference"] == pytest.approx(event["loss_difference"], rel=1e-6)
    assert event["logits_relative_error"] > 0


@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"barebones": True}], ids=str)
def test_where_nothing_is_written_or_logged(options: dict[str, Any], tmp_path: Path) -> None:
    plugin = plugin_of("bf16", tmp_path)
    defaults = {"logger": None, "enable_checkpointing": None, "enable_progress_bar": None, "enable_model_summary": None}
    trainer = quiet_trainer(plugins=[plugin], **(defaults if "barebones" in options else {}), **options)
    trainer.fit(Silent(), regression_data(), regression_data())
    assert len(events_in(tmp_path)) == ("barebones" in options)


class Silent(Validated):
    """Logs nothing."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return torch.nn.functional.mse_loss(self.net(batch[0]).float(), batch[1])


# Nothing else remains.


class Careless(Validated):
    """Its validation step draws random numbers, counts, measures, and writes to its buffers and its batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Sequential(Linear(8, 16), BatchNorm1d(16), Tanh(), Linear(16, 1))
        self.mean, self.seen, self.drawn = MeanMetric(), [], 0.0
        self.register_buffer("total", torch.zeros(3))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        noise = float(torch.rand(())) + random.random() + float(np.random.random())
        self.drawn += noise
        batch[0].mul_(0.5)
        targets = batch.pop(1)
        self.net[1].train()
        outputs = self.net(torch.nn.functional.dropout(batch[0], 0.3, training=True))
        self.net[1].eval()
        self.total.add_(outputs.float().abs().sum().to(self.total) * noise)  # type: ignore[operator]
        loss = torch.nn.functional.mse_loss(outputs.float(), targets.float())
        self.mean(loss)
        self.seen.append(batch_idx)
        self.log("val_mean", self.mean)
        self.log_dict({"val_loss": loss, "val_noise": noise})
        return {"loss": loss, "outputs": outputs}

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.log("val_input", batch[0].float().mean() * len(batch))


def leftovers(precision: str, directory: Path, every: int) -> dict[str, Any]:
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    model = Careless()
    logger = CSVLogger(directory, name="", version="")
    options = {"accumulate_grad_batches": 3, "val_check_interval": 2, "max_epochs": 2, "log_every_n_steps": 1}
    trainer = fitted(plugin_of(precision, directory, every=every, batches=2), model, logger=logger, **options)
    assert len(events_in(directory)) == (8 if every else 0)
    with (directory / "metrics.csv").open() as file:
        rows = [{name: value for name, value in row.items() if "/drift/" not in name} for row in csv.DictReader(file)]
    return {
        "tensors": [*model.state_dict().values(), torch.get_rng_state()],
        "rows": rows,
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items() if "/drift/" not in name},
        "held": (model.seen, model.drawn, random.getstate(), np.random.get_state()[1].tolist()),
    }


@pytest.mark.parametrize("precision", HALF)
def test_nothing_of_it_remains(precision: str, tmp_path: Path) -> None:
    without, with_drift = (leftovers(precision, tmp_path / name, every) for name, every in (("off", 0), ("on", 1)))
    assert_bitwise_equal(with_drift.pop("tensors"), without.pop("tensors"))
    assert with_drift == without


class Ragged:
    """A batch that Lightning knows nothing of."""

    def __init__(self, rows: list[tuple[Tensor, ...]]) -> None:
        self.inputs, self.targets = (torch.stack(column) for column in zip(*rows, strict=True))
        self.looks = 0


class TakesRagged(Silent):
    looks: list[tuple[int, float]] = []

    def validation_step(self, batch: Ragged, batch_idx: int) -> Any:
        batch.looks += 1
        batch.inputs.mul_(0.5)
        return super().validation_step((batch.inputs, batch.targets), batch_idx)

    def on_validation_batch_end(self, outputs: Any, batch: Ragged, batch_idx: int) -> None:
        self.looks.append((batch.looks, float(batch.inputs.sum())))


def test_a_batch_of_any_class_is_as_the_validation_step_left_it(tmp_path: Path) -> None:
    data = DataLoader(regression_data().dataset, batch_size=4, collate_fn=Ragged)
    looks: list[list[tuple[int, float]]] = []
    for every in (0, 1):
        TakesRagged.looks = []
        fitted(plugin_of("bf16", tmp_path, every=every), TakesRagged(), data)
        looks.append(TakesRagged.looks)
    assert looks[0] == looks[1]
    assert looks[0][0][0] == 1
    assert len(events_in(tmp_path)) == 1


def test_both_passes_begin_alike(tmp_path: Path) -> None:
    # With other random numbers, or half the batch, the two would be far apart.
    fitted(plugin_of("bf16", tmp_path), Careless())
    (event,) = events_in(tmp_path)
    assert 0 < event["logits_relative_error"] < 0.02


def test_the_csv_log_has_the_metrics(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    fitted(plugin_of("bf16", tmp_path), Validated(), logger=logger, max_epochs=2)
    with (tmp_path / "metrics.csv").open() as file:
        logged = [float(row["precision/drift/loss_difference"]) for row in csv.DictReader(file) if row["val_loss"]]
    assert logged == pytest.approx([event["loss_difference"] for event in events_in(tmp_path)], rel=1e-6)


# What cannot be done is told once.


class TakesIterator(Validated):
    def validation_step(self, dataloader_iter: Any) -> Any:
        batch, _, _ = next(dataloader_iter)
        return super().validation_step(batch, 0)


class HalfInside(Validated):
    """Keeps a half tensor where nobody finds it, which FP32 weights do not go with."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return super().validation_step([batch[0].bfloat16(), batch[1]], batch_idx)


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
@pytest.mark.parametrize(
    ("precision", "model", "reason"),
    [("bf16", TakesIterator, "validation_step takes the iterator"), ("bf16_true", HalfInside, "RuntimeError: ")],
)
def test_what_cannot_run_again_is_told_once(
    precision: str, model: Any, reason: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="mp_plugin.drift"):
        trainer = fitted(plugin_of(precision, tmp_path), model(), max_epochs=3)
    (message,) = [each.getMessage() for each in caplog.records if each.name == "mp_plugin.drift"]
    assert message.startswith(f"Drift cannot be measured ({reason}")
    assert trainer.current_epoch == 3
    assert trainer.callback_metrics["val_loss"].isfinite()
    assert drift_metrics(trainer) == {}
    assert events_in(tmp_path) == []
    if precision == "bf16_true":
        assert {each.dtype for each in trainer.lightning_module.parameters()} == {torch.bfloat16}
