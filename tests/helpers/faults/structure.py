"""Faults in models of unusual build: shared modules, several calls, outputs in containers, code between modules."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.faults.fault import OVERFLOW, Fault, Origin, overflow, turn
from tests.helpers.faults.image import DENSE, MATMULS, WIDTH, Dense, ImageNet, column
from tests.helpers.faults.training import Planted, constant


class Branch(nn.Module):
    def __init__(self, projection: nn.Module) -> None:
        super().__init__()
        self.projection = projection


class Encoder(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.projection(x))


class Decoder(Branch):
    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x)  # culprit: shared


class Shared(Dense):
    """One projection under two names; the call under the second one overflows."""

    def __init__(self) -> None:
        super().__init__()
        projection = constant(nn.Linear(WIDTH, WIDTH), 0.5)
        self.encoder, self.decoder = Encoder(projection), Decoder(projection)

    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = self.encoder(self.features(x))
        return self.decoder(x * column(knob, x))  # type: ignore[no-any-return]


class Twice(Dense):
    """One projection that runs twice; the second time overflows."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = constant(nn.Linear(WIDTH, WIDTH), 0.5)

    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = torch.sigmoid(self.projection(self.features(x)))
        x = x * column(knob, x)
        return self.projection(x)  # culprit: twice


class Statistics(nn.Module):
    """Returns a dictionary."""

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"name": "statistics", "values": x, "moments": {"mean": x.mean(dim=-1, keepdim=True), "missing": None}}


class Reader(nn.Module):
    """Takes a dictionary by keyword, and returns one."""

    def forward(self, *, statistics: dict[str, Any], knob: Tensor) -> dict[str, Tensor]:
        mean = statistics["moments"]["mean"]
        scaled = mean * column(knob, mean) * 8  # culprit: dict
        return {"outputs": statistics["values"] - scaled, "knob": knob}


class Dictionaries(Dense):
    def __init__(self) -> None:
        super().__init__()
        self.statistics, self.reader = Statistics(), Reader()

    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        return self.reader(statistics=self.statistics(self.features(x)), knob=knob)["outputs"]  # type: ignore[no-any-return]


class Pair(nn.Module):
    """Returns tuples within tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = constant(nn.Linear(WIDTH, WIDTH), 0.5)

    def forward(self, parts: tuple[Tensor, tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], tuple[()]]:
        x, (knob, rest) = parts
        return ((self.projection(x * knob), rest), ())  # culprit: tuples


class Tuples(Dense):
    def __init__(self) -> None:
        super().__init__()
        self.pair = Pair()

    def forward(self, x: Tensor, knob: Tensor) -> Tensor:
        x = self.features(x)
        (projected, rest), _ = self.pair((x, (column(knob, x), x)))
        return projected + rest  # type: ignore[no-any-return]


class ModelOutput(OrderedDict[str, Any]):
    """Fields by key and by attribute, those that are None left out, as transformers returns its outputs."""

    def __init__(self, **fields: Any) -> None:
        super().__init__({name: value for name, value in fields.items() if value is not None})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class HeadWithLoss(nn.Module):
    """A model that computes its own loss, as transformers' do."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ImageNet()

    def forward(self, inputs: Tensor, targets: Tensor, knob: Tensor) -> ModelOutput:
        logits = self.backbone(inputs, knob)
        sharpened = logits * column(knob, logits)  # culprit: model-output
        loss = nn.functional.mse_loss(sharpened.float(), targets)
        return ModelOutput(loss=loss, logits=logits, attentions=None)


class OutputObject(Planted):
    def forward(self, inputs: Tensor, knob: Tensor) -> Any:
        return inputs

    def loss(self, outputs: Any, targets: Tensor, knob: Tensor) -> Tensor:
        return self.net(inputs=outputs, targets=targets, knob=knob).loss  # type: ignore[no-any-return]


class Between(Planted):
    """Code in the LightningModule's own forward, between a backbone and a head."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.tail = nn.Linear(10, 10)

    def forward(self, inputs: Tensor, knob: Tensor) -> Tensor:
        x = torch.sigmoid(self.net(inputs, knob)) * 4
        x = x * column(knob, x)  # culprit: between
        return self.tail(x)  # type: ignore[no-any-return]


def _dense(block: type[Dense]) -> Callable[[], Planted]:
    return lambda: Planted(ImageNet(dense=block()))


FAULTS = (
    Fault(
        name="shared-module",
        make=_dense(Shared),
        spoil=turn(3e4),
        accepted=(
            Origin(
                operators=frozenset(f"aten.{name}" for name in MATMULS),
                # It has two names; torch knows it by the first.
                layers=frozenset({f"{DENSE}.encoder.projection", f"{DENSE}.decoder.projection"}),
                marker="shared",
                reason=OVERFLOW,
                dtype="fp16",
            ),
        ),
    ),
    Fault(
        name="called-twice",
        make=_dense(Twice),
        spoil=turn(3e4),
        accepted=overflow(*MATMULS, layer=f"{DENSE}.projection", marker="twice"),
    ),
    Fault(
        name="dict-outputs",
        make=_dense(Dictionaries),
        spoil=turn(6e4),
        accepted=overflow("mul.Tensor", layer=f"{DENSE}.reader", marker="dict"),
    ),
    Fault(
        name="nested-tuples",
        make=_dense(Tuples),
        spoil=turn(3e4),
        accepted=overflow(*MATMULS, layer=f"{DENSE}.pair.projection", marker="tuples"),
    ),
    Fault(
        name="model-output",
        make=lambda: OutputObject(HeadWithLoss()),
        spoil=turn(6e4),
        accepted=overflow("mul.Tensor", layer="net", marker="model-output"),
    ),
    Fault(
        name="between-modules",
        make=lambda: Between(ImageNet()),
        spoil=turn(6e4),
        accepted=overflow("mul.Tensor", layer="", marker="between"),
    ),
)
