"""Planted faults, each in a function of its own: the culprit is the line that says so."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from mp_plugin.telemetry.events import Direction
from mp_plugin.telemetry.layer_stack import LayerStack
from mp_plugin.telemetry.origin import Origin
from mp_plugin.telemetry.trace import Trace
from mp_plugin.telemetry.writers import storage_of
from tests.helpers.origins import marked_line, traced

INF = float("inf")
NAN = float("nan")
FORWARD, BACKWARD = Direction.forward, Direction.backward


class Step(nn.Module):
    """A parameter and what a step does with it."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values or (1.0, 2.0, 3.0, 4.0)))


CASES: list[tuple[Callable[[Tensor], Tensor], str | None, Direction]] = []


def case(operator: str | None, direction: Direction = FORWARD) -> Callable[[Any], Any]:
    """A step on a parameter of four numbers, and the operator to blame."""

    def register(function: Any) -> Any:
        CASES.append((function, operator, direction))
        return function

    return register


# Numbers that become finite again blame nobody.


@case(None)
def inverse_of_inf(w: Tensor) -> Tensor:
    return (1 / (w.detach() * 0 + 1e30).pow(2)).sum() + w.sum()


@case("log")
def a_fault_after_harmless_ones(w: Tensor) -> Tensor:
    zero = w.detach() * 0
    harmless = torch.where(zero == 0, w, 1 / zero) + (1 / zero).nan_to_num(posinf=0.0) + (1 / zero).clamp(max=1)
    harmless = harmless + (0 / zero).masked_fill(zero == 0, 0.0) + torch.minimum(1 / zero, w)
    return (harmless - harmless.detach() + zero).log().sum()  # culprit


@case("exp")
def a_fault_before_harmless_ones(w: Tensor) -> Tensor:
    x = (w * 1000).exp()  # culprit
    y = (w.detach() * 0).log()
    return (x + y.clamp(min=0)).mean()


# Masks.


def _masked_row(scores: Tensor) -> Tensor:
    return torch.tensor([True, True, True, True]).expand_as(scores)


@case(None)
def a_mask_of_one_place(w: Tensor) -> Tensor:
    return w.masked_fill(torch.tensor([True, False, False, False]), -INF).softmax(0).square().sum()


@case("_softmax")
def a_masked_row(w: Tensor) -> Tensor:
    scores = w.masked_fill(_masked_row(w), -INF)
    return scores.softmax(0).sum()  # culprit


@case("_softmax")
def a_masked_row_by_where(w: Tensor) -> Tensor:
    scores = torch.where(_masked_row(w), -INF, w)
    return scores.softmax(0).sum()  # culprit


@case("_softmax")
def a_masked_row_by_a_tensor(w: Tensor) -> Tensor:
    scores = torch.where(_masked_row(w), torch.tensor(-INF), w)
    return scores.softmax(0).sum()  # culprit


@case("_softmax")
def a_masked_row_added(w: Tensor) -> Tensor:
    scores = w + torch.full((4,), -INF)
    return scores.softmax(0).sum()  # culprit


@case("_softmax")
def a_masked_row_of_a_triangle(w: Tensor) -> Tensor:
    mask = torch.full((4, 4), -INF).tril(0)  # the wrong half
    return (w.expand(4, 4) + mask).softmax(1).sum()  # culprit


@case("_softmax")
def a_masked_row_in_place(w: Tensor) -> Tensor:
    scores = w.expand(2, 4).clone()
    scores[1, :] = -INF
    return scores.view(2, 2, 2).flatten(1).softmax(1).sum()  # culprit


@case("_softmax")
def a_masked_row_by_index(w: Tensor) -> Tensor:
    scores = w.clone()
    scores[scores > 0] = -INF
    return scores.softmax(0).sum()  # culprit


@case("sub")
def a_masked_row_in_a_softmax_by_hand(w: Tensor) -> Tensor:
    scores = w.masked_fill(_masked_row(w), -INF)
    weights = (scores - scores.amax()).exp()  # culprit
    return (weights / weights.sum()).sum()


@case("div")
def a_masked_row_in_a_plain_softmax_by_hand(w: Tensor) -> Tensor:
    weights = w.masked_fill(_masked_row(w), -INF).exp()
    return (weights / weights.sum()).sum()  # culprit


@case("sub")
def a_masked_row_with_logsumexp(w: Tensor) -> Tensor:
    scores = w.masked_fill(_masked_row(w), -INF)
    return (scores - scores.logsumexp(0)).exp().sum()  # culprit


@case("_to_copy")
def a_mask_that_a_cast_overflows(w: Tensor) -> Tensor:
    mask = torch.full((4,), torch.finfo(torch.float32).min).half()  # culprit
    return (w.half() + mask).softmax(0).float().sum()


@case("mm")
def an_overflow_beside_a_mask_that_a_cast_overflowed(w: Tensor) -> Tensor:
    mask = torch.tensor([[0.0, torch.finfo(torch.float32).min]]).half()
    scores = (w.half() * 200).view(1, 4) @ (w.half() * 200).view(2, 2).repeat(2, 1)  # culprit
    return (scores + mask).softmax(1).float().sum()


@case("add")
def an_overflow_in_the_sum_of_scores_and_mask(w: Tensor) -> Tensor:
    mask = torch.tensor([0.0, 65504.0, 0.0, -INF]).half()
    scores = w.half() * 1000 + mask  # culprit
    return scores.softmax(0).float().sum()


@case("mul")
def a_mask_times_zero(w: Tensor) -> Tensor:
    mask = torch.full((4,), -INF)
    return (torch.zeros(4) * mask + w).sum()  # culprit


@case("mul")
def a_mask_made_by_multiplication(w: Tensor) -> Tensor:
    mask = torch.ones(4).triu() * -INF if w.dim() > 1 else torch.tensor([0.0, 1, 1, 1]) * -INF  # culprit
    return (w + mask).softmax(0).sum()


@case("masked_fill")
def a_minimum_over_what_is_masked_entirely(w: Tensor) -> Tensor:
    distances = w.masked_fill(_masked_row(w), INF)  # culprit
    return distances.amin()


@case("exp")
def an_overflow_beside_a_minimum_with_masks(w: Tensor) -> Tensor:
    distances = w.masked_fill(torch.tensor([True, False, False, False]), INF)
    return distances.amin() + (w * 1000).exp().sum()  # culprit


@case(None)
def attention_with_a_mask(w: Tensor) -> Tensor:
    q = w.view(1, 1, 2, 2)
    mask = torch.tensor([[0.0, -INF], [0.0, 0.0]])
    return F.scaled_dot_product_attention(q, q, q, attn_mask=mask).sum()


# Parts of a memory.


@case("log_")
def one_chunk_of_three(w: Tensor) -> Tensor:
    x = w.expand(3, 4).clone()
    x[1].sub_(x[1].detach().clone())
    x[1].log_()  # culprit
    x[0].masked_fill_(torch.tensor([True, False, False, False]), -INF)
    q, k, _ = x.chunk(3)
    return k.sum() + q.softmax(1).sum()


@case("mul_")
def a_slice_beside_a_masked_one(w: Tensor) -> Tensor:
    x = w.expand(2, 4).clone()
    x[0].mul_(1e30).mul_(1e30)  # culprit
    x[1].fill_(-INF)
    return x[0].sum()


@case("mul_")
def columns_of_one_memory(w: Tensor) -> Tensor:
    x = w.expand(2, 4).clone()
    x[:, 1].mul_(1e30).mul_(1e30)  # culprit
    x[:, 2].div_(0)
    return x[:, :2].sum()


@case("div_")
def a_part_that_is_overwritten_with_the_rest(w: Tensor) -> Tensor:
    x = w.expand(2, 4).clone()
    x[0].div_(0)  # culprit
    x[1].fill_(-INF)
    return x.mul_(0).sum()


@case("sqrt")
def a_fault_that_was_overwritten(w: Tensor) -> Tensor:
    x = (w.detach() - 10).sqrt()
    x.zero_()
    y = (w - 10).sqrt()  # culprit
    return (x + y).sum()


@case("exp")
def garbage_that_is_filled_in_part(w: Tensor) -> Tensor:
    (w.detach() * 1000).exp()
    buffer = torch.empty(8).fill_(NAN)
    buffer[:4] = (w * 1000).exp()  # culprit
    return buffer[:4].sum()


@case("sqrt")
def memory_that_is_used_again(w: Tensor) -> Tensor:
    for _ in range(50):
        garbage = (w.detach() * 1000).exp()
        del garbage
        fresh = w.detach().clone().mul_(1)
        del fresh
    return (w - 10).sqrt().sum()  # culprit


@case("exp")
def written_to_by_out(w: Tensor) -> Tensor:
    out = torch.full((4,), NAN)
    torch.exp(w.detach() * 1000, out=out)  # culprit
    return (out + w).sum()


@case("log")
def through_index_put_and_gather(w: Tensor) -> Tensor:
    bad = (w[:2] * 0).log()  # culprit
    x = torch.zeros(8).index_put((torch.tensor([1, 2]),), bad).scatter(0, torch.tensor([5]), w[:1] / 1)
    return x.gather(0, torch.tensor([0, 2])).sum()


@case(None)
def a_bad_row_that_nobody_looks_up(w: Tensor) -> Tensor:
    table = torch.stack([w.detach() / 0, w])
    return F.embedding(torch.tensor([1, 1]), table).square().sum()


@case("_foreach_mul_")
def one_of_a_list(w: Tensor) -> Tensor:
    several = [w.detach().clone(), w.detach().clone()]
    torch._foreach_mul_(several, [1.0, 1e39])  # culprit
    return (several[1] + w).sum()


@case("exp")
def a_long_chain(w: Tensor) -> Tensor:
    x = (w * 1000).exp()  # culprit
    for _ in range(3000):
        x = x + 1
    return x.sum()


@case("mul")
def complex_numbers(w: Tensor) -> Tensor:
    x = torch.view_as_complex(w.view(2, 2)) * 1e30
    return torch.view_as_real(x * x).sum()  # culprit


# Backward.


@case("div", BACKWARD)
def root_of_zero(w: Tensor) -> Tensor:
    return (w - w.detach()).sqrt().sum()  # culprit


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Any:
        return x * 1, x * 2

    @staticmethod
    def backward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        return first / 0 + second


@case("div", BACKWARD)
def a_function_with_two_outputs(w: Tensor) -> Tensor:
    a, b = Twice.apply(w)  # culprit
    return (a + b).sum()


class Nothing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / 0


@case("div", BACKWARD)
def a_function_that_does_nothing_forward(w: Tensor) -> Tensor:
    x = w * 2
    x = Nothing.apply(x)  # culprit
    return (x * 3).sum()


class ViewAs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.new_full(gradient.shape, NAN)


@case("new_full", BACKWARD)
def a_function_that_views(w: Tensor) -> Tensor:
    x = w * 2
    x = ViewAs.apply(x)  # culprit
    return (x * 3).sum()


class Decorated(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu")
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / 0


@case("div", BACKWARD)
def a_decorated_function(w: Tensor) -> Tensor:
    x = Decorated.apply(w)  # culprit
    return (x * 3).sum()


@case("mul", BACKWARD)
def a_hook_on_a_tensor(w: Tensor) -> Tensor:
    x = w * 2
    x.register_hook(
        lambda gradient: gradient * 1e39  # culprit
    )
    return x.sum()


@case("exp", FORWARD)
def without_gradient(w: Tensor) -> Tensor:
    with torch.no_grad():
        factor = (w * 1000).exp()  # culprit
    return (w * factor).sum()


@case("div", FORWARD)
def a_gradient_penalty(w: Tensor) -> Tensor:
    y = (w - w.detach()).sqrt().sum()  # culprit
    (gradient,) = torch.autograd.grad(y, w, create_graph=True)
    return gradient.square().sum()


@case("div", BACKWARD)
def backward_of_a_gradient_penalty(w: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(w.square().sum(), w, create_graph=True)
    return (gradient - gradient.detach()).sqrt().sum()  # culprit


@case("log")
def functional_gradient(w: Tensor) -> Tensor:
    def inner(x: Tensor) -> Tensor:
        return (x * 0).log().sum()  # culprit

    return (torch.func.grad_and_value(inner)(w)[1] * w).sum()


@case("log")
def inside_vmap(w: Tensor) -> Tensor:
    def inner(x: Tensor) -> Tensor:
        return (x * 0).log()  # culprit

    return torch.func.vmap(inner)(w).sum()


@case("div", BACKWARD)
def recomputed(w: Tensor) -> Tensor:
    def block(x: Tensor) -> Tensor:
        return (x - x.detach()).sqrt()  # culprit

    return checkpoint(block, w * 1, use_reentrant=False).sum()


@case("div", BACKWARD)
def recomputed_reentrant(w: Tensor) -> Tensor:
    def block(x: Tensor) -> Tensor:
        return (x - x.detach()).sqrt()  # culprit

    return checkpoint(block, w * 1, use_reentrant=True).sum()


@case("div", BACKWARD)
def recomputed_twice(w: Tensor) -> Tensor:
    def block(x: Tensor) -> Tensor:
        return (x - x.detach()).sqrt()  # culprit

    def outer(x: Tensor) -> Tensor:
        return checkpoint(block, x * 2, use_reentrant=False) * 3

    return checkpoint(outer, w * 1, use_reentrant=False).sum()


@case("div", BACKWARD)
def recomputed_twice_reentrant(w: Tensor) -> Tensor:
    def block(x: Tensor) -> Tensor:
        return (x - x.detach()).sqrt()  # culprit

    def outer(x: Tensor) -> Tensor:
        return checkpoint(block, x * 2, use_reentrant=True) * 3

    return checkpoint(outer, w * 1, use_reentrant=True).sum()


@case("log")
def forward_fault_in_what_is_recomputed(w: Tensor) -> Tensor:
    def block(x: Tensor) -> Tensor:
        return (x * 0).log()  # culprit

    return checkpoint(block, w * 1, use_reentrant=True).sum()


@case("sqrt")
def a_call_over_several_lines(w: Tensor) -> Tensor:
    return torch.stack(
        [
            w,
            torch.sqrt(  # culprit
                w - 10,
            ),
        ]
    ).sum()


class Large(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 0 + 3e38


@case("add", BACKWARD)
def two_finite_gradients_with_an_infinite_sum(w: Tensor) -> Tensor:
    x = w * 1
    first = Large.apply(x)  # culprit
    return (first + Large.apply(x)).sum()


@case("mul", BACKWARD)
def a_hook_on_a_parameter(w: Tensor) -> Tensor:
    w.register_hook(
        lambda gradient: gradient * INF  # culprit
    )
    return w.sum()


@case("mul", BACKWARD)
def saved_tensors_that_come_back_spoiled(w: Tensor) -> Tensor:
    def unpack(saved: Tensor) -> Tensor:
        return saved * INF  # culprit

    with torch.autograd.graph.saved_tensors_hooks(lambda saved: saved, unpack):
        return (w * w.sin()).sum()


@torch.library.custom_op("mp_plugin_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


twice.register_autograd(lambda ctx, gradient: gradient / 0)


@case("div", BACKWARD)
def a_custom_operator(w: Tensor) -> Tensor:
    return twice(w).sum()  # culprit


@case("mul")
def the_branch_that_was_chosen(w: Tensor) -> Tensor:
    ignored = (w.detach() * 0).log()
    large = w * 1e20 * 1e20  # culprit
    return torch.where(w > 0, large, ignored).sum()


@case("mul")
def an_overflow_whose_sign_is_turned_beside_a_mask(w: Tensor) -> Tensor:
    x = torch.stack([w, w]).masked_fill(torch.tensor([[True], [False]]), -INF)
    x = -(x * torch.tensor([[1.0], [1e38]]))  # culprit
    return x[1].sum()


@case("_softmax")
def a_masked_row_by_a_matrix_product(w: Tensor) -> Tensor:
    mask = torch.zeros(2, 2).masked_fill(torch.tensor([[True, True], [False, True]]), -INF)
    scores = torch.addmm(mask, w.view(2, 2), w.view(2, 2))
    return scores.softmax(1).sum()  # culprit


@case("addmm")
def an_overflow_of_a_matrix_product_with_a_mask(w: Tensor) -> Tensor:
    mask = torch.tensor([[0.0, -INF], [0.0, 0.0]])
    scores = torch.addmm(mask, w.view(2, 2) * 1e20, w.view(2, 2) * 1e20)  # culprit
    return scores.softmax(1).sum()


@case("exp")
def a_product_of_complex_numbers_after_a_fault(w: Tensor) -> Tensor:
    x = torch.view_as_complex((w * 1000).exp().view(2, 2))  # culprit
    return (x * x.conj()).real.sum()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize(("step", "operator", "direction"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_the_culprit_is_named(step: Callable[[Tensor], Tensor], operator: str | None, direction: Direction) -> None:
    model = Step()
    found = traced(lambda: step(model.w), model)
    assert found.operator == operator
    if operator is not None and found.step is not None:
        assert (found.line, found.step.direction) == (marked_line(step), direction)
        assert found.source is None


# What was there before the step.


class There(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.ones(2, 2))
        self.register_buffer("held", torch.full((2, 2), value))


@pytest.mark.parametrize("value", [NAN, INF])
@pytest.mark.parametrize(
    "run", [lambda m: m.w * m.held, lambda m: m.held.t()[0] * m.w, lambda m: F.layer_norm(m.held @ m.w, (2,))]
)
def test_what_was_there_before_is_told_from_what_was_made(run: Any, value: float) -> None:
    model = There(value)
    found = traced(lambda: run(model).sum(), model)
    assert found.source is not None
    assert (found.source.storage, found.source.kind.value) == (storage_of(model.held), str(value))


@pytest.mark.parametrize(
    ("run", "operator", "is_to_blame"),
    [
        (lambda m: (m.w + m.held).softmax(0), "_softmax", False),
        (lambda m: m.w + m.held - (m.w + m.held).amax(), "sub", False),
        (lambda m: F.layer_norm(m.held * m.w, (2,)), "native_layer_norm", True),
        (lambda m: m.w * (m.held - m.held.mean()), "mean", True),
        (lambda m: m.held @ m.w, "mm", True),
    ],
)
def test_a_mask_that_was_there_before_is_to_blame_if_it_is_used_as_a_number(
    run: Any, operator: str, is_to_blame: bool
) -> None:
    model = There(-INF)
    found = traced(lambda: run(model).sum(), model)
    assert (found.operator, found.source is not None) == (operator, is_to_blame)


# Layers of torch.


def test_a_weight_beyond_half_precision() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight[0, 0] = 1e6

    def step() -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return model(torch.ones(1, 4)).float().sum()

    found = traced(step, model)
    assert found.step is not None
    assert (found.operator, found.step.layer, found.source) == ("_to_copy", "1", None)


def test_sparse_gradients() -> None:
    model = nn.ModuleDict({"table": nn.Embedding(4, 2, sparse=True)})

    def step() -> Tensor:
        rows = model["table"](torch.tensor([1, 2, 1]))
        return (rows - rows.detach()).sqrt().sum()  # culprit

    found = traced(step, model)
    assert found.step is not None
    assert model["table"].weight.grad.is_sparse
    assert (found.operator, found.line, found.step.direction) == ("div", marked_line(step), BACKWARD)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_recurrent_layers(kind: type[nn.RNNBase]) -> None:
    model = nn.ModuleDict({"rnn": kind(4, 4)})
    with torch.no_grad():
        model["rnn"].weight_hh_l0[0, 0] = NAN
    found = traced(lambda: model["rnn"](torch.ones(3, 1, 4))[0].sum(), model)
    assert found.step is not None
    assert found.step.layer == "rnn"
    assert found.source is not None
    assert found.source.storage == storage_of(model["rnn"].weight_hh_l0)


def test_attention_weights_of_a_masked_row() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2)})
    x, mask = torch.ones(3, 1, 4), torch.ones(1, 3, dtype=torch.bool)
    found = traced(lambda: model["attention"](x, x, x, key_padding_mask=mask)[0].sum(), model)
    assert found.step is not None
    assert (found.operator, found.step.layer) == ("_softmax", "attention")


@pytest.mark.parametrize("is_training", [True, False])
def test_an_encoder_also_on_its_fast_path(is_training: bool) -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), 2)
    model.train(is_training)
    with torch.no_grad():
        model.layers[1].linear1.weight[0] = 1e38
        model.layers[1].linear1.weight[0, ::2] = -1e38
        model.layers[1].linear1.bias[0] = 3e38

    def step() -> Tensor:
        with torch.set_grad_enabled(is_training):
            return model(10 * torch.randn(2, 5, 8)).sum()

    found = traced(step, model)
    assert found.step is not None
    assert (found.operator, found.step.layer) == ("addmm", "layers.1.linear1")


# The trace itself.


def test_a_sum_of_gradients_from_two_passes() -> None:
    model = nn.Sequential(nn.Linear(4, 1, bias=False))
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3e38)
    found = traced(lambda: model(torch.full((1, 4), 3e38)).mul(1e-10).sum(), model, scale=1e10)
    assert found.step is not None
    assert (found.operator, found.step.layer, found.line) == ("add_", "0", None)


def test_what_it_traces_is_not_changed() -> None:
    def run(watched: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.BatchNorm1d(4), nn.Linear(4, 4))
        x = torch.randn(8, 4)
        x[0, 0] = NAN
        layers = LayerStack(model)
        with layers, Trace(layers) if watched else nullcontext():
            loss = model(x).relu_().square().sum()
            loss.backward()
        return [loss.detach(), torch.rand(1), *(each.grad for each in model.parameters()), *model.buffers()]

    for plain, traced_ in zip(run(False), run(True), strict=True):
        assert torch.equal(plain.nan_to_num(), traced_.nan_to_num())


def test_a_call_is_kept_as_it_was() -> None:
    w = torch.ones(3, requires_grad=True)
    layers = LayerStack(nn.Identity())
    with layers, Trace(layers) as trace:
        x = w * torch.tensor([1.0, 2.0, 3e38])
        y = x * 10
        y.relu_().mul_(0.0)
        x.detach().zero_()
    (overflow, *_) = trace.steps
    assert overflow.call.args[0].tolist() == pytest.approx([1.0, 2.0, 3e38])
    assert overflow.call.output.tolist() == [10.0, 20.0, INF]


def test_only_the_operators_asked_for_are_looked_at() -> None:
    def step() -> Tensor:
        w = torch.ones(2, requires_grad=True)
        return (w * INF).exp() + (w * 0).log() - (w - 5).log()

    everything = Trace(LayerStack(nn.Identity()))
    with everything:
        step()
    logarithms = [each for each in everything.steps if each.operator == "aten.log.default"]
    signature = (logarithms[0].operator, logarithms[0].location, logarithms[0].direction)
    assert len(logarithms) == 2
    assert len(everything.steps) > 4
    only = Trace(LayerStack(nn.Identity()), only=frozenset({signature}))
    with only:
        step()
    assert [(each.operator, each.is_maker) for each in only.steps] == [("aten.log.default", True)] * 2
    elsewhere = Trace(LayerStack(nn.Identity()), only=frozenset({(signature[0], "net.py:1 in f", signature[2])}))
    with elsewhere:
        step()
    assert elsewhere.steps == []


def test_a_failure_stops_nothing_and_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError("first")

    trace = Trace(LayerStack(nn.Identity()))
    monkeypatch.setattr(trace._spots, "where", fail)
    with trace:
        x = torch.zeros(1).log() + 1
    assert x == -INF
    assert isinstance(trace.failure, ZeroDivisionError)


def test_what_cannot_be_looked_at_counts_as_finite() -> None:
    with Trace(LayerStack(nn.Identity())) as trace:
        torch.ones(2, device="meta") / 0
    assert trace.steps == []
    assert trace.failure is None


def test_memory_that_nobody_was_seen_writing_leads_to_the_earliest_fault() -> None:
    spoiled = torch.zeros(3)
    with Trace(LayerStack(nn.Identity())) as trace:
        fault = torch.zeros(3).log()
        spoiled.numpy()[:] = fault.numpy()
        torch.zeros(1).reciprocal()
    assert trace.find_origin([torch.ones(1)]) is None
    assert trace.find_origin([spoiled]) == Origin(0)


def test_an_infinite_number_set_by_hand_is_to_blame_itself() -> None:
    with Trace(LayerStack(nn.Identity())) as trace:
        weights = torch.ones(3)
        weights[1] = float("inf")
        loss = (weights * torch.zeros(3)).sum()
    origin = trace.find_origin([loss])
    assert origin is not None
    assert trace.steps[origin.step].operator == "aten.lift_fresh.default"


def test_a_mask_of_a_number_set_by_hand_is_meant() -> None:
    with Trace(LayerStack(nn.Identity())) as trace:
        scores = torch.where(torch.tensor([True, True]), torch.tensor(float("-inf")), torch.zeros(2))
        loss = scores.softmax(0).sum()
    origin = trace.find_origin([loss])
    assert origin is not None
    assert trace.steps[origin.step].operator == "aten._softmax.default"
