"""What `rehearsal` gives back is tried in whole trainings too: tests/integration/test_rerun_leaves_no_trace.py."""

from typing import Any

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from mp_plugin import AdaptivePrecision
from mp_plugin.rehearsal import forward, rehearsal
from tests.helpers.training import Regression, quiet_trainer, regression_data


class Rehearses(Regression):
    """Runs `check` in the middle of a fit, where a step has been run once."""

    def __init__(self, check: Any) -> None:
        super().__init__()
        self.net.insert(1, torch.nn.BatchNorm1d(16))
        self.check, self.checked = check, 0
        self.dtype_of_outputs: torch.dtype | None = None

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        outputs = self.net(batch[0] + torch.rand(1))
        self.dtype_of_outputs = outputs.dtype
        return torch.nn.functional.mse_loss(outputs.float(), batch[1])

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.check(self, self.trainer.precision_plugin.start)  # type: ignore[union-attr]
        self.checked += 1


def in_a_fit(check: Any, *, precision: str = "bf16", **options: Any) -> None:
    model = Rehearses(check)
    trainer = quiet_trainer(plugins=[AdaptivePrecision(precision)], limit_train_batches=4, **options)
    trainer.fit(model, regression_data())
    assert model.checked == 4 // trainer.accumulate_grad_batches


def test_it_runs_the_same_step_again() -> None:
    def check(module: Rehearses, start: Any) -> None:
        gradients = [parameter.grad for parameter in module.parameters()]
        with rehearsal(start):
            assert all(parameter.grad is None for parameter in module.parameters())
            loss = forward(module, start.window[0])
            assert loss is not None
            module.backward(loss)
            again = [parameter.grad for parameter in module.parameters()]
            torch.testing.assert_close(again, gradients, rtol=0, atol=0)
        assert all(one.grad is other for one, other in zip(module.parameters(), gradients, strict=True))

    in_a_fit(check)


def test_a_window_s_loss_is_divided_as_lightning_does() -> None:
    def check(module: Rehearses, start: Any) -> None:
        gradients = [parameter.grad for parameter in module.parameters()]
        with rehearsal(start):
            for batch in start.window:
                module.backward(forward(module, batch))  # type: ignore[arg-type]
            again = [parameter.grad for parameter in module.parameters()]
            torch.testing.assert_close(again, gradients, rtol=0, atol=0)

    in_a_fit(check, accumulate_grad_batches=2)


def test_something_may_be_entered_within_autocast() -> None:
    def check(module: Rehearses, start: Any) -> None:
        with rehearsal(start):
            forward(module, start.window[0])
            assert module.dtype_of_outputs is torch.bfloat16
            forward(module, start.window[0], inside=torch.autocast("cpu", enabled=False))
            assert module.dtype_of_outputs is torch.float32
        assert module.dtype_of_outputs is torch.bfloat16

    in_a_fit(check)


def test_loggers_get_nothing_meanwhile() -> None:
    def check(module: Rehearses, start: Any) -> None:
        loggers = module.trainer.loggers
        with rehearsal(start):
            assert [type(each) for each in module.loggers] == [DummyLogger] * len(loggers)
        assert module.trainer.loggers is loggers
        assert loggers

    in_a_fit(check, logger=True)


def test_everything_is_back_after_an_error() -> None:
    def check(module: Rehearses, start: Any) -> None:
        before = [*module.state_dict().values(), torch.get_rng_state()]
        before = [each.clone() for each in before]
        gradients = [parameter.grad for parameter in module.parameters()]

        def fail() -> None:
            with rehearsal(start):
                forward(module, start.window[0])
                with torch.no_grad():
                    module.net[0].weight.zero_()  # type: ignore[operator, union-attr]
                module.late = True
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        torch.testing.assert_close([*module.state_dict().values(), torch.get_rng_state()], before, rtol=0, atol=0)
        assert all(one.grad is other for one, other in zip(module.parameters(), gradients, strict=True))
        assert not hasattr(module, "late")
        assert "training_step" not in vars(module)
        assert not start.is_rehearsing
        assert torch._C._len_torch_dispatch_stack() == 0
        assert torch._dynamo.eval_frame._stance.stance == "default"

    in_a_fit(check)
