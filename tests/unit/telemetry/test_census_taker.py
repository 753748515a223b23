"""Known models under autocast on a CPU; what each operator does there was read off torch itself, not off a census."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mp_plugin.fallback.islands import Islands
from mp_plugin.telemetry.census import NOT_BY_ITSELF, NOT_RUN, Census
from mp_plugin.telemetry.census_taker import CensusTaker

HALF = {"fp16": torch.float16, "bf16": torch.bfloat16}


def taken(net: nn.Module, *inputs: Any, dtype: torch.dtype | None = torch.float16) -> Census:
    with CensusTaker(net) as taker, torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        net(*inputs)
    return taker.census()


@pytest.mark.parametrize("name", HALF)
def test_a_linear_layer_runs_in_the_format_of_autocast(name: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    census = taken(net, torch.zeros(2, 4), dtype=HALF[name])
    assert census.formats(net) == {"0": name, "1": name}
    assert census.counts["0"]["aten.addmm.default"] == {name: 1}
    assert census.counts["1"] == {"aten.tanh.default": {name: 1}}
    assert taken(net, torch.zeros(2, 4), dtype=None).formats(net) == {"0": "fp32", "1": "fp32"}


def test_half_and_double_weights_without_autocast() -> None:
    for dtype, name in ((torch.float16, "fp16"), (torch.bfloat16, "bf16"), (torch.float64, "fp64")):
        net = nn.Sequential(nn.Linear(4, 4).to(dtype))
        assert taken(net, torch.zeros(2, 4, dtype=dtype), dtype=None).formats(net) == {"0": name}


@pytest.mark.parametrize("layer", [nn.LayerNorm(4), nn.RMSNorm(4), nn.Linear(4, 4), nn.PReLU()], ids=str)
def test_what_comes_out_in_fp32_or_half_is_what_torch_says(layer: nn.Module) -> None:
    # Which layers stay in half differs between devices and releases: the output tells, and the census agrees with it.
    net = nn.Sequential(layer)
    inputs = torch.ones(2, 4, dtype=torch.float16)
    seen: list[torch.dtype] = []

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            output = operator(*args, **(kwargs or {}))
            if "norm" in str(operator) or "mm" in str(operator) or "mul" in str(operator) or "prelu" in str(operator):
                seen.append((output[0] if isinstance(output, tuple) else output).dtype)
            return output

    with pytest.warns(UserWarning, match="Mismatch dtype") if isinstance(layer, nn.RMSNorm) else _nothing():
        with Spy(), torch.autocast("cpu", dtype=torch.float16):
            net(inputs)
        expected = "fp16" if torch.float16 in seen else "fp32"
        assert taken(net, inputs).formats(net) == {"0": expected}


def test_an_island_runs_in_fp32_and_its_neighbours_do_not() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), nn.Linear(4, 4))
    with Islands(net, device_type="cpu").tried(["1"]):
        census = taken(net, torch.zeros(2, 4))
    assert census.formats(net) == {"0": "fp16", "1.0": "fp32", "1.1": "fp32", "2": "fp16"}


def test_attention_uses_its_output_projection_without_calling_it() -> None:
    net = nn.Sequential(nn.MultiheadAttention(4, 2, batch_first=True))
    inputs = torch.zeros(1, 3, 4)
    with CensusTaker(net) as taker, torch.autocast("cpu", dtype=torch.float16):
        net[0](inputs, inputs, inputs)
    assert taker.census().formats(net) == {"0": "fp16", "0.out_proj": NOT_BY_ITSELF}


def test_an_embedding_is_looked_up_in_fp32_and_its_tied_head_multiplied_in_half() -> None:
    embedding, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    head.weight = embedding.weight
    net = nn.Sequential(embedding, head)
    census = taken(net, torch.tensor([[1, 2]]))
    assert census.formats(net) == {"0": "fp32", "1": "fp16"}
    assert not census.lent


def test_a_convolution_with_batch_norm() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU())
    inputs = torch.randn(2, 1, 5, 5)
    census = taken(net, inputs)
    # On a CPU, batch norm takes fp16 with fp32 weights, and gives fp16.
    with torch.autocast("cpu", dtype=torch.float16):
        assert net[1](net[0](inputs)).dtype is torch.float16
    assert census.formats(net) == {"0": "fp16", "1": "fp16", "2": "fp16"}
    (operator,) = census.counts["1"]
    assert "batch_norm" in operator


def test_a_layer_that_nobody_calls_has_not_run() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused, self.borrowed = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return nn.functional.linear(self.used(inputs), self.borrowed.weight)

    net = Model()
    census = taken(net, torch.zeros(2, 4))
    assert census.formats(net) == {"used": "fp16", "unused": NOT_RUN, "borrowed": NOT_BY_ITSELF}
    assert census.on_parameters[""] == {"fp16": 1}


def test_operators_without_parameters_decide_nothing_beside_those_with() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, inputs: Tensor) -> Tensor:
            return (inputs.half() + 1).float() * self.scale  # an addition in fp16, a product in fp32

    net = nn.Sequential(Scaled())
    census = taken(net, torch.zeros(2, 4), dtype=None)
    assert census.counts["0"]["aten.add.Tensor"] == {"fp16": 1}
    assert census.formats(net) == {"0": "fp32"}


def test_casts_of_weights_are_followed_and_memory_that_is_used_again_is_not_taken_for_them() -> None:
    class Freed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1000))

        def forward(self, inputs: Tensor) -> Tensor:
            for _ in range(50):
                self.weight.half()  # is gone at once, and its memory free
                (torch.zeros(1000, dtype=torch.float16) + 1).sum()
            return inputs * self.weight.half().clone().view(-1)[:4].float()

    net = nn.Sequential(Freed())
    census = taken(net, torch.zeros(2, 4), dtype=None)
    assert census.on_parameters == {"0": {"fp32": 1}}


def test_a_module_with_two_names_goes_by_its_first() -> None:
    shared = nn.Linear(4, 4)
    net = nn.Sequential(shared, nn.Sequential(shared), shared)
    census = taken(net, torch.zeros(2, 4))
    assert census.counts["0"]["aten.addmm.default"] == {"fp16": 3}
    assert "1.0" not in census.counts
    assert "2" not in census.counts


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointed_and_compiled_layers(use_reentrant: bool) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.block = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, inputs: Tensor) -> Tensor:
            return checkpoint(self.block, self.first(inputs), use_reentrant=use_reentrant)  # type: ignore[no-any-return]

    model = Model()
    net = torch.compile(model, backend="eager")
    with torch.compiler.set_stance("force_eager"):
        census = taken(net, torch.zeros(2, 4))  # type: ignore[arg-type]
    assert census.formats(model) == {"first": "fp16", "block": "fp16"}
    assert census.formats(net) == {"first": "fp16", "block": "fp16"}  # type: ignore[arg-type]


def test_nothing_is_left_behind_by_an_exception() -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        taken(net, torch.zeros(2, 3))
    assert not net[0]._forward_pre_hooks
    assert not net[0]._forward_hooks


def test_complex_numbers_count_as_their_parts() -> None:
    class Fourier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filter = nn.Parameter(torch.ones(3, dtype=torch.complex64))

        def forward(self, inputs: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(inputs) * self.filter)

    net = nn.Sequential(Fourier())
    assert taken(net, torch.zeros(2, 4)).formats(net) == {"0": "fp32"}


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()
