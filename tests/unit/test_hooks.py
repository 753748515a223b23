from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Callback

from mp_plugin.hooks import may_edit_after_backward, may_edit_gradients, silent


def module_with(*callbacks: Callback, base: type[pl.LightningModule] = pl.LightningModule) -> Any:
    module = base()
    module._trainer = SimpleNamespace(callbacks=list(callbacks))  # type: ignore[assignment]
    return module


class Clips(pl.LightningModule):
    def configure_gradient_clipping(self, *_: Any, **__: Any) -> None: ...


class Steps(Callback):
    def on_before_optimizer_step(self, *_: Any) -> None: ...


class Edits(Callback):
    calls = 0

    def on_after_backward(self, *_: Any) -> None:
        self.calls += 1


def test_who_may_edit_gradients() -> None:
    assert not may_edit_gradients(module_with(Callback(), Edits()))
    assert may_edit_gradients(module_with(base=Clips))
    assert may_edit_gradients(module_with(Callback(), Steps()))


def test_who_may_edit_after_backward() -> None:
    assert not may_edit_after_backward(module_with(Callback(), Steps()))
    assert may_edit_after_backward(module_with(Edits()))


def test_silent_hooks_do_nothing_for_a_while() -> None:
    callback = Edits()
    module = module_with(callback)
    own = vars(module).keys()
    with silent(module, ["on_after_backward"]):
        callback.on_after_backward()
        module.on_after_backward()
    assert callback.calls == 0
    callback.on_after_backward()
    assert callback.calls == 1
    assert vars(module).keys() == own
    assert "on_after_backward" not in vars(callback)


def test_hooks_are_back_after_an_error() -> None:
    callback = Edits()
    with pytest.raises(ZeroDivisionError), silent(module_with(callback), ["on_after_backward"]):
        raise ZeroDivisionError
    callback.on_after_backward()
    assert callback.calls == 1
