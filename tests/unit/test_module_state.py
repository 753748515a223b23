from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torchmetrics import MeanMetric, MeanSquaredError, MetricCollection
from torchmetrics.classification import BinaryAccuracy, BinaryPrecision, BinaryRecall

from mp_plugin.module_state import counted_once, unchanged


class Inner(pl.LightningModule):
    """A module within a module, which logs too."""


class Measuring(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.mean = MeanMetric()
        self.parts = torch.nn.ModuleList([MeanSquaredError()])
        self.inner = Inner()
        self.history: list[int] = []


def both(*, but: Any = ()) -> Any:
    return pytest.mark.parametrize("once", [each for each in (counted_once, unchanged) if each not in but])


@both()
def test_metrics_have_their_state_again(once: Any) -> None:
    module = Measuring()
    module.mean.update(torch.tensor([1.0, 2.0]))
    with once(module):
        # As in a rehearsal, where what is written to is copied, beside the attributes.
        module.mean.update(torch.tensor(30.0)) if once is counted_once else None
        module.parts[0](torch.ones(2), torch.zeros(2))
    assert module.mean.compute() == 1.5
    assert module.mean.update_count == 1
    assert module.parts[0].update_count == 0


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")
def test_a_metric_that_gradients_flow_through_is_no_trouble() -> None:
    """What it returned last belongs to an autograd graph, and cannot be copied as it is."""
    module = Measuring()
    module.parts[0](torch.ones(2, requires_grad=True) * 2, torch.zeros(2))
    last = module.parts[0]._forward_cache
    assert last.grad_fn is not None
    with counted_once(module):
        module.parts[0](torch.ones(2), torch.zeros(2))
    assert module.parts[0]._forward_cache is last
    assert module.parts[0].compute() == 4


def test_metrics_that_share_their_state_go_on_sharing_it() -> None:
    module = pl.LightningModule()
    module.metrics = MetricCollection([BinaryAccuracy(), BinaryPrecision(), BinaryRecall()])
    expected = MetricCollection([BinaryAccuracy(), BinaryPrecision(), BinaryRecall()])
    batches = [(torch.rand(20), torch.randint(2, (20,))) for _ in range(4)]
    for place, batch in enumerate(batches):
        module.metrics.update(*batch)
        expected.update(*batch)
        with counted_once(module):
            module.metrics.update(*batches[place - 1])
    assert len(module.metrics.compute_groups) == 1
    assert module.metrics.compute() == expected.compute()


@both()
def test_nobody_logs_meanwhile(once: Any) -> None:
    module = Measuring()
    own = [vars(part).keys() for part in module.modules()]
    with once(module):
        module.log("a", 1.0)  # without a trainer Lightning refuses it
        module.log_dict({"b": 2.0})
        module.inner.log("c", 3.0)
    assert [vars(part).keys() for part in module.modules()] == own


def test_only_a_rehearsal_takes_back_what_the_module_remembers() -> None:
    module = Measuring()
    with counted_once(module):
        module.history.append(1)
    with unchanged(module):
        module.history.append(2)
        module.late = True
        module.inner.eval()
        module.register_buffer("late_buffer", torch.ones(1))
    assert module.history == [1]
    assert not hasattr(module, "late")
    assert not hasattr(module, "late_buffer")
    assert module.inner.training


def test_hooks_and_parameters_stay() -> None:
    module = Measuring()
    with unchanged(module):
        handle = module.register_forward_hook(lambda *_: None)
        module.weight = torch.nn.Parameter(torch.ones(1))
    assert handle.id in module._forward_hooks
    assert module.weight == 1
