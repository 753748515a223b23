import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mp_plugin.scaling.verdict import (
    NOTHING,
    NUM_ANSWERS,
    Verdict,
    agree,
    agree_each,
    ask,
    gradients,
    meeting_place,
    read_answers,
)
from tests.helpers.ranks import run_on_ranks


def test_gradients_in_order_without_the_missing_ones() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    parameters[0].grad, parameters[2].grad = torch.tensor([1.0]), torch.tensor([3.0])
    groups = [{"params": parameters[2:]}, {"params": parameters[:2]}]
    assert [grad.item() for grad in gradients(torch.optim.SGD(groups, lr=1.0))] == [3.0, 1.0]


def test_rows_of_a_sparse_gradient_are_summed_before_they_are_judged() -> None:
    """Two finite rows of fp16 for the same word overflow in their sum."""
    table = torch.nn.Parameter(torch.zeros(4, 1, dtype=torch.float16))
    rows = torch.tensor([[60000.0], [60000.0]], dtype=torch.float16)
    table.grad = torch.sparse_coo_tensor(torch.tensor([[2, 2]]), rows, (4, 1), check_invariants=True)
    (grad,) = gradients(torch.optim.SGD([table], lr=1.0))
    assert grad.is_coalesced()
    assert grad.values().tolist() == [[math.inf]]


@pytest.mark.parametrize("found", [0.0, 1.0])
def test_one_process_agrees_with_itself(found: float) -> None:
    verdict = agree(torch.tensor([found]), has_gradients=True)
    assert verdict == Verdict(overflowed=bool(found), has_gradients=True)


@pytest.mark.parametrize(
    ("device", "backends", "place"),
    [
        ("cpu", "cpu:gloo,cuda:gloo", "cpu"),
        ("cuda", "cpu:gloo,cuda:nccl", "cuda"),
        ("cpu", "cuda:nccl", "cuda"),  # offloaded parameters
        ("cpu", "xpu:xccl", "xpu"),
    ],
)
def test_ranks_meet_where_they_can_talk(device: str, backends: str, place: str) -> None:
    assert meeting_place(torch.device(device), backends) == torch.device(place)


def test_the_largest_magnitude_travels_along() -> None:
    verdict = agree(torch.tensor([0.0]), has_gradients=True, amax=torch.tensor(3.5))
    assert verdict == Verdict(overflowed=False, has_gradients=True, amax=3.5)
    small = Verdict(overflowed=True, has_gradients=False, amax=1.0)
    assert verdict | small == small | verdict == Verdict(overflowed=True, has_gradients=True, amax=3.5)


@pytest.mark.parametrize("amax", [None, 3.5])
@pytest.mark.parametrize("norm", [None, 7.0])
@pytest.mark.parametrize("has_gradients", [True, False])
@pytest.mark.parametrize("found", [0.0, 1.0])
def test_to_ask_is_to_agree_without_waiting(
    found: float, has_gradients: bool, norm: float | None, amax: float | None
) -> None:
    numbers: dict[str, Any] = {
        "amax": None if amax is None else torch.tensor(amax),
        "norm": None if norm is None else torch.tensor(norm, dtype=torch.float64),
    }
    found_inf = torch.tensor([found])
    verdict = agree(found_inf, has_gradients=has_gradients, **numbers)
    assert verdict == Verdict(bool(found), has_gradients, amax=amax or 0.0, norm=norm or 0.0)
    answers = ask(found_inf, has_gradients=has_gradients, **numbers)
    assert (answers.shape, answers.dtype) == ((NUM_ANSWERS,), torch.float32)
    assert read_answers(answers) == verdict


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("losses", "finite"),
    [
        ((), True),
        ((1.0,), True),
        ((1.0, 6e4), True),
        ((math.nan,), False),
        ((math.inf, 1.0), False),
        ((1.0, -math.inf), False),
    ],
)
def test_losses_are_asked_about(losses: tuple[float, ...], finite: bool, dtype: torch.dtype) -> None:
    given = [torch.tensor(loss, dtype=dtype) for loss in losses]
    answers = ask(torch.zeros(1), has_gradients=True, losses=given)
    assert read_answers(answers) == Verdict(overflowed=False, has_gradients=True, loss_is_finite=finite)


def test_what_is_known_of_both() -> None:
    one = Verdict(overflowed=False, has_gradients=True, amax=1.0, norm=5.0)
    assert one | NOTHING == NOTHING | one == one
    other = Verdict(overflowed=True, has_gradients=False, amax=2.0, norm=3.0)
    assert one | other == Verdict(overflowed=True, has_gradients=True, amax=2.0, norm=5.0)
    lost = replace(one, loss_is_finite=False)
    assert one | lost == lost | one == lost


@pytest.mark.xdist_group("ranks")
def test_ranks_agree(tmp_path: Path) -> None:
    """Trap 18: an Inf on rank 1 alone, gradients on rank 0 alone, and the larger gradient, are known to both."""
    run_on_ranks(_agree_on_rank, str(tmp_path))
    verdicts = [(tmp_path / f"rank{rank}").read_text() for rank in range(2)]
    expected = Verdict(overflowed=True, has_gradients=True, amax=2.0, norm=6.0)
    assert verdicts == [f"{expected} [True, False, True] True"] * 2


def _agree_on_rank(out: str) -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    known = {"amax": torch.tensor(2.0 - rank), "norm": torch.tensor(5.0 + rank)}
    verdict = agree(torch.tensor([float(rank)]), has_gradients=rank == 0, **known)
    losses = [torch.tensor(math.nan if rank == 1 else 1.0)]
    asked = read_answers(ask(torch.tensor([float(rank)]), has_gradients=rank == 0, losses=losses, **known))
    each = agree_each([rank == 0, False, rank == 1], [torch.optim.SGD([torch.zeros(1)], lr=1.0)] * 3)
    Path(out, f"rank{rank}").write_text(f"{verdict} {each} {asked == replace(verdict, loss_is_finite=False)}")
