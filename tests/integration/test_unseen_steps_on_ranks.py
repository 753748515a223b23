"""Two gloo processes that do not wait for their verdicts still act as one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD, AdamW

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.scaling.guard import StepGuard
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.scaling.step_plan import Route, StepPlan
from mp_plugin.scaling.unseen_step import settle, step_unseen
from mp_plugin.scaling.where import Where
from tests.helpers.ranks import run_on_ranks
from tests.helpers.sharding import FSDPOnCPU, counters, on_both, spoil_on_rank_one, without_batch
from tests.helpers.sharding import train as train_on_ranks
from tests.helpers.training import Regression, assert_bitwise_equal, quiet_trainer, regression_data, weights

pytestmark = pytest.mark.xdist_group("ranks")

SCALE = 2.0**10


class SpoiledOnRankOne(Regression):
    """After the ranks have exchanged their gradients those of rank 1 alone overflow, in batch 1."""

    def on_after_backward(self) -> None:
        if self.trainer.global_rank == 1 and self.trainer.fit_loop.batch_idx == 1:
            self.net[0].weight.grad.fill_(float("inf"))  # type: ignore[union-attr, operator]


class SpoiledWithoutNorm(Regression):
    """The same, of weights that may be sharded."""

    on_after_backward = spoil_on_rank_one


class Branches(Regression):
    """With layers of which each batch uses one, another one on each rank, and one that nobody uses."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.branches = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        used = (batch_idx + self.trainer.global_rank) % 3
        return super().training_step([self.branches[used](batch[0]), batch[1]], batch_idx)


class BranchesSpoiledOnRankOne(SpoiledOnRankOne, Branches):
    """Both."""


WAYS: dict[str, dict[str, Any]] = {
    "late": {"exact": False, "fused": True},
    "folded": {"exact": True, "fused": True},
    "one pass": {"exact": True, "foreach": True},
}
SHAPES: dict[str, tuple[type[Regression], str]] = {
    "plain": (SpoiledOnRankOne, "ddp"),
    "branches": (BranchesSpoiledOnRankOne, "ddp_find_unused_parameters_true"),
}
POLICIES = ("dynamic", "predictive")


def train(
    module: Regression, way: dict[str, Any], strategy: str, precision: str, data: Any, policy: str = "dynamic"
) -> dict[str, Any]:
    scaling = LossScaling(init_scale=SCALE, retries=0, policy=policy) if precision == "fp16" else None  # type: ignore[arg-type]
    plugin = AdaptivePrecision(precision, scaling=scaling, exact=way["exact"])
    options = {"strategy": strategy, "devices": 2, "use_distributed_sampler": False, "gradient_clip_val": 0.05}
    quiet_trainer(plugins=[plugin], **options).fit(module, data)
    return {
        "weights": weights(module),
        "summary": plugin.summary(),
        "scale": plugin.loss_scale,
        "plan": str(plugin.step_plan),
        "incidents": [(each.step, each.rank, list(each.parameters)) for each in plugin.incidents],
    }


def made(kind: type[Regression], way: dict[str, Any]) -> Regression:
    options = {name: value for name, value in way.items() if name != "exact"}
    return kind(optimizer=AdamW, lr=0.01, **options)


def train_all(out: Path) -> None:
    whole, cut = regression_data(batches=4), without_batch(1, regression_data(batches=4))
    for shape, (spoiled, strategy) in SHAPES.items():
        for name, way in WAYS.items():
            for precision in ("fp16", "bf16"):
                result = train(made(spoiled, way), way, strategy, precision, whole)
                save(result, out / f"{shape}-{name}-{precision}")
    for precision in ("fp16", "bf16"):
        for name, way in WAYS.items():
            oracle = train(made(Regression, way), way, "ddp", precision, cut)
            save(oracle, out / f"oracle-{name}-{precision}")
    for policy in POLICIES:
        for name, way in WAYS.items():
            data = regression_data(batches=20)
            save(train(made(Regression, way), way, "ddp", "fp16", data, policy), out / f"{policy}-{name}")
    for sharding in ("fsdp1", "fsdp2"):
        save(train_sharded(sharding), out / sharding)
    save(steps_by_hand(), out / "by-hand")
    save(broken_off(), out / "broken-off")


def save(result: dict[str, Any], path: Path) -> None:
    torch.save(result, f"{path}-rank{dist.get_rank() if dist.is_initialized() else 0}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unseen")
    run_on_ranks(train_all, out)
    return out


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_overflow_on_one_rank_skips_on_both(trained: Path, shape: str, way: str, precision: str) -> None:
    one, other = on_both(trained, f"{shape}-{way}-{precision}")
    assert_bitwise_equal(one["weights"], other["weights"])
    assert counters(one) == counters(other) == [3, 1, 0]
    assert one["scale"] == other["scale"] == (SCALE / 2 if precision == "fp16" else 1.0)
    assert one["incidents"] == other["incidents"] == [(1, 1, ["net.0.weight"])]
    routes = {
        "late": "folded into the optimizer, verdict one step later",
        "folded": "folded into the optimizer",
        "one pass": "clipped in one pass",
    }
    assert one["plan"] == other["plan"] == routes[way]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("way", WAYS)
def test_a_batch_that_both_skip_is_as_if_it_had_not_been_there(trained: Path, way: str, precision: str) -> None:
    (skipped, _), (oracle, _) = (on_both(trained, f"{run}-{way}-{precision}") for run in ("plain", "oracle"))
    assert counters(oracle) == [3, 0, 0]
    assert_bitwise_equal(skipped["weights"], oracle["weights"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", POLICIES)
def test_both_learn_the_same_scale(trained: Path, policy: str, way: str) -> None:
    one, other = on_both(trained, f"{policy}-{way}")
    exact, _ = on_both(trained, f"{policy}-folded")
    assert_bitwise_equal(one["weights"], other["weights"])
    assert counters(one) == [20, 0, 0]
    assert one["scale"] == other["scale"] == exact["scale"]
    assert (one["scale"] != SCALE) is (policy == "predictive")
    torch.testing.assert_close(one["weights"], exact["weights"], rtol=0, atol=1e-6)


# Sharded.


class ShardedByTorch(SpoiledWithoutNorm):
    def configure_model(self) -> None:
        for part in (self.net[0], self.net[2], self):
            fully_shard(part, mesh=self.device_mesh["data_parallel"])  # type: ignore[index, operator]


def train_sharded(sharding: str) -> dict[str, Any]:
    """With a fused optimizer and nobody to wait for: a part of a norm is no norm, and a DTensor no plain tensor."""
    strategy = FSDPOnCPU() if sharding == "fsdp1" else ModelParallelStrategy(2, 1)
    model = SpoiledWithoutNorm if sharding == "fsdp1" else ShardedByTorch
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=SCALE, retries=0), exact=False)
    module = model(optimizer=AdamW, lr=0.01, fused=True)
    options = {} if sharding == "fsdp1" else {"gradient_clip_val": 0.05}
    result = train_on_ranks(module, strategy, plugin, **options)
    return {**result, "plan": str(plugin.step_plan)}


@pytest.mark.parametrize("sharding", ["fsdp1", "fsdp2"])
def test_sharded_gradients_stay_on_the_separate_route(trained: Path, sharding: str) -> None:
    one, other = on_both(trained, sharding)
    assert one["plan"] == other["plan"] == "checked separately"
    assert_bitwise_equal([*one["weights"].values()], [*other["weights"].values()])
    assert counters(one) == counters(other) == [3, 1, 0]
    assert one["scale"] == other["scale"] == SCALE / 2


# By hand, where one rank has no gradients, or no overflow, of its own.


def steps_by_hand() -> dict[str, Any]:
    """Rank 0 has gradients and rank 1 none; the second of three steps overflows."""
    layer = nn.Linear(1, 1, bias=False)
    nn.init.ones_(layer.weight)
    optimizer = SGD(layer.parameters(), lr=0.25, fused=True)
    guard = StepGuard(LossScaler(LossScaling(init_scale=4.0)), dtype="fp16")
    plan = StepPlan(route=Route.folded, max_norm=1.0, is_exact=False)
    seen, overflowed = [], []
    for batch_idx, gradient in enumerate((0.5, float("inf"), 4.0)):
        layer.weight.grad = torch.full((1, 1), gradient * guard.loss_scale) if dist.get_rank() == 0 else None
        guard.saw_loss(torch.ones(()))
        settle(guard, layer)
        where = Where(batch_idx=batch_idx, rank=dist.get_rank())
        note: Callable[[Tensor], None] = lambda found: overflowed.append(found.item())  # noqa: E731
        step_unseen(guard, optimizer, plan, lambda: None, where=where, on_overflow=note)
        guard.forget_losses()
        guard.scaler.update()  # type: ignore[union-attr]
        seen.append(layer.weight.item())
    settle(guard, layer)
    guard.scaler.finish()  # type: ignore[union-attr]
    record = guard.record
    return {
        "weight": seen,
        "overflowed": overflowed,
        "counters": [record.effective_step, record.skipped_steps],
        "blame": [(each.rank, list(each.parameters)) for each in record.incidents],
        "scale": guard.loss_scale,
    }


def test_a_rank_without_gradients_takes_part(trained: Path) -> None:
    one, other = on_both(trained, "by-hand")
    # The last gradient is clipped from 4 to 1; the other rank has nothing to step with.
    assert one.pop("weight") == pytest.approx([0.875, 0.875, 0.625], abs=1e-6)
    assert other.pop("weight") == [1.0, 1.0, 1.0]
    assert one == other
    assert one == {
        "overflowed": [0.0, 1.0, 0.0],
        "counters": [2, 1],
        "blame": [(0, ["weight"])],
        "scale": 2.0,
    }


class BreaksOnRankOne(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == 2:
            raise ZeroDivisionError("on purpose")
        return super().training_step(batch, batch_idx)


def broken_off() -> dict[str, Any]:
    """An exception while a verdict is outstanding counts the step, and asks no other rank."""
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=SCALE), exact=False)
    trainer = quiet_trainer(plugins=[plugin], strategy="ddp", devices=2, use_distributed_sampler=False)
    broke = False
    try:
        trainer.fit(BreaksOnRankOne(fused=True), regression_data(batches=4))
    except ZeroDivisionError:
        broke = True
    return {"broke": broke, "outstanding": plugin.guard.outstanding is not None, "taken": plugin.effective_step}


def test_a_run_that_breaks_off_asks_nobody(trained: Path) -> None:
    assert on_both(trained, "broken-off") == [{"broke": True, "outstanding": False, "taken": 2}] * 2
