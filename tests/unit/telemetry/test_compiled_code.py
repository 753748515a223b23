"""What is compiled is known before it is called."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch.nn import Linear, Module, Sequential

from mp_plugin.telemetry.compiled_code import is_compiled, may_be_compiled


@pytest.fixture(autouse=True)
def nothing_is_compiled() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def in_place() -> Module:
    model = Sequential(Linear(2, 2))
    model.compile(backend="eager")
    return model


def wrapped() -> Any:
    return torch.compile(Sequential(Linear(2, 2)), backend="eager")


def by_lightning() -> Module:
    model = pl.LightningModule()
    model._compiler_ctx = {"compiler": "dynamo"}
    return model


@pytest.mark.parametrize("build", [in_place, wrapped, by_lightning])
def test_a_compiled_module_is_known(build: Any) -> None:
    model = build()
    torch._dynamo.reset()
    assert is_compiled(model)
    assert may_be_compiled(Sequential(Linear(2, 2), model))


def test_a_function_that_will_be_compiled_is_known_of() -> None:
    model = Sequential(Linear(2, 2))
    torch.compiler.disable(lambda: None)()
    assert not may_be_compiled(model)
    torch.compile(lambda: None, backend="eager")
    assert may_be_compiled(model)
    assert not is_compiled(model)


def test_one_that_was_compiled_before_a_reset_is_known_of() -> None:
    torch.compile(lambda values: values + 1, backend="eager")(torch.ones(2))
    torch._dynamo.reset()
    assert may_be_compiled(Linear(2, 2))
