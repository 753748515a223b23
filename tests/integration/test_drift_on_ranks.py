"""Two gloo processes see their own validation batches, and tell of one drift."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from mp_plugin import AdaptivePrecision, Telemetry
from tests.helpers.ranks import run_on_ranks
from tests.helpers.sharding import FSDPOnCPU, on_both, whole_state
from tests.helpers.training import Regression, assert_bitwise_equal, quiet_trainer, regression_data

pytestmark = pytest.mark.xdist_group("ranks")


class Validated(Regression):
    policy = MixedPrecisionPolicy()

    def configure_model(self) -> None:
        if isinstance(self.trainer.strategy, ModelParallelStrategy):
            for layer in (self.net[0], self.net[2], self.net):
                fully_shard(layer, mesh=self.device_mesh["data_parallel"], mp_policy=self.policy)  # type: ignore[index]

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = self.net(batch[0])
        self.log("val_output", outputs.float().sum(), sync_dist=True)
        return torch.nn.functional.mse_loss(outputs.float(), batch[1].float())


class GatheredInHalf(Validated):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)


class FailsOnRankOne(Validated):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().validation_step(batch, batch_idx)
        if self.trainer.global_rank == 1 and not torch.is_autocast_enabled("cpu"):
            raise RuntimeError("no FP32 here")
        return loss


class StaysInTraining(Validated):
    def on_validation_model_eval(self) -> None:
        pass


class FewerOnRankOne(Validated):
    def val_dataloader(self) -> Any:
        return regression_data(batches=1 if self.trainer.global_rank == 1 else 3)


def whole_unit() -> Strategy:
    return FSDPOnCPU()


def unit_by_layer() -> Strategy:
    return FSDPOnCPU(auto_wrap_policy={torch.nn.Linear})


def flat_units() -> Strategy:
    return FSDPOnCPU(auto_wrap_policy={torch.nn.Linear}, use_orig_params=False)


def fully_sharded() -> Strategy:
    return ModelParallelStrategy(2, 1)


MEASURED: dict[str, Callable[[], Any]] = {
    "ddp": lambda: "ddp",
    "fsdp1 whole": whole_unit,
    "fsdp1 by layer": unit_by_layer,
    "fsdp1 flat": flat_units,
    "fsdp2": fully_sharded,
}
LEFT_OUT: dict[str, tuple[type[Validated], str, Callable[[], Any], str]] = {
    "fsdp1 in half": (Validated, "bf16_true", unit_by_layer, "the weights are sharded in bf16"),
    "fsdp2 in half": (Validated, "bf16_true", fully_sharded, "the weights are sharded in bf16"),
    "fsdp2 gathers in half": (GatheredInHalf, "bf16", fully_sharded, "the policy of fully_shard gathers the weights"),
    "fsdp1 in training mode": (StaysInTraining, "bf16", unit_by_layer, "FSDP gathers the weights as its policy says"),
    "ddp, one rank fails": (FailsOnRankOne, "bf16", lambda: "ddp", "RuntimeError: no FP32 here"),
    "fsdp1, one rank fails": (FailsOnRankOne, "bf16", unit_by_layer, "RuntimeError: no FP32 here"),
    "fsdp2, one rank fails": (FailsOnRankOne, "bf16", fully_sharded, "RuntimeError: no FP32 here"),
}


class SGD(torch.optim.SGD):
    """Takes the parameters of the wrapper, which are flat ones in some cases."""


def fit(model: Validated, precision: str, strategy: Any, directory: Path, *, every: int, **options: Any) -> Any:
    telemetry = Telemetry(drift_every_n_validations=every, drift_batches=8, directory=str(directory))
    plugin = AdaptivePrecision(precision, telemetry=telemetry)
    torch.manual_seed(3)
    trainer = quiet_trainer(plugins=[plugin], strategy=strategy, devices=2, max_epochs=2, **options)
    model.make_optimizer = lambda _, **kwargs: SGD(trainer.model.parameters(), **kwargs)  # type: ignore[union-attr]
    data = () if isinstance(model, FewerOnRankOne) else (regression_data(),)
    trainer.fit(model, regression_data(batches=4), *data)
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {
        "weights": whole_state(trainer.strategy.model, is_fsdp1=isinstance(trainer.strategy, FSDPOnCPU)),
        "drift": {name: value for name, value in metrics.items() if "/drift/" in name},
        "output": metrics["val_output"],
    }


class Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def train_all(out: Path) -> None:
    rank, messages = os.environ["RANK"], Messages()
    logging.getLogger("mp_plugin.drift").addHandler(messages)
    for name, strategy in MEASURED.items():
        for every in (0, 1):
            result = fit(Validated(), "bf16", strategy(), out / name, every=every)
            torch.save(result, out / f"{name}-{every}-rank{rank}.pt")
    options = {"use_distributed_sampler": False}
    torch.save(fit(FewerOnRankOne(), "bf16", "ddp", out / "fewer", every=1, **options), out / f"fewer-rank{rank}.pt")
    assert messages.texts == []
    for name, (model, precision, strategy, _) in LEFT_OUT.items():
        messages.texts.clear()
        result = fit(model(), precision, strategy(), out / name, every=1)
        torch.save({**result, "told": messages.texts}, out / f"{name}-rank{rank}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drift")
    run_on_ranks(train_all, out)
    return out


def events_in(directory: Path) -> list[dict[str, Any]]:
    file = directory / "telemetry" / "incidents.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [line for line in map(json.loads, lines) if line.get("event") == "drift"]


@pytest.mark.parametrize("name", MEASURED)
def test_the_batches_of_all_ranks_count(name: str, trained: Path) -> None:
    one, other = on_both(trained, f"{name}-1")
    assert one["drift"] == other["drift"]
    net = Regression().net
    net.load_state_dict({each.removeprefix("net."): value for each, value in one["weights"].items()})
    inputs, targets = regression_data().dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = net(inputs).double()
    with torch.no_grad():
        fp32 = net(inputs).double()
    events = events_in(trained / name)
    assert [event["epoch"] for event in events] == [0, 1]
    assert (events[1]["batches"], events[1]["logits"]) == (8, 32)
    assert events[1]["logits_relative_error"] == pytest.approx(float((low - fp32).norm() / fp32.norm()), rel=1e-4)
    assert events[1]["fp32_loss"] == pytest.approx(float((fp32 - targets).square().mean()), rel=1e-6)
    assert one["drift"]["precision/drift/loss_difference"] == pytest.approx(events[1]["loss_difference"], rel=1e-6)


@pytest.mark.parametrize("name", MEASURED)
def test_training_and_validation_are_the_same_without(name: str, trained: Path) -> None:
    for without, with_drift in zip(on_both(trained, f"{name}-0"), on_both(trained, f"{name}-1"), strict=True):
        assert_bitwise_equal(list(with_drift["weights"].values()), list(without["weights"].values()))
        assert with_drift["output"] == without["output"]
        assert without["drift"] == {}


def test_a_rank_may_have_fewer_batches(trained: Path) -> None:
    assert [event["batches"] for event in events_in(trained / "fewer")] == [4, 4]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_cannot_be_measured_is_told_once(name: str, trained: Path) -> None:
    one, other = on_both(trained, name)
    (told,) = one["told"]
    assert told.startswith(f"Drift cannot be measured ({LEFT_OUT[name][3]}")
    assert other["told"] == []
    assert events_in(trained / name) == []
    assert one["drift"] == other["drift"] == {}
