"""Two gloo processes: a step that one of them has to explain is run again by both, and leaves no trace on either."""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from mp_plugin import LossScaling
from tests.helpers.ranks import run_on_ranks
from tests.helpers.sharding import FSDPOnCPU, Normalized, whole_state
from tests.helpers.training import Regression
from tests.helpers.twins import train

pytestmark = pytest.mark.xdist_group("reruns-on-ranks")

SPOILED = 1


class _Late(torch.autograd.Function):
    """The identity, with a gradient that overflows fp16 at a loss scale above 2**10."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return (gradient * 2**14).half().float() / 2**14


class Spoiled(Normalized):
    """One batch is spoiled on rank 1: its forward pass, or only its backward pass."""

    def __init__(self, *, batch: int = SPOILED, in_backward: bool = False, **options: Any) -> None:
        super().__init__(dropout=0.3, optimizer=torch.optim.AdamW, lr=0.05, **options)
        self.batch, self.in_backward = batch, in_backward

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        inputs, targets = batch
        is_spoiled = batch_idx == self.batch and self.trainer.global_rank == 1
        if is_spoiled and not self.in_backward:
            inputs = inputs / (inputs - inputs)
        outputs = self.net(inputs).float()
        if is_spoiled and self.in_backward:
            outputs = _Late.apply(outputs)  # type: ignore[no-untyped-call]
        return nn.functional.mse_loss(outputs + self.extra(inputs, batch_idx), targets)

    def extra(self, inputs: Tensor, batch_idx: int) -> Tensor | float:
        return 0.0


class SometimesUnused(Spoiled):
    """A layer that has no gradient from the batch after the spoiled one on: no zero, but none."""

    def __init__(self) -> None:
        super().__init__()
        self.sometimes = nn.Linear(8, 1)
        self.has_gradient: list[bool] = []

    def extra(self, inputs: Tensor, batch_idx: int) -> Tensor | float:
        return self.sometimes(inputs) if batch_idx <= SPOILED else 0.0

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.has_gradient.append(self.sometimes.weight.grad is not None)


class Exchanging(nn.Module):
    """Takes the mean over all ranks, as SyncBatchNorm does, in both passes."""

    def forward(self, inputs: Tensor) -> Tensor:
        mean = dist.nn.functional.all_reduce(inputs.float().mean(0)) / 2  # type: ignore[attr-defined]
        return inputs - 0.1 * mean


class Synchronised(Spoiled):
    def __init__(self) -> None:
        super().__init__()
        self.net[2] = Exchanging()


class Sharded(Spoiled):
    def configure_model(self) -> None:
        for layer in (self.net[0], self.net[-1]):
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self.net, mesh=self.device_mesh["data_parallel"])


def by_layer(**options: Any) -> FSDPOnCPU:
    return FSDPOnCPU(auto_wrap_policy={nn.Linear}, **options)


CASES: dict[str, tuple[Callable[[], Regression], Callable[[], Strategy], dict[str, Any]]] = {
    "plain": (Spoiled, DDPStrategy, {}),
    "backward": (lambda: Spoiled(in_backward=True), DDPStrategy, {"precision": "fp16"}),
    "static graph, first step": (lambda: Spoiled(batch=0), lambda: DDPStrategy(static_graph=True), {}),
    "static graph": (Spoiled, lambda: DDPStrategy(static_graph=True), {}),
    "unused parameters": (SometimesUnused, lambda: DDPStrategy(find_unused_parameters=True), {}),
    "bucket views": (Spoiled, lambda: DDPStrategy(gradient_as_bucket_view=True), {}),
    "exchange in forward": (Synchronised, DDPStrategy, {}),
    "window": (lambda: Spoiled(batch=3), DDPStrategy, {"accumulate_grad_batches": 3}),
    "fsdp1 whole": (Spoiled, FSDPOnCPU, {}),
    "fsdp1 by layer": (Spoiled, by_layer, {}),
    "fsdp1 flat": (Spoiled, lambda: by_layer(use_orig_params=False), {}),
    "fsdp1 backward": (lambda: Spoiled(in_backward=True), by_layer, {"precision": "fp16"}),
    "fsdp2": (Sharded, lambda: ModelParallelStrategy(2, 1), {}),
    "fsdp2 backward": (lambda: Sharded(in_backward=True), lambda: ModelParallelStrategy(2, 1), {"precision": "fp16"}),
    "fsdp2 window": (lambda: Sharded(batch=3), lambda: ModelParallelStrategy(2, 1), {"accumulate_grad_batches": 3}),
}
NOT_SHARDED = [case for case in CASES if not case.startswith("fsdp")]


def train_all(out: Path) -> None:
    """Train every case on this rank, with re-runs and without, and write down what came of it."""
    logging.disable()
    for place, (make, strategy, options) in enumerate(CASES.values()):
        results = []
        for max_traced in (20, 0):
            settings = {"precision": "bf16", "use_distributed_sampler": False, **options}
            if settings["precision"] == "fp16":
                settings["scaling"] = LossScaling(init_scale=2**14, retries=20)
            twin = train(make, max_traced=max_traced, strategy=strategy(), devices=2, **settings)
            results.append(
                {
                    "model": whole_state(twin.trainer.strategy.model, is_fsdp1=isinstance(strategy(), FSDPOnCPU)),
                    "events": repr(twin.events),
                    "draws": twin.draws,
                    "summary": repr({**twin.plugin.summary(), "incidents": None}),
                    "incidents": [each.as_dict() for each in twin.plugin.incidents],
                    "has_gradient": getattr(twin.model, "has_gradient", []),
                }
            )
        torch.save(results, out / f"{place}-rank{os.environ['RANK']}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    run_on_ranks(train_all, out)
    return out


def on_ranks(trained: Path, case: str) -> list[list[dict[str, Any]]]:
    """What each rank wrote down of its two trainings."""
    place = list(CASES).index(case)
    return [torch.load(trained / f"{place}-rank{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_left_on_either_rank(trained: Path, case: str) -> None:
    for traced, plain in on_ranks(trained, case):
        for name in ("events", "draws", "summary", "has_gradient"):
            assert traced[name] == plain[name], name
        torch.testing.assert_close(traced["model"], plain["model"], rtol=0, atol=0)


@pytest.mark.parametrize("case", CASES)
def test_the_ranks_stay_together(trained: Path, case: str) -> None:
    (first, _), (second, _) = on_ranks(trained, case)
    for name, parameter in first["model"].items():
        if "running" not in name:  # each rank's own in DDP, but for the first forward pass of the next step
            torch.testing.assert_close(parameter, second["model"][name], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_the_incident_of_one_rank_is_traced_there_and_known_to_both(trained: Path, case: str) -> None:
    (first, _), (second, _) = on_ranks(trained, case)
    for one, other in zip(first["incidents"], second["incidents"], strict=True):
        assert {**one, "evidence": None} == {**other, "evidence": None}  # each rank has a loss of its own
    incident = first["incidents"][0]
    assert incident["traced"], incident["evidence"]
    assert incident["cause"] == ("backward" if "backward" in case else "forward")
    # The gradient of a sharded weight was summed over the ranks when it was looked at.
    assert incident["rank"] == 1
    assert "training_step" in incident["location"] or "in backward" in incident["location"]


def test_a_parameter_without_a_gradient_has_none_after_a_rerun(trained: Path) -> None:
    for traced, _ in on_ranks(trained, "unused parameters"):
        assert traced["has_gradient"] == [True, *[False] * 6]
