"""Run a training step again only to look at it: nothing of it remains."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mp_plugin.batch import BatchStart
from mp_plugin.copy_on_write import CopyOnWrite
from mp_plugin.fully_sharded import reset, reshard
from mp_plugin.instance import replace_attribute
from mp_plugin.module_state import unchanged
from mp_plugin.random_state import capture_random_state
from mp_plugin.step_start import MicroBatch, StepStart


@contextmanager
def rehearsal(start: StepStart) -> Iterator[None]:
    """Go back to where a step began; at the end of the block everything is as it was before.

    That is: random streams, gradients, all tensors that the step writes to, its batches, and what its module holds.
    Loggers get nothing, compiled code runs eagerly, and no hook of Lightning is called.
    """
    module = start.module
    # A gradient belongs to the part of a weight that this rank holds.
    reshard(module)
    with ExitStack() as undo:
        undo.callback(_set_gradients_aside(module))
        undo.callback(_remember_batches(start))
        undo.enter_context(without_trace(module))
        undo.enter_context(start.rehearsal())
        undo.enter_context(torch.enable_grad())
        start.rewind()
        yield


@contextmanager
def without_trace(module: "pl.LightningModule") -> Iterator[None]:
    """Let the block run a step of a module, eagerly and with silent loggers, and take back what it leaves.

    That is: random streams, all tensors that it writes to, and what the module holds. Not gradients.
    """
    # What is written to a weight belongs to the part of it that this rank holds.
    reshard(module)
    with ExitStack() as undo:
        undo.callback(capture_random_state(module.device).restore)
        undo.enter_context(unchanged(module))
        undo.callback(_silence_loggers(module.trainer))
        undo.enter_context(torch.compiler.set_stance("force_eager"))
        undo.enter_context(CopyOnWrite())
        # Before copies are put back: the gathered weights of a forward pass without its backward would be among them.
        undo.callback(reset, module)
        yield


def forward(
    module: "pl.LightningModule", batch: MicroBatch, *, inside: AbstractContextManager[Any] | None = None
) -> Tensor | None:
    """Run the forward pass of a batch, in a rehearsal, and return its loss before scaling, None if it has none.

    Not through `DistributedDataParallel`, which would wait for gradients: each rank sees its own part of the batch.

    Args:
        module: whose training step.
        batch: with the random streams of its first pass.
        inside: entered around the training step alone, within autocast.
    """
    trainer = module.trainer
    strategy = trainer.strategy
    if batch.random_state is not None:
        batch.random_state.restore()
    arguments = arguments_of(module, batch)
    original = module.training_step

    def training_step(*args: Any, **kwargs: Any) -> Any:
        with inside or nullcontext():
            return original(*args, **kwargs)

    undo = replace_attribute(module, "training_step", training_step)
    try:
        if isinstance(strategy.model, DistributedDataParallel):
            with strategy.precision_plugin.train_step_context():
                output = module.training_step(*arguments)
        else:
            output = strategy.training_step(*arguments)
    finally:
        undo()
    return ClosureResult.from_training_step_output(output, trainer.accumulate_grad_batches).closure_loss


def arguments_of(module: "pl.LightningModule", batch: MicroBatch) -> list[Any]:
    """Return what Lightning calls a training step with."""
    takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    return [batch.batch, batch.batch_idx] if takes_index else [batch.batch]


def _set_gradients_aside(module: "pl.LightningModule") -> Callable[[], None]:
    gradients = [(parameter, parameter.grad) for parameter in module.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None

    def restore() -> None:
        for parameter, gradient in gradients:
            parameter.grad = gradient

    return restore


def _remember_batches(start: StepStart) -> Callable[[], None]:
    now = [BatchStart(micro_batch.batch) for micro_batch in start.window]

    def restore() -> None:
        for batch in now:
            batch.restore()

    return restore


def _silence_loggers(trainer: "pl.Trainer") -> Callable[[], None]:
    loggers = trainer.loggers
    trainer.loggers = [DummyLogger() for _ in loggers]

    def restore() -> None:
        trainer.loggers = loggers

    return restore
