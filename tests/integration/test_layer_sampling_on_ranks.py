"""Two ranks sample what one process would have seen: every value once, of activations and of sharded gradients."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, Subset

from mp_plugin import AdaptivePrecision, Telemetry
from mp_plugin.telemetry.layer_sample import LayerSample, TensorKind
from tests.helpers.ranks import run_on_ranks
from tests.helpers.sharding import FSDPOnCPU
from tests.helpers.training import Regression, quiet_trainer, regression_data

pytestmark = pytest.mark.xdist_group("ranks")

WORLD_SIZE = 2


class Sharded(Regression):
    """Under FSDP2: one layer in a unit of its own."""

    def configure_model(self) -> None:
        fully_shard(self.net[2])
        fully_shard(self.net)


STRATEGIES: dict[str, tuple[Any, type[Regression]]] = {
    "ddp": (lambda: DDPStrategy(process_group_backend="gloo"), Regression),
    "fsdp": (
        lambda: FSDPOnCPU(process_group_backend="gloo", auto_wrap_policy={nn.Linear}, use_orig_params=True),
        Regression,
    ),
    "fsdp without shards": (
        lambda: FSDPOnCPU(
            process_group_backend="gloo",
            auto_wrap_policy={nn.Linear},
            use_orig_params=True,
            sharding_strategy="NO_SHARD",
        ),
        Regression,
    ),
    "fsdp2": (lambda: ModelParallelStrategy(process_group_backend="gloo"), Sharded),
}


def train(directory: str, name: str | None, every_n_steps: int, max_overhead: float = 1) -> None:
    telemetry = Telemetry(
        every_n_steps=every_n_steps,
        activations=True,
        histograms=True,
        max_overhead=max_overhead,
        directory=f"{directory}/{name or 'alone'}",
    )
    plugin = AdaptivePrecision("bf16", telemetry=telemetry)
    samples: list[LayerSample] = []
    connect = plugin.sampler.connect
    plugin.sampler.connect = lambda module, report: connect(module, report=lambda seen, step: samples.extend(seen))  # type: ignore[method-assign]
    options: dict[str, Any] = {"plugins": [plugin]}
    strategy, model = STRATEGIES[name] if name else (None, Regression)
    if strategy is not None:
        options |= {"strategy": strategy(), "devices": WORLD_SIZE}
    data = regression_data(batches=2, batch_size=8)
    if name:
        # Two ranks share the batches: together they see in a step what one process sees.
        mine = range(int(os.environ["RANK"]), len(data.dataset), WORLD_SIZE)
        data = DataLoader(Subset(data.dataset, mine), batch_size=4)
    quiet_trainer(max_steps=2, use_distributed_sampler=False, **options).fit(model(), data)
    rank = dist.get_rank() if dist.is_initialized() else 0
    if every_n_steps == 1 and max_overhead < 1:
        taken = [None] * WORLD_SIZE
        dist.all_gather_object(taken, (plugin.sampler.budget.taken, plugin.sampler.budget.left_out))
        assert len(set(taken)) == 1, taken
    if rank:
        assert samples == []
        return
    told = {
        f"{each.step} {each.layer} {each.kind.value}": [each.stats.numel, each.stats.amax, each.stats.rms]
        for each in samples
    }
    Path(f"{directory}/{name or 'alone'}.json").write_text(json.dumps(told))


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_ranks_see_what_one_process_sees(tmp_path: Path, name: str) -> None:
    train(str(tmp_path), None, 1)
    run_on_ranks(train, str(tmp_path), name, 1)
    alone, together = (json.loads((tmp_path / f"{each}.json").read_text()) for each in ("alone", name))
    assert list(together) == list(alone)
    for key, (numel, amax, rms) in alone.items():
        kind = TensorKind(key.split()[2])
        assert together[key][0] == numel, key
        # Each rank's loss is the mean over its half of the batch.
        factor = 2 if kind is TensorKind.activation_gradient else 1
        assert together[key][1] == pytest.approx(factor * amax, rel=0.02), key
        assert together[key][2] == pytest.approx(factor * rms, rel=0.02), key


def test_ranks_agree_on_what_they_can_afford(tmp_path: Path) -> None:
    run_on_ranks(train, str(tmp_path), "ddp", 1, 1e-9)


def train_unlike(directory: str, difference: str) -> None:
    is_first = int(os.environ["RANK"]) == 0
    telemetry = Telemetry(every_n_steps=1, activations=True, max_overhead=1) if difference == "compiled" else None
    if is_first and difference == "compiled":
        torch.compile(lambda values: values + 1, backend="eager")(torch.ones(2))
    plugin = AdaptivePrecision("bf16", telemetry=telemetry)
    strategy = DDPStrategy(process_group_backend="gloo")
    logger = CSVLogger(directory) if is_first else False
    trainer = quiet_trainer(plugins=[plugin], strategy=strategy, devices=WORLD_SIZE, max_steps=3, logger=logger)
    trainer.fit(Regression(), regression_data())
    assert plugin.sampler.budget.taken == (3 if difference == "compiled" else 1)


@pytest.mark.parametrize("difference", ["compiled", "logger"])
def test_what_the_first_rank_alone_has_does_not_part_the_ranks(tmp_path: Path, difference: str) -> None:
    run_on_ranks(train_unlike, str(tmp_path), difference)


def train_beyond_the_budget(directory: str) -> None:
    telemetry = Telemetry(every_n_steps=1, activations=True, max_overhead=1e-9, directory=directory)
    plugin = AdaptivePrecision("bf16", telemetry=telemetry)
    answers: list[bool] = []
    ask = plugin.sampler._is_affordable
    # Nothing is free here, however quick it was.
    plugin.sampler._is_affordable = lambda: answers.append(ask() and not answers) or answers[-1]  # type: ignore[method-assign, func-returns-value]
    strategy = DDPStrategy(process_group_backend="gloo")
    data = regression_data(batches=300)
    quiet_trainer(plugins=[plugin], strategy=strategy, devices=WORLD_SIZE).fit(Regression(), data)
    assert plugin.effective_step == 150
    assert plugin.sampler.budget.taken + plugin.sampler.budget.left_out == 150
    assert 2 < len(answers) < 40


def test_ranks_seldom_ask_each_other_when_they_cannot_afford_a_sample(tmp_path: Path) -> None:
    run_on_ranks(train_beyond_the_budget, str(tmp_path))
