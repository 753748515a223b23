from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from mp_plugin import step_start
from mp_plugin.step_start import StepStart


class Net(pl.LightningModule):
    def __init__(self, *, window: int = 1) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)
        self._trainer = SimpleNamespace(accumulate_grad_batches=window)  # type: ignore[assignment]

    def training_step(self, batch: Any, batch_idx: int) -> None: ...


class TakesTheIterator(Net):
    def training_step(self, dataloader_iter: Any) -> None: ...  # type: ignore[override]


def start_of(module: Net, *, is_traced: bool = True) -> StepStart:
    return StepStart(module, may_step_again=True, is_traced=is_traced)


def test_a_window_holds_its_batches_until_it_is_over() -> None:
    start = start_of(Net(window=3))
    seen = []
    for batch_idx in range(5):
        start.next_batch(torch.ones(1), batch_idx)
        seen.append([each.batch_idx for each in start.window])
    assert seen == [[0], [0, 1], [0, 1, 2], [3], [3, 4]]
    assert start.is_window_whole
    start.done()
    assert start.window == []
    assert not start.is_window_whole


def test_a_window_that_is_too_large_lets_go_of_its_first_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_start, "LARGEST_WINDOW", 10)
    start = start_of(Net(window=3))
    for batch_idx in range(3):
        start.next_batch(torch.ones(1), batch_idx)
    assert [each.batch_idx for each in start.window] == [1, 2]
    assert not start.is_window_whole
    start.next_batch(torch.ones(100), 3)
    assert [each.batch_idx for each in start.window] == [3], "one batch is held whatever its size"


def test_the_way_back_leads_to_the_first_batch_of_a_window() -> None:
    module = Net(window=2)
    start = start_of(module)
    draws = []
    for batch_idx in range(2):
        start.next_batch(torch.ones(1), batch_idx)
        start.mark()
        draws.append(torch.rand(1).item())
        module.norm(torch.rand(4, 2))
    start.rewind()
    assert module.norm.num_batches_tracked == 0
    assert torch.rand(1).item() == draws[0]
    state = start.window[1].random_state
    assert state is not None
    state.restore()
    assert torch.rand(1).item() == draws[1]


def test_a_rehearsal_marks_nothing() -> None:
    module = Net()
    start = start_of(module)
    start.next_batch(torch.ones(1), 0)
    start.mark()
    state = start.window[0].random_state
    module.norm(torch.rand(4, 2))
    with start.rehearsal():
        start.mark()
    assert start.forward_passes == 1
    assert start.window[0].random_state is state
    start.restore_buffers()
    assert module.norm.num_batches_tracked == 0


@pytest.mark.parametrize(
    ("is_traced", "may_step_again", "remembers"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_random_streams_are_remembered_for_those_who_go_back(
    is_traced: bool, may_step_again: bool, remembers: bool
) -> None:
    start = StepStart(Net(), may_step_again=may_step_again, is_traced=is_traced)
    start.next_batch(torch.ones(1), 0)
    start.mark()
    assert (start.window[0].random_state is not None) == remembers


def test_what_cannot_be_run_again_is_not_retried() -> None:
    manual = Net()
    manual.automatic_optimization = False
    for module in (manual, TakesTheIterator()):
        start = start_of(module)
        assert not start.can_run_again
        assert not start.may_step_again
    assert start_of(Net()).may_step_again
    assert [start_of(Net(window=window)).is_single for window in (1, 2)] == [True, False]


@pytest.mark.parametrize(
    ("edit", "is_noticed"),
    [
        (lambda parameter: None, False),
        (lambda parameter: parameter.grad.norm(), False),
        (lambda parameter: parameter.grad.mul_(2), True),
        (lambda parameter: setattr(parameter, "grad", parameter.grad * 2), True),
        (lambda parameter: setattr(parameter, "grad", None), True),
        (lambda parameter: parameter.grad.data.clamp_(max=1e-3), True),
        (lambda parameter: setattr(parameter.grad, "data", parameter.grad * 2), True),
    ],
)
def test_edits_after_the_backward_pass_are_noticed(edit: Any, is_noticed: bool) -> None:
    module = Net()
    start = start_of(module)
    start.may_edit_after_backward = True
    module.norm(torch.rand(4, 2)).sum().backward()
    with start.noticing_edits(), torch.no_grad():
        edit(module.norm.weight)
    assert start.edits_after_backward == is_noticed


def test_who_writes_to_data_is_known_from_the_first_time_on() -> None:
    module = Net()
    start = start_of(module)
    start.may_edit_after_backward = True
    for _ in range(2):
        module.norm(torch.rand(4, 2)).sum().backward()
        with start.noticing_edits():
            assert (torch._C._len_torch_dispatch_stack() > 0) == (start._writes_through_data is None)
            module.norm.weight.grad.data.mul_(2)  # type: ignore[union-attr]
        assert start.edits_after_backward


def test_batches_go_back_unless_they_were_written_to() -> None:
    start = start_of(Net())
    batch = {"inputs": torch.ones(1)}
    start.next_batch(batch, 0)
    inputs = batch.pop("inputs")
    assert start.restore_batches()
    assert batch["inputs"] is inputs
    inputs.add_(1)
    assert not start.restore_batches()
