"""Two gloo processes: what one rank finds, both act on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mp_plugin import AdaptivePrecision, LossScaling
from tests.helpers.ranks import run_on_ranks
from tests.helpers.training import Regression, assert_bitwise_equal, quiet_trainer, regression_data, weights

VARIANTS = [(precision, fused) for precision in ("fp16", "bf16") for fused in (False, True)]


class SpoiledOnRankOne(Regression):
    """Its gradients are spoiled after the all-reduce, on one rank only."""

    def on_after_backward(self) -> None:
        if self.trainer.global_rank == 1 and self.trainer.fit_loop.batch_idx == 1:
            self.net[0].weight.grad.fill_(float("inf"))  # type: ignore[union-attr, operator]


def train_all(out: Path) -> None:
    """Train every variant on this rank, and write down what came of it."""
    for precision, fused in VARIANTS:
        scaling = LossScaling(init_scale=1024) if precision == "fp16" else None
        plugin = AdaptivePrecision(precision, scaling=scaling)
        trainer = quiet_trainer(plugins=[plugin], strategy="ddp", devices=2, use_distributed_sampler=False)
        module = SpoiledOnRankOne(optimizer=torch.optim.AdamW, fused=fused)
        trainer.fit(module, regression_data(batches=4))
        result = {"weights": weights(module), "summary": plugin.summary(), "scale": plugin.loss_scale}
        torch.save(result, out / f"{precision}-{fused}-rank{trainer.global_rank}.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    run_on_ranks(train_all, out)
    return out


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(("precision", "fused"), VARIANTS)
def test_inf_on_one_rank_skips_the_step_on_both(trained: Path, precision: str, fused: bool) -> None:
    ranks: list[dict[str, Any]] = [
        torch.load(trained / f"{precision}-{fused}-rank{rank}.pt", weights_only=True) for rank in range(2)
    ]
    assert_bitwise_equal(ranks[0]["weights"], ranks[1]["weights"])
    assert [rank["scale"] for rank in ranks] == [512 if precision == "fp16" else 1] * 2
    assert [(rank["summary"]["effective_steps"], rank["summary"]["skipped_steps"]) for rank in ranks] == [(3, 1)] * 2
    named = [set(rank["summary"]["incidents"]["by_parameter"]) for rank in ranks]
    assert named == [set(), {"net.0.weight"}]
