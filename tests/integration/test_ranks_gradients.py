"""Gradients spread over two gloo processes are judged, unscaled and clipped as the whole would be in float64."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from mp_plugin import LossScaling
from mp_plugin.numerics.clipping import clamp_, squared_norm
from mp_plugin.numerics.grad_totals import all_finite, grad_totals
from mp_plugin.numerics.grad_values import settled
from mp_plugin.numerics.one_pass import unscale_and_clip_
from mp_plugin.numerics.unscale import unscale_
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.scaling.verdict import gradients
from tests.helpers.ranks import run_on_ranks
from tests.helpers.sharding import on_both

pytestmark = pytest.mark.xdist_group("ranks")

CLIP, CLAMP, SCALE = 1.5, 0.75, 8.0


def wholes() -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    shapes = [(4, 3), (3,), (1,), (2, 2), (5,), (2, 4), (6,)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def spread() -> list[Tensor]:
    """The same numbers: sharded evenly, unevenly, on one rank only, replicated, plain, over other meshes, in fp16.

    Trap 19: torch's own handling of a list looks at the mesh of its first gradient only.
    """
    line, other = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (2,), mesh_dim_names=("other",))
    plane = init_device_mesh("cpu", (2, 1))
    even, uneven, single, copied, plain, hybrid, half = wholes()
    return [
        distribute_tensor(even, line, [Shard(0)]),
        distribute_tensor(uneven, line, [Shard(0)]),
        distribute_tensor(single, other, [Shard(0)]),
        distribute_tensor(copied, line, [Replicate()]),
        plain,
        distribute_tensor(hybrid, plane, [Replicate(), Shard(1)]),
        distribute_tensor(half.half(), other, [Shard(0)]),
    ]


def together(grads: list[Tensor]) -> list[Tensor]:
    return [grad.full_tensor() if isinstance(grad, DTensor) else grad for grad in grads]


def work(out: Path) -> None:
    """Do everything on this rank, and write down what came of it."""
    dist.init_process_group("gloo")
    rank = int(os.environ["RANK"])
    result: dict[str, Any] = {"squared": squared_norm(spread())}
    for name, change in {
        "unscaled": lambda grads: unscale_(grads, SCALE),
        "scaled to norm": lambda grads: unscale_and_clip_(grads, 1.0, squared_norm(grads).sqrt(), CLIP),
        "clamped": lambda grads: clamp_(grads, CLAMP),
    }.items():
        grads = spread()
        change(grads)
        result[name] = together(grads)
    result["amax"] = grad_totals(spread(), amax=True).marks
    result["sums"] = sums_that_overflow(init_device_mesh("cpu", (2,)), rank)
    result["steps"] = [step_of_a_weight_on_one_rank(value) for value in (1.0, math.inf)]
    torch.save(result, out / f"gradients-rank{rank}.pt")
    dist.destroy_process_group()


def sums_that_overflow(mesh: DeviceMesh, rank: int) -> tuple[bool, bool, bool]:
    """Parts that are finite on each rank and too large for fp16 when they are added up."""
    part = torch.full((3,), 6e4, dtype=torch.float16)
    weight = torch.nn.Parameter(distribute_tensor(torch.zeros(3, dtype=torch.float16), mesh, [Replicate()]))
    weight.grad = DTensor.from_local(part, mesh, [Partial()])
    parts_are_finite = bool(all_finite([weight.grad]))
    (grad,) = gradients(torch.optim.SGD([weight]))
    return parts_are_finite, bool(all_finite([grad])), settled(grad) is grad


def step_of_a_weight_on_one_rank(gradient: float) -> tuple[float, float]:
    """A weight of one element, of which rank 1 holds nothing: its value after a step, and the scale."""
    mesh = init_device_mesh("cpu", (2,))
    weight = torch.nn.Parameter(distribute_tensor(torch.ones(1), mesh, [Shard(0)]))
    weight.grad = distribute_tensor(torch.full((1,), 4.0 * gradient), mesh, [Shard(0)])
    optimizer, scaler = torch.optim.SGD([weight], lr=0.25), LossScaler(LossScaling(init_scale=4.0))
    scaler.step(optimizer)
    scaler.update()
    return weight.full_tensor().item(), scaler.get_scale()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("gradients")
    run_on_ranks(work, out)
    return on_both(out, "gradients")


def float64() -> list[Tensor]:
    *exact, half = wholes()
    return [*(grad.double() for grad in exact), half.half().double()]


def assert_equal_to(expected: list[Tensor], actual: list[Tensor]) -> None:
    for oracle, grad in zip(expected, actual, strict=True):
        torch.testing.assert_close(grad, oracle.to(grad.dtype))


def test_each_number_counts_once_in_the_norm(ranks: list[dict[str, Any]]) -> None:
    oracle = torch.stack([grad.square().sum() for grad in float64()]).sum()
    for rank in ranks:
        torch.testing.assert_close(rank["squared"], oracle, rtol=1e-6, atol=0)


def test_gradients_are_scaled_to_a_norm(ranks: list[dict[str, Any]]) -> None:
    norm = torch.cat([grad.flatten() for grad in float64()]).norm()
    for rank in ranks:
        assert_equal_to([grad * CLIP / norm for grad in float64()], rank["scaled to norm"])


def test_gradients_are_clamped(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert_equal_to([grad.clamp(-CLAMP, CLAMP) for grad in float64()], rank["clamped"])


def test_gradients_are_unscaled(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert_equal_to([grad / SCALE for grad in float64()], rank["unscaled"])


def test_largest_magnitudes_are_those_of_the_local_parts(ranks: list[dict[str, Any]]) -> None:
    largest = torch.maximum(*(rank["amax"] for rank in ranks))
    torch.testing.assert_close(largest.double(), torch.stack([grad.abs().max() for grad in float64()]))


def test_sums_are_done_before_they_are_judged(ranks: list[dict[str, Any]]) -> None:
    assert [rank["sums"] for rank in ranks] == [(True, False, True)] * 2


def test_a_rank_that_holds_no_part_of_a_weight_takes_part(ranks: list[dict[str, Any]]) -> None:
    assert [rank["steps"] for rank in ranks] == [[(0.75, 4.0), (1.0, 2.0)]] * 2
