"""Under FSDP2 an incident is told and proved as under DDP, on one rank and on two."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import MixedPrecision, fully_shard

from mp_plugin import AdaptivePrecision, Fallback, LossScaling
from mp_plugin.rehearsal import forward, rehearsal
from tests.helpers.ranks import run_on_ranks
from tests.helpers.sharding import FSDPOnCPU, whole_state
from tests.helpers.training import Regression, quiet_trainer, regression_data

pytestmark = pytest.mark.xdist_group("ranks")

LARGE = "net.8"
"""A weight that fp16 cannot hold."""

SAME = ("operator", "layer", "location", "direction", "kind", "dtype", "amax_in", "amax_out", "reason", "culprits")
"""What an incident says of its origin."""


class Deep(Regression):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(8, 16), *(layer for _ in range(5) for layer in (nn.Tanh(), nn.Linear(16, 16)))]
        self.net = nn.Sequential(*layers, nn.Tanh(), nn.Linear(16, 1))
        with torch.no_grad():
            self.net[8].weight *= 1e6


class InOneUnit(Deep):
    def configure_model(self) -> None:
        fully_shard(self.net)


class ByLayer(Deep):
    def configure_model(self) -> None:
        for layer in self.net[2:]:
            fully_shard(layer)
        fully_shard(self.net)


class WithoutAWhole(Deep):
    """Two units, neither within the other."""

    def configure_model(self) -> None:
        fully_shard(self.net[0])
        fully_shard(self.net[8])


class Rehearses(Regression):
    """Runs each step once more, while the weights that the module holds are not those that have gradients."""

    rehearsed = 0

    def configure_model(self) -> None:
        fully_shard(self.net)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        start = self.trainer.precision_plugin.start  # type: ignore[union-attr]
        gradients = [parameter.grad for parameter in self.parameters()]
        expected = [gradient.full_tensor() for gradient in gradients]  # type: ignore[union-attr]
        self.net.unshard()
        with rehearsal(start):
            self.backward(forward(self, start.window[0]))  # type: ignore[arg-type]
            again = [parameter.grad.full_tensor() for parameter in self.parameters()]  # type: ignore[union-attr]
            torch.testing.assert_close(again, expected)
        assert all(one.grad is other for one, other in zip(self.parameters(), gradients, strict=True))
        self.rehearsed += 1


SHARDED = {"in one unit": InOneUnit, "by layer": ByLayer, "without a whole": WithoutAWhole}
CASES = {"ddp": Deep, **SHARDED}
FALLBACKS = {"auto": Fallback(auto=True), "none": None}


def train_all(out: Path) -> None:
    rank, world_size = os.environ["RANK"], int(os.environ["WORLD_SIZE"])
    for case, make in CASES.items():
        for name, fallback in FALLBACKS.items():
            plugin = AdaptivePrecision(
                "fp16", fallback=fallback, scaling=LossScaling(init_scale=16, at_min_scale="skip")
            )
            strategy = DDPStrategy() if case == "ddp" else ModelParallelStrategy(world_size, 1)
            trainer = quiet_trainer(
                plugins=[plugin], strategy=strategy, devices=world_size, use_distributed_sampler=False
            )
            torch.manual_seed(3)
            trainer.fit(make(), regression_data(batches=4))
            found = {
                "incidents": [each.as_dict() for each in plugin.incidents],
                "fp32_layers": list(plugin.fp32_layers),
                "weights": whole_state(trainer.strategy.model, is_fsdp1=False),
            }
            torch.save(found, out / f"{case}-{name}-{rank}.pt")
    module = Rehearses()
    trainer = quiet_trainer(
        plugins=[AdaptivePrecision("bf16")], strategy=ModelParallelStrategy(world_size, 1), devices=world_size
    )
    trainer.fit(module, regression_data(batches=4))
    assert module.rehearsed == 4 // world_size
    if world_size == 2:
        gathers_with_fsdp1()
    dist.destroy_process_group()


def gathers_with_fsdp1() -> None:
    """It gives back the memory of gathered weights too, of which no copy is kept."""
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=16, at_min_scale="skip"))
    strategy = FSDPOnCPU(mixed_precision=MixedPrecision(), auto_wrap_policy={nn.Linear})
    trainer = quiet_trainer(plugins=[plugin], strategy=strategy, devices=2, limit_train_batches=1)
    trainer.fit(Deep(), regression_data(batches=4))
    (incident,) = plugin.incidents
    assert (incident.operator, incident.layer) == ("aten._to_copy.default", LARGE)


@pytest.fixture(scope="module", params=[1, 2], ids=["one rank", "two ranks"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    out = tmp_path_factory.mktemp("fsdp2")
    run_on_ranks(train_all, out, world_size=request.param)
    return partial(_of_all_ranks, out, request.param)


def _of_all_ranks(out: Path, world_size: int, case: str, fallback: str) -> list[dict[str, Any]]:
    return [torch.load(out / f"{case}-{fallback}-{rank}.pt", weights_only=True) for rank in range(world_size)]


@pytest.mark.parametrize("case", SHARDED)
def test_the_proof_is_that_of_ddp(trained: Any, case: str) -> None:
    for sharded, ddp in zip(trained(case, "auto"), trained("ddp", "auto"), strict=True):
        assert sharded["fp32_layers"] == ddp["fp32_layers"] == [LARGE]
        (one,), (other,) = sharded["incidents"], ddp["incidents"]
        assert one["evidence"]["forward_finite_in_fp32"] is True
        assert one["evidence"]["proof"] == other["evidence"]["proof"]
        assert one["evidence"]["proof"]["is_minimal"] is True
        torch.testing.assert_close(sharded["weights"], ddp["weights"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fallback", FALLBACKS)
@pytest.mark.parametrize("case", SHARDED)
def test_an_incident_says_what_it_says_under_ddp(trained: Any, case: str, fallback: str) -> None:
    """FSDP2 has given the weight's memory back by the time that somebody looks for the reason."""
    for sharded, ddp in zip(trained(case, fallback), trained("ddp", fallback), strict=True):
        assert len(sharded["incidents"]) == len(ddp["incidents"]) == (1 if fallback == "auto" else 4)
        for one, other in zip(sharded["incidents"], ddp["incidents"], strict=True):
            assert {name: one[name] for name in SAME} == {name: other[name] for name in SAME}
        assert sharded["incidents"][0]["layer"] == LARGE
        assert sharded["incidents"][0]["reason"].startswith("overflow: ")
