from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mp_plugin.copy_on_write import CopyOnWrite, WriteWatch
from mp_plugin.telemetry.layer_stack import LayerStack
from mp_plugin.telemetry.trace import Trace


def arange(count: int = 4) -> torch.Tensor:
    return torch.arange(count, dtype=torch.float32)


@pytest.mark.parametrize(
    "write",
    [
        lambda each: each.add_(1),
        lambda each: each[1:].zero_(),
        lambda each: torch.add(each, 1, out=each),
        lambda each: torch._foreach_mul_([each, each], 2),
        lambda each: each.data.fill_(3),
        lambda each: each.copy_(torch.ones(4)),
        lambda each: each.index_add_(0, torch.tensor([0]), torch.ones(1)),
        lambda each: nn.functional.relu(each.sub_(2), inplace=True),
    ],
)
def test_every_write_to_a_tensor_from_before_is_taken_back(write: Any) -> None:
    tensor = arange()
    with CopyOnWrite(), torch.no_grad():
        write(tensor)
        assert not torch.equal(tensor, arange())
    assert torch.equal(tensor, arange())


def test_integers_and_views_go_back_too() -> None:
    tensor = torch.zeros(4, dtype=torch.long)
    view = tensor[2:]
    with CopyOnWrite():
        view += 1
    assert tensor.tolist() == [0] * 4


def test_only_what_was_there_before_is_copied() -> None:
    """A re-run of a large model must not hold each of its activations."""
    with CopyOnWrite() as guard:
        for _ in range(3):
            made = torch.zeros(4)
            made.add_(1)
            made[1:].mul_(2).view(3).sub_(1)
            torch.empty(3).normal_()
        assert guard._copies == []
    assert made.tolist() == [1, 1, 1, 1]


def test_memory_is_copied_once() -> None:
    tensor = arange()
    with CopyOnWrite() as guard:
        for _ in range(3):
            tensor.add_(1)
        assert len(guard._copies) == 1


@pytest.mark.parametrize("half", [False, True])
def test_batch_norm_s_statistics_go_back(half: bool) -> None:
    norm = nn.BatchNorm1d(4)
    inputs = torch.randn(8, 4, requires_grad=True)
    with CopyOnWrite(), torch.autocast("cpu", enabled=half):
        norm(inputs).sum().backward()
    assert torch.equal(norm.running_mean, torch.zeros(4))
    assert torch.equal(norm.running_var, torch.ones(4))
    assert norm.num_batches_tracked == 0


def test_gradients_made_in_the_block_add_up() -> None:
    weight = torch.ones(2, requires_grad=True)
    with CopyOnWrite():
        for _ in range(2):
            (weight * weight).sum().backward()
        assert weight.grad is not None
        assert weight.grad.tolist() == [4, 4]


def test_gradients_from_before_go_back() -> None:
    weight = torch.ones(2, requires_grad=True)
    (weight * weight).sum().backward()
    with CopyOnWrite():
        (weight * weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [2, 2]


def test_memory_that_was_given_back_is_left_alone() -> None:
    tensor = arange()
    with CopyOnWrite():
        tensor.add_(1)
        tensor.untyped_storage().resize_(0)
    assert tensor.untyped_storage().nbytes() == 0


def test_an_error_in_the_block_takes_back_as_well() -> None:
    tensor = arange()

    def fail() -> None:
        tensor.add_(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), CopyOnWrite():
        fail()
    assert torch.equal(tensor, arange())


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state:UserWarning")
def test_tensors_without_plain_memory_are_let_through() -> None:
    with CopyOnWrite():
        sparse = torch.eye(2).to_sparse()
        sparse.mul_(2)
        torch.eye(2).to_sparse_csr()
        torch.zeros(2, device="meta").add_(1)
    assert sparse.to_dense()[0, 0] == 2


@pytest.mark.parametrize(
    ("write", "is_seen"),
    [
        (lambda each: each.data.mul_(2), True),
        (lambda each: each[1:].zero_(), True),
        (lambda each: torch._foreach_mul_([each], 2), True),
        (lambda each: each.mul(2).add_(1), False),
        (lambda each: torch.ones_like(each).copy_(each), False),
    ],
)
def test_a_watch_sees_writes_to_its_tensors_only(write: Any, is_seen: bool) -> None:
    tensor = arange()
    with WriteWatch([tensor]) as watch:
        write(tensor)
    assert watch.saw_write == is_seen


VALUES = [1.5, -0.0, float("nan"), float("inf"), 1e-45, 3.0]


def bits(tensor: Tensor) -> list[int]:
    return tensor.detach().view(torch.int32).flatten().tolist()


def optimize(x: Tensor) -> None:
    parameter = nn.Parameter(x)  # shares its memory
    parameter.grad = torch.ones_like(x)
    torch.optim.AdamW([parameter], fused=True).step()


def forward_and_backward(x: Tensor) -> None:
    x.requires_grad_().mul(2).sum().backward()
    with torch.no_grad():
        x.sub_(1)
    x.requires_grad_(False)


WRITES: dict[str, Callable[[Tensor], Any]] = {
    "in place": lambda x: x.mul_(3),
    "twice": lambda x: x.mul_(3).add_(1),
    "view": lambda x: x.view(2, 3)[1].zero_(),
    "transposed": lambda x: x.view(2, 3).T.fill_(7),
    "slice": lambda x: x.__setitem__(slice(1, 3), 9.0),
    "index": lambda x: x.__setitem__(x > 0, 9.0),
    "detached": lambda x: x.detach().neg_(),
    "data": lambda x: x.data.copy_(torch.ones(6)),
    "other dtype": lambda x: x.view(torch.int32).zero_(),
    "out": lambda x: torch.add(torch.ones(6), 1, out=x),
    "out of two": lambda x: torch.max(torch.ones(6, 2), 1, out=(x, torch.empty(6, dtype=torch.long))),
    "foreach": lambda x: torch._foreach_mul_([torch.ones(1), x], 2.0),
    "random": lambda x: nn.init.normal_(x),
    "scatter": lambda x: x.scatter_add_(0, torch.tensor([0]), torch.ones(1)),
    "optimizer": optimize,
    "step": forward_and_backward,
    "vmap": lambda x: torch.vmap(lambda row: row.mul_(2))(x.view(2, 3)),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_write_is_taken_back_bit_by_bit(name: str) -> None:
    x = torch.tensor(VALUES)
    before, address = bits(x), x.data_ptr()
    with CopyOnWrite():
        WRITES[name](x)
        assert bits(x) != before
    assert (bits(x), x.data_ptr()) == (before, address)


def test_under_a_trace() -> None:
    layer = nn.Linear(2, 2)
    before = [parameter.detach().clone() for parameter in layer.parameters()]
    layers = LayerStack(layer)
    with CopyOnWrite(), layers, Trace(layers) as trace:
        with torch.no_grad():
            layer.weight.div_(0)
        loss = layer(torch.ones(1, 2)).sum()
    assert trace.failure is None
    assert trace.steps[0].operator == "aten.div_.Tensor"
    assert not loss.isfinite()
    for parameter, old in zip(layer.parameters(), before, strict=True):
        assert torch.equal(parameter, old)


def test_it_can_be_nested() -> None:
    x = torch.ones(1)
    with CopyOnWrite():
        x.add_(1)
        with CopyOnWrite():
            x.add_(1)
            assert x == 3
        assert x == 2
    assert x == 1
