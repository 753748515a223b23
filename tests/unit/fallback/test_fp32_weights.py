from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import BatchNorm1d, Embedding, Linear, Module, ModuleDict, MultiheadAttention, ParameterList, Sequential
from torchmetrics import MeanMetric

from mp_plugin.errors import UnsupportedError
from mp_plugin.fallback.fp32_weights import kept_in_fp32, tied_layers, to_fp32_

FP16, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32


def dtypes(module: Module) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in module.state_dict().items()}


def test_parameters_and_statistics_of_a_layer_are_fp32_and_the_same_objects() -> None:
    model = Sequential(Linear(2, 2), BatchNorm1d(2)).half()
    parameters = list(model.parameters())
    to_fp32_(model[1])
    assert dtypes(model) == {
        "0.weight": FP16,
        "0.bias": FP16,
        "1.weight": FP32,
        "1.bias": FP32,
        "1.running_mean": FP32,
        "1.running_var": FP32,
        "1.num_batches_tracked": torch.int64,
    }
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))


@pytest.mark.parametrize("dtype", [FP16, BF16])
def test_weights_are_kept_as_they_were_while_others_are_rounded(dtype: torch.dtype) -> None:
    model = Sequential(Linear(4, 4), Sequential(Linear(4, 4), BatchNorm1d(4)))
    with torch.no_grad():
        model[1][1].running_mean.fill_(1e6)  # which is infinite in fp16
    parameters, before = list(model.parameters()), {k: v.clone() for k, v in model.state_dict().items()}
    with kept_in_fp32(model, ["1"]):
        model.to(dtype)
    for name, value in model.state_dict().items():
        expected = before[name].to(dtype) if name.startswith("0") else before[name]
        torch.testing.assert_close(value, expected, rtol=0, atol=0)
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))


def test_what_was_half_before_is_cast_up() -> None:
    """A model that was made in half from the start."""
    model = Sequential(Linear(2, 2), BatchNorm1d(2)).bfloat16()
    with kept_in_fp32(model, ["1"]):
        model.bfloat16()
    assert {dtype for name, dtype in dtypes(model).items() if name.startswith("1") and "num" not in name} == {FP32}


def test_tied_parameters_stay_tied() -> None:
    model = Sequential(Embedding(4, 2), Linear(2, 4, bias=False))
    model[1].weight = model[0].weight
    with kept_in_fp32(model, ["0", *tied_layers(model, ["0"])]):
        model.half()
    assert model[1].weight is model[0].weight
    assert model[1].weight.dtype is FP32


def test_nothing_is_kept_after_an_error_that_stops_the_cast() -> None:
    model = Sequential(Linear(2, 2))
    with pytest.raises(LookupError), kept_in_fp32(model, ["0"]):
        raise LookupError
    assert set(dtypes(model).values()) == {FP32}


def test_a_recurrent_layer_still_runs() -> None:
    model = Sequential(torch.nn.LSTM(2, 2))
    with kept_in_fp32(model, ["0"]):
        model.half()
    output, _ = model(torch.ones(3, 2))
    assert output.dtype is FP32


def test_a_layer_without_weights_yet_is_fp32_too_once_it_has_them() -> None:
    model = Sequential(torch.nn.LazyLinear(2))
    with kept_in_fp32(model, ["0"]):
        model.half()
    assert model(torch.ones(1, 3)).dtype is FP32


# Ties.


def tie(**modules: Module) -> ModuleDict:
    model = ModuleDict(modules)
    model["head"].weight = model["embed"].weight
    return model


def test_an_output_layer_that_shares_the_embedding() -> None:
    model = tie(embed=Embedding(4, 2), norm=BatchNorm1d(2), head=Linear(2, 4))
    assert tied_layers(model, ["embed"]) == {"head": "tied to embed"}
    assert tied_layers(model, ["head"]) == {"embed": "tied to head"}
    assert tied_layers(model, ["norm"]) == {}
    assert tied_layers(model, ["embed", "head"]) == {}
    assert tied_layers(model, []) == {}


def test_only_the_holder_becomes_one_not_what_is_around_it() -> None:
    model = ModuleDict({"net": tie(embed=Embedding(4, 2), head=Linear(2, 4)), "other": Linear(2, 2)})
    assert tied_layers(model, ["net.head"]) == {"net.embed": "tied to net.head"}


def test_a_tie_may_tie_others() -> None:
    model = ModuleDict({name: Linear(2, 2) for name in "abc"})
    model["b"].weight = model["a"].weight
    model["c"].bias = model["b"].bias
    assert tied_layers(model, ["a"]) == {"b": "tied to a", "c": "tied to b"}
    assert tied_layers(model, ["c"]) == {"a": "tied to b", "b": "tied to c"}


def test_metrics_in_the_model_are_no_trouble() -> None:
    """Compared with `==` they make new metrics, which are true."""
    model = tie(metric=MeanMetric(), embed=Embedding(4, 2), head=Linear(2, 4))
    assert tied_layers(model, ["embed"]) == {"head": "tied to embed"}


def test_a_layer_below_one_that_is_fp32_anyway_needs_nothing() -> None:
    model = ModuleDict({"net": tie(embed=Embedding(4, 2), head=Linear(2, 4))})
    assert tied_layers(model, ["net"]) == {}


class Stack(Sequential):
    pass


def test_a_module_of_an_island_that_is_called_beside_it_is_one_itself() -> None:
    """Its weights are FP32 wherever it is called; below what is shared nothing more is needed."""
    shared = Stack(Embedding(4, 2), Linear(2, 2))
    model = ModuleDict({"encoder": Stack(shared, Linear(2, 2)), "decoder": Stack(shared, Linear(2, 2))})
    assert tied_layers(model, ["encoder"]) == {"encoder.0": "tied to encoder"}
    assert tied_layers(model, ["decoder"]) == {"encoder.0": "tied to decoder"}
    assert tied_layers(model, ["encoder", "decoder"]) == {}


def test_a_holder_that_nobody_calls_stands_for_the_layer_around_it() -> None:
    attention, head = MultiheadAttention(4, 2), Linear(4, 4)
    head.weight = attention.out_proj.weight
    assert tied_layers(ModuleDict({"attn": attention, "head": head}), ["head"]) == {"attn": "tied to head"}

    class Bag(Module):
        def __init__(self) -> None:
            super().__init__()
            self.weights = ParameterList([head.weight])

        def forward(self, x: Tensor) -> Tensor:
            return x

    assert tied_layers(ModuleDict({"bag": Bag(), "head": head}), ["head"]) == {"bag": "tied to head"}


@pytest.mark.parametrize("in_a_list", [False, True])
def test_a_parameter_that_the_model_itself_holds_is_refused(in_a_list: bool) -> None:
    model = Module()
    model.head = Linear(2, 2)
    held: Any = ParameterList([model.head.weight]) if in_a_list else model.head.weight
    model.held = held
    name = "held" if in_a_list else "the model"
    with pytest.raises(UnsupportedError, match=f"'head' cannot run in FP32: {name} itself, which cannot, holds"):
        tied_layers(model, ["head"])
