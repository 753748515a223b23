"""Models spread over several devices: each holds a part of every block's weights, gradients and optimizer state."""

from collections import Counter
from typing import Any

from lightning.pytorch import LightningModule, Trainer, callbacks
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn


def blocks(model: nn.Module) -> list[nn.Module]:
    """The parts of a model that are gathered one at a time: those with weights in its outermost lists of layers.

    Layers that share a weight with another part, such as tied embeddings, stay with the rest of the model.

    Args:
        model: not yet sharded.
    """
    users = Counter(id(parameter) for module in model.modules() for parameter in module.parameters(recurse=False))
    found: list[nn.Module] = []
    for child in model.children():
        if not isinstance(child, (nn.ModuleList, nn.Sequential)):
            found += blocks(child)
            continue
        found += [layer for layer in child if any(True for _ in layer.parameters())]
    return [block for block in found if all(users[id(parameter)] == 1 for parameter in block.parameters())]


class FSDP1(FSDPStrategy):
    """Lightning's FSDPStrategy, which gathers each block of the model by itself.

    Args:
        **settings: of `FSDPStrategy`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(auto_wrap_policy=self.is_block, **settings)

    def _setup_model(self, model: nn.Module) -> nn.Module:
        """The model as it was wrapped for training, if it is to be tested: only that wrapper knows all the parts."""
        wrapped = getattr(self, "_wrapped", None)
        if wrapped is None or wrapped.module is not model:
            self._blocks = blocks(model)
            self._wrapped = wrapped = self._wrap(model)
        return wrapped

    def _wrap(self, model: nn.Module) -> nn.Module:
        return super()._setup_model(model)

    def is_block(self, module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
        """Whether torch is to look into a module, or to wrap it."""
        return recurse or any(module is block for block in self._blocks)


def refuse_unsuited(trainer: Trainer) -> None:
    """Check that a strategy that spreads the weights has what it needs.

    Raises:
        ValueError: if `trainer=fsdp` runs on a CPU, where torch cannot collect the weights of a checkpoint, or if a
            callback averages the weights, which it could not copy whole.
    """
    strategy = trainer.strategy
    if type(strategy) is FSDP1 and strategy.root_device.type == "cpu":
        raise ValueError("trainer=fsdp needs a GPU; on a CPU take trainer=ddp or trainer=fsdp2.")
    averaging = getattr(callbacks, "WeightAveraging", ())  # since Lightning 2.6
    averages = any(isinstance(callback, averaging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    if averages and isinstance(strategy, FSDPStrategy | ModelParallelStrategy):
        raise ValueError(
            "An average of the weights (callbacks/ema) needs them whole, and trainer=fsdp and fsdp2 spread them over "
            "the devices: take trainer=ddp."
        )


class FSDP2(ModelParallelStrategy):
    """Lightning's ModelParallelStrategy with all devices for data parallelism; `shard` does the sharding.

    Args:
        **settings: of `ModelParallelStrategy`.
    """

    def setup_environment(self) -> None:
        """Choose the sizes, now that the number of processes is known; Lightning's own choice is tensor parallelism."""
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()


def shard(model: LightningModule) -> None:
    """Shard a model's blocks, and what remains around them, if it trains under `FSDP2`; else change nothing.

    Args:
        model: with weights; its trainer's processes know each other.
    """
    if model.device_mesh is None:
        return
    # Not in every build of torch.
    from torch.distributed.fsdp import FSDPModule, fully_shard

    networks = [child for child in model.children() if any(True for _ in child.parameters())]
    if any(isinstance(network, FSDPModule) for network in networks):
        return  # testing after training
    mesh = model.device_mesh["data_parallel"]
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    for network in networks:
        if not isinstance(network, FSDPModule):
            fully_shard(network, mesh=mesh)
