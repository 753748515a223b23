"""The oracle is NumPy in float64, on all batches at once."""

from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mp_plugin.telemetry import drift_measure
from mp_plugin.telemetry.drift_measure import Drift, Output, compare, logits_in


def of_logits(low: Tensor | None, fp32: Tensor | None) -> Drift:
    return compare(Output(logits=low, loss=None), Output(logits=fp32, loss=None))


def of_losses(low: float | None, fp32: float | None) -> Drift:
    as_tensor = [None if loss is None else torch.tensor(loss) for loss in (low, fp32)]
    return compare(Output(logits=None, loss=as_tensor[0]), Output(logits=None, loss=as_tensor[1]))


def wide(tensors: list[Tensor]) -> Any:
    return np.concatenate([each.double().numpy().reshape(-1, each.shape[-1]) for each in tensors])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("shape", [(4, 7), (2, 3, 5), (1, 2), (63, 1000)], ids=str)
def test_the_numbers_are_those_of_numpy(dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: Any) -> None:
    monkeypatch.setattr(drift_measure, "CHUNK", 1024)
    fp32 = [torch.randn(shape) * 30 for _ in range(3)]
    low = [(each + torch.randn(shape) * 0.5).to(dtype) for each in fp32]
    drift = sum((of_logits(*pair) for pair in zip(low, fp32, strict=True)), Drift())
    ours, theirs = wide(low), wide(fp32)
    assert drift.logits_relative_error == pytest.approx(
        np.linalg.norm(ours - theirs) / np.linalg.norm(theirs), rel=1e-12
    )
    assert drift.changed_predictions == (ours.argmax(-1) != theirs.argmax(-1)).mean()
    assert (drift.batches, drift.logits, drift.predictions) == (3, theirs.size, len(theirs))


def test_a_chunk_is_never_less_than_a_row(monkeypatch: Any) -> None:
    monkeypatch.setattr(drift_measure, "CHUNK", 1)
    drift = of_logits(torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[0.0, 0.0], [2.0, 1.0]]))
    assert (drift.squared_error, drift.squared_norm, drift.changed) == (29.0, 5.0, 2)


def test_fp32_logits_near_the_end_of_their_range_do_not_overflow() -> None:
    assert of_logits(torch.tensor([3e38]), torch.tensor([1.5e38])).logits_relative_error == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("low", "fp32", "error", "lost"),
    [
        ([[1.0, inf]], [[1.0, 7e4]], inf, 1),
        ([[1.0, float("nan")]], [[1.0, 2.0]], inf, 1),
        ([[2.0, -inf]], [[1.0, -inf]], 1.0, 0),
        ([[2.0, 5.0]], [[1.0, inf]], 1.0, 0),
        ([[-inf, -inf]], [[-inf, inf]], None, 0),
        ([[0.0, 0.0]], [[0.0, -0.0]], 0.0, 0),
        ([[1.0, 0.0]], [[0.0, 0.0]], inf, 0),
    ],
    ids=["overflow", "nan", "a mask in both", "inf in fp32", "nothing finite", "zeros", "of nothing"],
)
def test_what_is_not_finite(low: Any, fp32: Any, error: float | None, lost: int) -> None:
    drift = of_logits(torch.tensor(low), torch.tensor(fp32))
    assert (drift.logits_relative_error, drift.lost_logits) == (error, lost)
    assert drift.as_event()["logits_relative_error"] == (None if error == inf else error)


@pytest.mark.parametrize(
    ("low", "fp32"),
    [(None, torch.ones(2, 2)), (torch.ones(2, 2), torch.ones(2, 3)), (torch.ones(0, 3), torch.ones(0, 3))],
    ids=["none", "other shape", "empty"],
)
def test_logits_that_cannot_be_compared(low: Any, fp32: Any) -> None:
    assert of_logits(low, fp32) == Drift(batches=1)


@pytest.mark.parametrize("shape", [(5,), (5, 1)], ids=str)
def test_without_classes_nothing_is_predicted(shape: tuple[int, ...]) -> None:
    drift = of_logits(torch.zeros(shape), torch.randn(shape))
    assert drift.changed_predictions is None
    assert drift.logits_relative_error == 1.0


def test_losses_are_averaged_over_batches() -> None:
    drift = of_losses(1.5, 1.0) + of_losses(2.0, 3.5) + of_losses(None, 9.0)
    assert drift.loss_difference == -0.5
    assert drift.loss_relative_difference == -1.0 / 4.5
    assert drift.as_event() == {
        "logits_relative_error": None,
        "changed_predictions": None,
        "loss_difference": -0.5,
        "loss_relative_difference": -1.0 / 4.5,
        "loss": 1.75,
        "fp32_loss": 2.25,
        "batches": 3,
        "logits": 0,
        "lost_logits": 0,
        "predictions": 0,
    }


@pytest.mark.parametrize(
    ("low", "fp32", "expected"), [(-1.0, -2.0, 0.5), (0.0, 0.0, 0.0), (-1.0, 0.0, -inf)], ids=["below", "none", "of 0"]
)
def test_relative_to_the_size_of_a_loss(low: float, fp32: float, expected: float) -> None:
    assert of_losses(low, fp32).loss_relative_difference == expected


def test_an_infinite_loss_is_no_json_value() -> None:
    event = of_losses(inf, 1.0).as_event()
    assert (event["loss"], event["loss_difference"], event["fp32_loss"]) == (None, None, 1.0)


def test_nothing_is_known_of_nothing() -> None:
    assert set(Drift().metrics().values()) == {None}
    assert Drift() + Drift() == Drift()


def test_every_sum_is_added() -> None:
    one = Drift(**{name: place for place, name in enumerate(asdict(Drift()), start=1)})
    assert one + one == Drift(**{name: 2 * place for place, name in enumerate(asdict(Drift()), start=1)})


@dataclass
class WithLogits:
    hidden: Tensor
    logits: Tensor


LOGITS, OTHER = torch.ones(1, 2), torch.zeros(1, 8)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (LOGITS, LOGITS),
        ((torch.tensor([1]), LOGITS, OTHER), LOGITS),
        ([torch.tensor(0.5), {"x": [LOGITS]}], LOGITS),
        ({"hidden": OTHER, "logits": LOGITS}, LOGITS),
        (WithLogits(OTHER, LOGITS), LOGITS),
        ({"hidden": OTHER, "logits": None}, OTHER),
        ({"logits": (LOGITS, OTHER)}, LOGITS),
        (torch.tensor(1.0), None),
        (torch.tensor([1, 2]), None),
        (None, None),
    ],
)
def test_where_logits_are_found(value: Any, expected: Any) -> None:
    assert logits_in(value) is expected
