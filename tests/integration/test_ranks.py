"""Two gloo processes: what one rank finds, both act on."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mp_plugin import AdaptivePrecision, LossScaling
from mp_plugin.errors import TrainingDivergedError
from tests.helpers.ranks import run_on_ranks
from tests.helpers.training import Regression, assert_bitwise_equal, quiet_trainer, regression_data, weights

VARIANTS = [(precision, fused) for precision in ("fp16", "fp16-retried", "bf16") for fused in (False, True)]

FEASIBLE = 512.0


class SpoiledOnRankOne(Regression):
    """Its gradients overflow above a loss scale of 512: after the all-reduce, in one batch, on one rank only."""

    def on_after_backward(self) -> None:
        plugin: Any = self.trainer.precision_plugin
        is_here = self.trainer.global_rank == 1 and self.trainer.fit_loop.batch_idx == 1
        if is_here and plugin.loss_scale != FEASIBLE:
            self.net[0].weight.grad.fill_(float("inf"))  # type: ignore[union-attr, operator]


class WritesOnRankOne(SpoiledOnRankOne):
    """Its batch is written to on one rank, which therefore cannot run it again."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_rank == 1:
            batch[0].mul_(1.0)
        return super().training_step(batch, batch_idx)


class LostOnRankOne(Regression):
    """A weight of one rank turns to NaN."""

    def on_after_backward(self) -> None:
        if self.trainer.global_rank == 1 and self.trainer.fit_loop.batch_idx == 1:
            self.net[0].bias.data.fill_(float("nan"))  # type: ignore[union-attr, operator]
            self.net[0].bias.grad.fill_(float("nan"))  # type: ignore[union-attr, operator]


def train_all(out: Path) -> None:
    """Train every variant on this rank, and write down what came of it."""
    for variant, fused in VARIANTS:
        precision, retried = variant[:4], variant.endswith("retried")
        scaling = LossScaling(init_scale=2 * FEASIBLE, retries=int(retried)) if precision == "fp16" else None
        plugin = AdaptivePrecision(precision, scaling=scaling)
        trainer = quiet_trainer(plugins=[plugin], strategy="ddp", devices=2, use_distributed_sampler=False)
        module = SpoiledOnRankOne(optimizer=torch.optim.AdamW, fused=fused)
        trainer.fit(module, regression_data(batches=4))
        result = {"weights": weights(module), "summary": plugin.summary(), "scale": plugin.loss_scale}
        torch.save(result, out / f"{variant}-{fused}-rank{trainer.global_rank}.pt")
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=2 * FEASIBLE))
    trainer = quiet_trainer(plugins=[plugin], strategy="ddp", devices=2, use_distributed_sampler=False)
    trainer.fit(WritesOnRankOne(), regression_data(batches=4))
    torch.save(plugin.summary(), out / f"written-rank{trainer.global_rank}.pt")
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(policy="predictive"))
    trainer = quiet_trainer(plugins=[plugin], strategy="ddp", devices=2)
    trainer.fit(Regression(optimizer=torch.optim.AdamW), regression_data(batches=8))
    torch.save(plugin.state_dict(), out / f"predictive-rank{trainer.global_rank}.pt")
    try:
        quiet_trainer(plugins=[AdaptivePrecision("bf16")], strategy="ddp", devices=2).fit(
            LostOnRankOne(), regression_data(batches=4)
        )
    except TrainingDivergedError as error:
        (out / f"lost-rank{trainer.global_rank}.txt").write_text(str(error))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("ranks")
    run_on_ranks(train_all, out)
    return out


@pytest.mark.xdist_group("ranks")
@pytest.mark.parametrize(("variant", "fused"), VARIANTS)
def test_inf_on_one_rank_is_answered_by_both(trained: Path, variant: str, fused: bool) -> None:
    """Trap 18: agreed before anybody steps, on the fused path too."""
    ranks: list[dict[str, Any]] = [
        torch.load(trained / f"{variant}-{fused}-rank{rank}.pt", weights_only=True) for rank in range(2)
    ]
    assert_bitwise_equal(ranks[0]["weights"], ranks[1]["weights"])
    assert [rank["scale"] for rank in ranks] == [FEASIBLE if variant != "bf16" else 1] * 2
    expected = (4, 0, 1) if variant == "fp16-retried" else (3, 1, 0)
    counters = ("effective_steps", "skipped_steps", "retried_steps")
    assert [tuple(rank["summary"][name] for name in counters) for rank in ranks] == [expected] * 2
    named = [set(rank["summary"]["incidents"]["by_parameter"]) for rank in ranks]
    assert named == [{"net.0.weight"}] * 2


@pytest.mark.xdist_group("ranks")
def test_what_one_rank_cannot_run_again_none_does(trained: Path) -> None:
    summaries = [torch.load(trained / f"written-rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert summaries[0] == summaries[1]
    assert (summaries[0]["effective_steps"], summaries[0]["skipped_steps"]) == (3, 1)


@pytest.mark.xdist_group("ranks")
def test_a_predictive_scale_learns_the_same_on_both(trained: Path) -> None:
    states = [torch.load(trained / f"predictive-rank{rank}.pt", weights_only=True) for rank in range(2)]
    assert states[0] == states[1]
    assert states[0]["amax_observed"] == 4


@pytest.mark.xdist_group("ranks")
def test_weights_lost_on_one_rank_stop_both(trained: Path) -> None:
    messages = [(trained / f"lost-rank{rank}.txt").read_text() for rank in range(2)]
    assert "nan gradients in net.0.bias on rank 1; weights: net.0.bias was" in messages[0]
    assert "; 1 weights, 'net.0.bias' among them," in messages[0]
    assert messages[0] == messages[1]
