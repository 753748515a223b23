"""Faults that FP32 cures, planted in layers of small networks, with the smallest set of layers that has to run in it.

Each batch brings one number, the gain, that all planted layers read: at 1, as in healthy batches, nothing goes wrong.
In FP32 a planted layer computes the same function whatever the gain.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from tests.helpers.faults.batches import Batch, healthy_batch
from tests.helpers.faults.networks import CNN, MLP, Transformer
from tests.helpers.faults.training import Planted


class Layer(nn.Module):
    """A layer with a fault; below, each is mixed into a linear layer or a convolution."""

    gain: Tensor = torch.ones(())

    def compute(self, x: Tensor) -> Tensor:
        """What the layer did before."""
        return super().forward(x)  # type: ignore[misc, no-any-return]


class Inner(Layer):
    """Overflows inside, with an output in range: as attention logits that are scaled only afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x * self.gain) / self.gain


class Backward(Layer):
    """Finite in its forward pass; its backward pass overflows inside, whatever the loss scale."""

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x / self.gain) * self.gain


class Growing(Layer):
    """Has an output beyond fp16, which only a `Shrinking` layer in FP32 can take in."""

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x) * self.gain


class Shrinking(Layer):
    """Takes in what is beyond fp16."""

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x) / self.gain


class Vanishing(Layer):
    """Positive, and so small that fp16 makes zeros of it: which shows only in the `Logarithm` behind."""

    def forward(self, x: Tensor) -> Tensor:
        return softplus(self.compute(x)) / self.gain


class Logarithm(Layer):
    """Has a logarithm in it: fine, unless zeros come in."""

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x.log() + self.gain.log())


class ZeroByZero(Layer):
    """At a gain of 0 a NaN in every format."""

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x) * (self.gain / self.gain)


class Beyond(Layer):
    """Overflows FP32 too."""

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(x * self.gain * self.gain)


class Trained(Planted):
    """Tells its planted layers the gain of each batch."""

    def forward(self, inputs: Tensor, knob: Tensor) -> Tensor:
        for module in self.modules():
            if isinstance(module, Layer):
                module.gain = knob[0]
        return self.net(inputs)  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


@dataclass(frozen=True, kw_only=True)
class FP32Fault:
    """A training that goes wrong in fp16, and what cures it."""

    name: str
    network: Callable[[], nn.Module]
    planted: dict[str, type[Layer]]
    """By the name of the layer, below the network."""
    gain: float
    """Of the batches in which it goes wrong."""
    culprits: tuple[str, ...]
    """The only smallest set of layers that cures it, with qualified names in the order of the model; empty if FP32 does
    not cure it."""
    origin: str
    """The layer in which the first non-finite number of the step arises."""
    shared: tuple[tuple[str, str], ...] = ()
    """Pairs of layers below the network of which the second one is the first once more."""

    @property
    def inputs(self) -> str:
        """What the network reads."""
        return "tokens" if self.network is Transformer else "images"

    def make(self, seed: int = 1) -> Trained:
        """Return a new model."""
        torch.manual_seed(seed)
        net = self.network()
        for first, second in self.shared:
            above, _, last = second.rpartition(".")
            setattr(net.get_submodule(above), last, net.get_submodule(first))
        for name, kind in self.planted.items():
            plant(net.get_submodule(name), kind)
        return Trained(net)

    def batches(self, *, faulty: Iterable[int] = (2,), count: int = 5) -> list[Batch]:
        """Return the batches of a training, some of which go wrong."""
        wrong = set(faulty)
        return [
            healthy_batch(self.inputs, knob=self.gain if index in wrong else 1.0, index=index) for index in range(count)
        ]


def plant(layer: nn.Module, kind: type[Layer]) -> None:
    """Give a linear layer or a convolution a fault; it loses its bias, which has no gain."""
    layer.bias = None
    layer.__class__ = type(f"{kind.__name__}{type(layer).__name__}", (kind, type(layer)), {})


def _fault(
    name: str, network: type[nn.Module], gain: float, planted: dict[str, type[Layer]], **more: object
) -> FP32Fault:
    culprits = tuple(f"net.{each}" for each in planted)
    told = {"culprits": culprits, "origin": culprits[0], **more}
    return FP32Fault(name=name, network=network, gain=gain, planted=planted, **told)  # type: ignore[arg-type]


LARGE, HUGE = 2.0**20, 2.0**36

FP32_FAULTS = (
    _fault("mlp: inside a layer", MLP, LARGE, {"hidden.3": Inner}),
    _fault("mlp: backward", MLP, HUGE, {"hidden.5": Backward}),
    _fault(
        "mlp: seen later",
        MLP,
        HUGE,
        {"hidden.2": Vanishing, "hidden.3": Logarithm},
        culprits=("net.hidden.2",),
        origin="net.hidden.3",
    ),
    _fault("cnn: inside a layer", CNN, LARGE, {"blocks.2.conv2": Inner}),
    _fault("cnn: two that interact", CNN, LARGE, {"blocks.1.conv1": Growing, "blocks.1.conv2": Shrinking}),
    _fault("transformer: inside a layer", Transformer, LARGE, {"blocks.7.attn.proj": Inner}),
    _fault("transformer: backward", Transformer, HUGE, {"blocks.4.mlp.fc2": Backward}),
    _fault("transformer: two", Transformer, LARGE, {"blocks.3.mlp.fc1": Inner, "blocks.9.attn.qkv": Inner}),
    _fault(
        "transformer: two that interact",
        Transformer,
        LARGE,
        {"blocks.6.mlp.fc1": Growing, "blocks.6.mlp.fc2": Shrinking},
    ),
    _fault(
        "transformer: shared",
        Transformer,
        LARGE,
        {"blocks.2.mlp.fc1": Inner},
        shared=(("blocks.2.mlp.fc1", "blocks.8.mlp.fc1"),),
    ),
)
"""Those that FP32 cures."""

HOPELESS = (
    _fault("mlp: 0/0", MLP, 0.0, {"hidden.3": ZeroByZero}, culprits=(), origin="net.hidden.3"),
    _fault(
        "transformer: beyond FP32",
        Transformer,
        1e30,
        {"blocks.3.mlp.fc1": Beyond},
        culprits=(),
        origin="net.blocks.3.mlp.fc1",
    ),
)
"""Those that FP32 does not cure."""


def fp32_fault(name: str) -> FP32Fault:
    """Return the fault of that name."""
    return next(each for each in (*FP32_FAULTS, *HOPELESS) if each.name == name)
