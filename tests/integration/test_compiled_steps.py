"""torch.compile of the model and of the optimizer's step, beside ours."""

from typing import Any

import pytest
import torch
from torch import Tensor

from mp_plugin import AdaptivePrecision, LossScaling
from tests.helpers.training import Regression, assert_bitwise_equal, fit, overflowing_at, weights

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's


class Compiled(Regression):
    """With its network and its optimizer's step compiled, by a backend that keeps their arithmetic."""

    def __init__(self, *, network: bool = False, step: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.graphs = 0
        self.compiles_step = step
        if network:
            self.net = torch.compile(self.net, backend=self.backend)  # type: ignore[assignment]

    def backend(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.graphs += 1
        return graph.forward

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        if self.compiles_step:
            optimizer.step = torch.compile(optimizer.step, backend=self.backend)
        return optimizer


@pytest.fixture(autouse=True)
def fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def plugin_of(precision: str, exact: bool | None = None) -> AdaptivePrecision:
    scaling = LossScaling(init_scale=2.0**10) if precision == "fp16" else None
    return AdaptivePrecision(precision, scaling=scaling, exact=exact)


@pytest.mark.parametrize("clipping", [{}, {"gradient_clip_val": 0.05}], ids=["unclipped", "clipped"])
@pytest.mark.parametrize("optimizer", [{"fused": True}, {"foreach": True}], ids=["fused", "foreach"])
@pytest.mark.parametrize("exact", [True, False], ids=["exact", "late"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_compiling_changes_nothing(
    precision: str, exact: bool, optimizer: dict[str, bool], clipping: dict[str, float]
) -> None:
    options = {"optimizer": torch.optim.AdamW, "lr": 0.01, **optimizer}
    plugin = plugin_of(precision, exact)
    model = fit(plugin, Compiled(network=True, step=True, **options), **clipping)
    plain = fit(plugin_of(precision, exact), Regression(**options), **clipping)
    assert model.graphs > 0
    assert (plugin.effective_step, plugin.incidents) == (8, [])
    # torch runs a fused step as it is; a compiled foreach one rounds its bias corrections elsewhere.
    atol = 0.0 if "fused" in optimizer else 1e-4
    torch.testing.assert_close(weights(model), weights(plain), rtol=0, atol=atol)


def test_a_healthy_step_compiles_nothing_again() -> None:
    class Counting(Compiled):
        def on_train_batch_end(self, *_: Any) -> None:
            self.after = [*getattr(self, "after", []), self.graphs]

    model = Counting(network=True, step=True, optimizer=torch.optim.AdamW, fused=True)
    fit(plugin_of("fp16", exact=False), model, gradient_clip_val=0.05)
    assert model.after[1:] == [model.after[1]] * 7


def test_an_overflow_of_a_compiled_step_is_skipped_on_the_device() -> None:
    options = {"optimizer": torch.optim.AdamW, "fused": True, "fault": overflowing_at(3)}
    plugin = plugin_of("fp16", exact=False)
    model = fit(plugin, Compiled(network=True, step=True, **options))
    assert (plugin.effective_step, plugin.skipped_steps) == (7, 1)
    assert_bitwise_equal(weights(model), weights(fit(plugin_of("fp16", exact=False), Regression(**options))))
