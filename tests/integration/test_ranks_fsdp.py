"""FSDP1 on two gloo processes: what one rank finds in its part of the weights, both act on."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.fsdp.wrap import wrap

from mp_plugin import LossScaling
from mp_plugin.errors import TrainingDivergedError
from mp_plugin.scaling.scaler import LossScaler
from tests.helpers.ranks import run_on_ranks
from tests.helpers.sharding import (
    ANSWERS,
    FEASIBLE,
    FSDPOnCPU,
    LostOnRankOne,
    SpoiledOnRankOne,
    TwoOptimizers,
    counters,
    on_both,
    plugin_for,
    train,
    train_with_each_answer,
)
from tests.helpers.training import Regression

pytestmark = pytest.mark.xdist_group("ranks")

WRAPPING: dict[str, dict[str, Any]] = {
    "whole": {},
    "by layer": {"auto_wrap_policy": {torch.nn.Linear}},
    "flat": {"auto_wrap_policy": {torch.nn.Linear}, "use_orig_params": False},
}


def wrap_layers(module: Any) -> None:
    for layer in (0, 2):
        module.net[layer] = wrap(module.net[layer], device_id=torch.device("cpu"))


class WrappedByHand(Regression):
    """Two FSDP roots, and no FSDP around them."""

    configure_model = wrap_layers


class TwoOptimizersByHand(TwoOptimizers):
    """Lightning can run no backward pass inside a root that is wrapped around `training_step`."""

    configure_model = wrap_layers


def sharded(wrapping: str, model: type[Regression], **options: Any) -> tuple[Regression, FSDPOnCPU]:
    return model(**options), FSDPOnCPU(**WRAPPING[wrapping])


def train_all(out: Path) -> None:
    """Train every variant on this rank, and write down what came of it."""
    rank = int(os.environ["RANK"])
    train_with_each_answer({wrapping: partial(sharded, wrapping) for wrapping in WRAPPING}, out, rank)

    for precision, clipping in [("fp32", {}), ("fp16", {}), ("fp32", {"gradient_clip_val": 0.1})]:
        name = f"{precision}-{len(clipping)}"
        strategies = {"ddp": "ddp", "whole": FSDPOnCPU(), "by layer": FSDPOnCPU(auto_wrap_policy={torch.nn.Linear})}
        models = dict.fromkeys(strategies, Regression) | {"by hand": WrappedByHand}
        strategies["by hand"] = FSDPOnCPU()
        results = {
            kind: train(
                models[kind](), strategies[kind], plugin_for(precision), use_distributed_sampler=True, **clipping
            )
            for kind in strategies
        }
        torch.save(results, out / f"parity-{name}-rank{rank}.pt")

    window = {"accumulate_grad_batches": 2}
    results = {"ddp": train(SpoiledOnRankOne(), "ddp", plugin_for("fp16"), **window)}
    results |= {name: train(*sharded(name, SpoiledOnRankOne), plugin_for("fp16"), **window) for name in WRAPPING}
    torch.save(results, out / f"window-rank{rank}.pt")

    results = {"ddp": train(TwoOptimizers(), "ddp", plugin_for("fp16"))}
    results["by hand"] = train(TwoOptimizersByHand(), FSDPOnCPU(), plugin_for("fp16"))
    torch.save(results, out / f"two-rank{rank}.pt")

    scaling = {"growth_interval": 3, "hysteresis": 2}
    for run, epochs, files in [
        ("uninterrupted", 2, {}),
        ("first", 1, {"save": out / "half.ckpt"}),
        ("resumed", 2, {"resume": out / "half.ckpt"}),
    ]:
        # A full state dict of FSDP1 on a CPU is a use after free in torch; sharded ones are in order.
        strategy = FSDPOnCPU(state_dict_type="sharded", auto_wrap_policy={torch.nn.Linear})
        module = SpoiledOnRankOne(optimizer=torch.optim.AdamW)
        result = train(module, strategy, plugin_for("fp16", **scaling), max_epochs=epochs, **files)
        torch.save(result, out / f"{run}-rank{rank}.pt")

    try:
        train(LostOnRankOne(), FSDPOnCPU(auto_wrap_policy={torch.nn.Linear}), plugin_for("bf16"))
    except TrainingDivergedError as error:
        (out / f"lost-rank{rank}.txt").write_text(str(error))

    for scaler in (ShardedGradScaler(device="cpu", init_scale=4.0), LossScaler(LossScaling(init_scale=4.0))):
        name = type(scaler).__name__
        torch.save(step_with_inf_on_rank_one(scaler), out / f"{name}-rank{rank}.pt")
    dist.destroy_process_group()


def step_with_inf_on_rank_one(scaler: Any) -> tuple[bool, float]:
    """Whether this rank's part of the weights moved in a fused step, and the scale after it."""
    torch.manual_seed(1)
    model = FullyShardedDataParallel(torch.nn.Linear(8, 8), device_id=torch.device("cpu"), use_orig_params=True)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    scaler.scale(model(torch.ones(4, 8)).sum()).backward()
    (weight, *_) = (parameter for parameter in model.parameters() if parameter.grad is not None)
    if dist.get_rank() == 1:
        weight.grad.fill_(float("inf"))
    before = weight.detach().clone()
    scaler.step(optimizer)
    scaler.update()
    return not torch.equal(weight.detach(), before), scaler.get_scale()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fsdp")
    run_on_ranks(train_all, out)
    return out


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("wrapping", WRAPPING)
def test_inf_on_one_rank_is_answered_by_both(trained: Path, wrapping: str, answer: str, fused: bool) -> None:
    ranks = on_both(trained, f"{wrapping}-{answer}-{fused}")
    for rank in ranks:
        torch.testing.assert_close(rank["weights"], rank["expected"], rtol=0, atol=0)
        assert rank["scale"] == (1 if answer == "bf16" else FEASIBLE)
        assert counters(rank) == ([4, 0, 1] if answer == "fp16-retried" else [3, 1, 0])
    named = [set(rank["summary"]["incidents"]["by_parameter"]) for rank in ranks]
    assert named == [{"net.0.*" if wrapping == "flat" else "net.0.weight"}] * 2


@pytest.mark.parametrize("kind", ["whole", "by layer", "by hand"])
@pytest.mark.parametrize("run", ["fp32-0", "fp32-1", "fp16-0"], ids=["fp32", "fp32 clipped", "fp16"])
def test_sharded_training_equals_ddp(trained: Path, run: str, kind: str) -> None:
    """Up to the order in which two ranks add; fp16 too, as autocast would cast the weights anyway."""
    for rank in on_both(trained, f"parity-{run}"):
        torch.testing.assert_close(rank[kind]["weights"], rank["ddp"]["weights"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wrapping", WRAPPING)
def test_a_window_of_batches_is_skipped_as_a_whole(trained: Path, wrapping: str) -> None:
    """FSDP computes a BatchNorm that it keeps apart in fp32, where DDP takes and gives fp16."""
    for rank in on_both(trained, "window"):
        torch.testing.assert_close(rank[wrapping]["weights"], rank["ddp"]["weights"], rtol=1e-3, atol=1e-4)
        assert counters(rank[wrapping]) == counters(rank["ddp"]) == [1, 1, 0]


def test_two_optimizers_are_clipped_apart(trained: Path) -> None:
    for rank in on_both(trained, "two"):
        torch.testing.assert_close(rank["by hand"]["weights"], rank["ddp"]["weights"], rtol=1e-5, atol=1e-6)
        assert counters(rank["by hand"]) == counters(rank["ddp"]) == [6, 0, 0]


def test_clipping_changes_the_weights(trained: Path) -> None:
    """Else the test above would compare two trainings that never clipped."""
    free, clipped = on_both(trained, "parity-fp32-0")[0], on_both(trained, "parity-fp32-1")[0]
    assert (free["whole"]["weights"]["net.0.weight"] - clipped["whole"]["weights"]["net.0.weight"]).abs().max() > 1e-3


def test_a_resumed_run_equals_an_uninterrupted_one(trained: Path) -> None:
    for whole, first, resumed in zip(
        *(on_both(trained, n) for n in ("uninterrupted", "first", "resumed")), strict=True
    ):
        torch.testing.assert_close(resumed["weights"], whole["weights"], rtol=0, atol=0)
        assert resumed["scale"] == whole["scale"]
        assert counters(resumed) == counters(whole) != counters(first)


def test_weights_lost_on_one_rank_stop_both(trained: Path) -> None:
    messages = [(trained / f"lost-rank{rank}.txt").read_text() for rank in range(2)]
    assert "nan gradients in net.0.weight on rank 1; weights: net.0.weight was" in messages[0]
    assert "; 1 weights, 'net.0.weight' among them," in messages[0]
    assert messages[0] == messages[1]


def test_ranks_part_in_torch_with_a_fused_optimizer_and_stay_together_here(trained: Path) -> None:
    """Trap 18: torch's ShardedGradScaler agrees in `unscale_`, which a fused optimizer does without."""
    assert on_both(trained, "ShardedGradScaler") == [(True, 4.0), (False, 2.0)]
    assert on_both(trained, "LossScaler") == [(False, 2.0), (False, 2.0)]
