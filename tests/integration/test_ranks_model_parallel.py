"""ModelParallelStrategy on two gloo processes: FSDP2, tensor parallelism, and plain weights beside sharded ones."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from mp_plugin.errors import TrainingDivergedError, UnsupportedError
from tests.helpers.ranks import run_on_ranks
from tests.helpers.sharding import (
    ANSWERS,
    FEASIBLE,
    LostOnRankOne,
    SpoiledOnRankOne,
    TwoOptimizers,
    counters,
    on_both,
    plugin_for,
    spoil_on_rank_one,
    train,
    train_with_each_answer,
    without_batch,
)
from tests.helpers.training import Regression, regression_data

pytestmark = pytest.mark.xdist_group("ranks")


def all_layers(module: Any) -> None:
    """The last bias has one element: rank 1 holds no part of it."""
    fully_shard(module.net, mesh=module.device_mesh["data_parallel"])


def first_layer(module: Any) -> None:
    fully_shard(module.net[0], mesh=module.device_mesh["data_parallel"])


def two_meshes(module: Any) -> None:
    first_layer(module)
    fully_shard(module.net[-1], mesh=init_device_mesh("cpu", (2,), mesh_dim_names=("another",)))


def tensor_parallel(module: Any) -> None:
    layers = {"0": ColwiseParallel(), str(len(module.net) - 1): RowwiseParallel()}
    parallelize_module(module.net, module.device_mesh["tensor_parallel"], layers)


SHARDING = {"all layers": all_layers, "first layer": first_layer, "two meshes": two_meshes}


def sharded(sharding: str, model: type[Regression], **options: Any) -> tuple[Regression, ModelParallelStrategy]:
    class Sharded(model):  # type: ignore[misc, valid-type]
        def configure_model(self) -> None:
            shard(self)

    shard = tensor_parallel if sharding == "tensor parallel" else SHARDING[sharding]
    sizes = (1, 2) if sharding == "tensor parallel" else (2, 1)
    return Sharded(**options), ModelParallelStrategy(*sizes)


class SpoiledWithoutNorm(Regression):
    on_after_backward = spoil_on_rank_one


class ClippedTooEarly(Regression):
    """In manual optimization, a backward pass after the gradients were clipped, and so unscaled."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx))
        self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizer.step()


def train_all(out: Path) -> None:
    """Train every variant on this rank, and write down what came of it."""
    rank = int(os.environ["RANK"])
    train_with_each_answer({sharding: partial(sharded, sharding) for sharding in SHARDING}, out, rank)

    cut = without_batch(1, regression_data(batches=4))
    for answer in ("fp16", "bf16"):
        result = train(*sharded("tensor parallel", SpoiledWithoutNorm), plugin_for(answer))
        healthy = plugin_for(answer, init_scale=FEASIBLE)
        expected = train(*sharded("tensor parallel", Regression), healthy, data=cut)["weights"]
        torch.save({**result, "expected": expected}, out / f"tensor parallel-{answer}-rank{rank}.pt")

    for precision, clipping in [
        ("fp32", {}),
        ("fp16", {}),
        ("fp32", {"gradient_clip_val": 0.1}),
        ("fp32", {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    ]:
        results = {"ddp": train(Regression(), "ddp", plugin_for(precision), **clipping)}
        for sharding in [*SHARDING, "tensor parallel"]:
            results[sharding] = train(*sharded(sharding, Regression), plugin_for(precision), **clipping)
        torch.save(results, out / f"parity-{precision}-{len(clipping)}-rank{rank}.pt")

    window = {"accumulate_grad_batches": 2}
    results = {"ddp": train(SpoiledOnRankOne(), "ddp", plugin_for("fp16"), **window)}
    results |= {name: train(*sharded(name, SpoiledOnRankOne), plugin_for("fp16"), **window) for name in SHARDING}
    torch.save(results, out / f"window-rank{rank}.pt")

    results = {"ddp": train(TwoOptimizers(), "ddp", plugin_for("fp16"))}
    results |= {sharding: train(*sharded(sharding, TwoOptimizers), plugin_for("fp16")) for sharding in SHARDING}
    torch.save(results, out / f"two-rank{rank}.pt")

    scaling = {"growth_interval": 3, "hysteresis": 2}
    for kind in ("file", "folder"):
        for run, epochs, files in [
            ("uninterrupted", 2, {}),
            ("first", 1, {"save": out / kind}),
            ("resumed", 2, {"resume": out / kind}),
        ]:
            module, _ = sharded("all layers", SpoiledOnRankOne, optimizer=torch.optim.AdamW)
            strategy = ModelParallelStrategy(2, 1, save_distributed_checkpoint=kind == "folder")
            result = train(module, strategy, plugin_for("fp16", **scaling), max_epochs=epochs, **files)
            torch.save(result, out / f"{run}-{kind}-rank{rank}.pt")

    try:
        train(*sharded("all layers", LostOnRankOne), plugin_for("bf16"))
    except TrainingDivergedError as error:
        (out / f"lost-rank{rank}.txt").write_text(str(error))
    try:
        train(*sharded("all layers", ClippedTooEarly), plugin_for("fp16"))
    except UnsupportedError as error:
        (out / f"clipped-rank{rank}.txt").write_text(str(error))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model_parallel")
    run_on_ranks(train_all, out)
    return out


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("sharding", SHARDING)
def test_inf_on_one_rank_is_answered_by_both(trained: Path, sharding: str, answer: str, fused: bool) -> None:
    ranks = on_both(trained, f"{sharding}-{answer}-{fused}")
    for rank in ranks:
        torch.testing.assert_close(rank["weights"], rank["expected"], rtol=0, atol=0)
        assert rank["scale"] == (1 if answer == "bf16" else FEASIBLE)
        assert counters(rank) == ([4, 0, 1] if answer == "fp16-retried" else [3, 1, 0])
    named = [set(rank["summary"]["incidents"]["by_parameter"]) for rank in ranks]
    assert named == [{"net.0.weight"}] * 2


@pytest.mark.parametrize("answer", ["fp16", "bf16"])
def test_ranks_that_share_a_layer_answer_together(trained: Path, answer: str) -> None:
    for rank in on_both(trained, f"tensor parallel-{answer}"):
        torch.testing.assert_close(rank["weights"], rank["expected"], rtol=0, atol=0)
        assert counters(rank) == [3, 1, 0]


@pytest.mark.parametrize("sharding", [*SHARDING, "tensor parallel"])
@pytest.mark.parametrize("run", ["fp32-0", "fp32-1", "fp32-2", "fp16-0"], ids=["fp32", "by norm", "by value", "fp16"])
def test_sharded_training_equals_ddp(trained: Path, run: str, sharding: str) -> None:
    """Up to the order in which two ranks add; in fp16 tensor parallelism rounds a sum once more."""
    rtol, atol = (1e-2, 1e-3) if (run, sharding) == ("fp16-0", "tensor parallel") else (1e-5, 1e-6)
    for rank in on_both(trained, f"parity-{run}"):
        torch.testing.assert_close(rank[sharding]["weights"], rank["ddp"]["weights"], rtol=rtol, atol=atol)


@pytest.mark.parametrize("sharding", SHARDING)
def test_a_window_of_batches_is_skipped_as_a_whole(trained: Path, sharding: str) -> None:
    for rank in on_both(trained, "window"):
        torch.testing.assert_close(rank[sharding]["weights"], rank["ddp"]["weights"], rtol=1e-5, atol=1e-6)
        assert counters(rank[sharding]) == counters(rank["ddp"]) == [1, 1, 0]


@pytest.mark.parametrize("sharding", SHARDING)
def test_two_optimizers_are_clipped_apart(trained: Path, sharding: str) -> None:
    for rank in on_both(trained, "two"):
        torch.testing.assert_close(rank[sharding]["weights"], rank["ddp"]["weights"], rtol=1e-5, atol=1e-6)
        assert counters(rank[sharding]) == counters(rank["ddp"]) == [6, 0, 0]


@pytest.mark.parametrize("run", ["fp32-1", "fp32-2"], ids=["by norm", "by value"])
def test_clipping_changes_the_weights(trained: Path, run: str) -> None:
    """Else the test above would compare two trainings that never clipped."""
    free, clipped = on_both(trained, "parity-fp32-0")[0], on_both(trained, f"parity-{run}")[0]
    assert (free["ddp"]["weights"]["net.0.weight"] - clipped["ddp"]["weights"]["net.0.weight"]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_resumed_run_equals_an_uninterrupted_one(trained: Path, kind: str) -> None:
    runs = [on_both(trained, f"{name}-{kind}") for name in ("uninterrupted", "first", "resumed")]
    for whole, first, resumed in zip(*runs, strict=True):
        torch.testing.assert_close(resumed["weights"], whole["weights"], rtol=0, atol=0)
        assert resumed["scale"] == whole["scale"]
        assert counters(resumed) == counters(whole) != counters(first)


def test_weights_lost_on_one_rank_stop_both(trained: Path) -> None:
    messages = [(trained / f"lost-rank{rank}.txt").read_text() for rank in range(2)]
    assert "nan gradients in net.0.weight on rank 1; weights: net.0.weight was" in messages[0]
    assert "; 1 weights, 'net.0.weight' among them," in messages[0]
    assert messages[0] == messages[1]


def test_gradients_of_two_scales_are_told_apart_in_sharded_gradients_too(trained: Path) -> None:
    """FSDP2 adds to the local part of a gradient, and the gradient itself looks unchanged."""
    for rank in range(2):
        assert (
            "added scaled gradients to those that clip_gradients() has"
            in (trained / f"clipped-rank{rank}.txt").read_text()
        )
