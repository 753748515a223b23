"""Islands on two gloo processes under DDP, FSDP1 and FSDP2, against the same steps written out by hand on one."""

import copy
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, MixedPrecisionPolicy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn import Linear, Module, Sequential, Tanh
from torch.nn.functional import linear
from torch.nn.parallel import DistributedDataParallel

from mp_plugin import AdaptivePrecision
from mp_plugin.errors import UnsupportedError
from mp_plugin.fallback.fp32_weights import kept_in_fp32
from mp_plugin.fallback.islands import Islands
from mp_plugin.fallback.layers import layers_by_name
from mp_plugin.fallback.sharding import refuse_mixed_units, refuse_sharded_half
from tests.helpers.ranks import run_on_ranks
from tests.helpers.sharding import on_both, whole_state

pytestmark = pytest.mark.xdist_group("ranks")

BF16, FP32 = torch.bfloat16, torch.float32
STEPS = [(), ("1",), ("3",), ("1", "3"), ()]
"""Names of the islands in each training step; set anew between them."""
LEARNING_RATE = 0.5


def net() -> Sequential:
    torch.manual_seed(1)
    return Sequential(Linear(6, 6), Linear(6, 6), Tanh(), Linear(6, 2))


def batch(rank: int) -> Tensor:
    return torch.randn(4, 6, generator=torch.Generator().manual_seed(rank))


# The same by hand.


def forward_by_hand(weights: dict[str, Tensor], x: Tensor, islands: tuple[str, ...]) -> Tensor:
    """Bf16 but for the islands; their output is FP32 for tanh too."""
    for name in ("0", "1", "3"):
        kind = FP32 if name in islands else BF16
        x = linear(x.to(kind), weights[f"{name}.weight"].to(kind), weights[f"{name}.bias"].to(kind))
        x = x.tanh() if name == "1" else x
    return x


def by_hand() -> list[dict[str, Any]]:
    """Outputs of both ranks and the weights after each step, with gradients averaged over ranks."""
    weights = {name: p.detach().clone() for name, p in net().named_parameters()}
    steps = []
    for islands in STEPS:
        leaves = {name: weight.requires_grad_() for name, weight in weights.items()}
        outputs = [forward_by_hand(leaves, batch(rank), islands) for rank in range(2)]
        loss = sum(output.float().square().mean() for output in outputs) / 2
        gradients = torch.autograd.grad(loss, list(leaves.values()))  # type: ignore[arg-type]
        weights = {
            name: weight.detach() - LEARNING_RATE * gradient
            for (name, weight), gradient in zip(leaves.items(), gradients, strict=True)
        }
        steps.append({"outputs": [output.detach() for output in outputs], "weights": weights})
    return steps


# Ways to spread the model.


def mesh() -> Any:
    return init_device_mesh("cpu", (2,))


def ddp(model: Sequential) -> Module:
    return DistributedDataParallel(model)


def ddp_checkpointed(model: Sequential) -> Module:
    model[1] = checkpoint_wrapper(model[1], CheckpointImpl.NO_REENTRANT)  # type: ignore[no-untyped-call]
    return DistributedDataParallel(model)


def ddp_compiled(model: Sequential) -> Module:
    return DistributedDataParallel(torch.compile(model, backend="aot_eager"))  # type: ignore[arg-type]


def plugins_policy() -> MixedPrecision:
    plugin = AdaptivePrecision("bf16")
    plugin._has_fallback = True
    return plugin.mixed_precision_config


HALF_BUT = MixedPrecision(param_dtype=BF16, reduce_dtype=FP32, cast_root_forward_inputs=False)


def fsdp1(model: Module, policy: MixedPrecision | None = None, **options: Any) -> Module:
    policy = policy or plugins_policy()
    options = {"use_orig_params": True, **options}
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), mixed_precision=policy, **options)


def fsdp1_own_units(model: Sequential) -> Module:
    """The islands in FP32 units, all else is gathered in half."""
    for place in (1, 3):
        model[place] = fsdp1(model[place], MixedPrecision())
    return fsdp1(model, HALF_BUT)


def fsdp2(model: Sequential) -> Module:
    return fully_shard(model, mesh=mesh())


def fsdp2_own_units(model: Sequential) -> Module:
    half = MixedPrecisionPolicy(param_dtype=BF16, reduce_dtype=FP32, cast_forward_inputs=False)
    for place in (1, 3):
        fully_shard(model[place], mesh=mesh())
    return fully_shard(model, mesh=mesh(), mp_policy=half)


by_layer = ModuleWrapPolicy({Linear})
KINDS: dict[str, Callable[[Sequential], Module]] = {
    "ddp": ddp,
    "ddp, checkpointed": ddp_checkpointed,
    "ddp, compiled": ddp_compiled,
    "fsdp1, whole": fsdp1,
    "fsdp1, by layer": partial(fsdp1, auto_wrap_policy=by_layer),
    "fsdp1, flat": partial(fsdp1, auto_wrap_policy=by_layer, use_orig_params=False),
    "fsdp1, own units": fsdp1_own_units,
    "fsdp2": fsdp2,
    "fsdp2, own units": fsdp2_own_units,
}


def unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if not part.startswith("_"))


def train(kind: str) -> dict[str, Any]:
    rank, model = int(os.environ["RANK"]), net()
    wrapped = KINDS[kind](model)
    classes = [type(module) for module in wrapped.modules()]
    islands = Islands(model, device_type="cpu")
    optimizer = torch.optim.SGD(wrapped.parameters(), lr=LEARNING_RATE)
    refuse_sharded_half(wrapped, model, ["1", "3"])
    steps = []
    for names in STEPS:
        islands.set(names)
        with torch.autocast("cpu", BF16, cache_enabled=False):
            output = wrapped(batch(rank))
        output.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        weights = whole_state(wrapped, is_fsdp1=kind.startswith("fsdp1"))
        plain = {
            ".".join(part for part in name.split(".") if part[0] != "_"): weight for name, weight in weights.items()
        }
        steps.append({"output": output.detach(), "weights": plain})
    islands.set([])
    return {"steps": steps, "undone": [type(module) for module in wrapped.modules()] == classes}


# What is refused.


def refused(function: Callable[[], None]) -> str:
    try:
        function()
    except UnsupportedError as error:
        return str(error)
    return ""


def refusals() -> dict[str, str]:
    found = {}
    model = net()
    wrapped = fsdp1(model, HALF_BUT, auto_wrap_policy=by_layer)
    for name, names in {"fsdp1": ["3"], "fsdp1, any": None, "fsdp1, no weights": ["2"], "fsdp1, none": []}.items():
        found[name] = refused(partial(refuse_sharded_half, wrapped, model, names))
    flat = net()
    wrapped = fsdp1(flat, HALF_BUT, use_orig_params=False)
    found["fsdp1, flat"] = refused(partial(refuse_sharded_half, wrapped, flat, ["1"]))
    half = MixedPrecisionPolicy(param_dtype=BF16)
    model = net()
    fully_shard(model[1], mesh=mesh(), mp_policy=half)
    fully_shard(model, mesh=mesh())
    found["fsdp2"] = refused(partial(refuse_sharded_half, model, model, ["0", "1"]))
    found["fsdp2, another"] = refused(partial(refuse_sharded_half, model, model, ["0", "3"]))
    model = fully_shard(net(), mesh=mesh())
    with kept_in_fp32(model, ["1"]):
        model.bfloat16()
    found["fsdp2, mixed unit"] = refused(partial(refuse_mixed_units, model))
    return found


def half_weights() -> dict[str, Any]:
    """FSDP2 with bf16 weights, and FP32 ones in a unit by itself."""
    rank, model = int(os.environ["RANK"]), net()
    fully_shard(model[1], mesh=mesh())
    fully_shard(model, mesh=mesh())
    with kept_in_fp32(model, ["1"]):
        model.bfloat16()
    refuse_mixed_units(model)
    refuse_sharded_half(model, model, ["1"])
    islands = Islands(model, device_type="cpu", output_dtype=BF16)
    islands.set(["1"])
    output = model(batch(rank).to(BF16))
    output.float().square().mean().backward()
    gradients = {name: p.grad.full_tensor() for name, p in model.named_parameters()}  # type: ignore[union-attr]
    return {"output": output.detach(), "gradients": gradients, "names": list(layers_by_name(model))}


def train_all(out: Path) -> None:
    rank = os.environ["RANK"]
    dist.init_process_group("gloo")
    for kind in KINDS:
        torch.save(train(kind), out / f"{kind}-rank{rank}.pt")
    torch.save(refusals(), out / f"refusals-rank{rank}.pt")
    torch.save(half_weights(), out / f"half weights-rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("islands")
    run_on_ranks(train_all, out)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_islands_compute_in_fp32_and_are_undone(trained: Path, kind: str) -> None:
    expected, (first, second) = by_hand(), on_both(trained, kind)
    assert first["undone"]
    assert second["undone"]
    # In a later step the weights themselves may differ in their last bits, and so may bf16 ones in theirs.
    for number, step in enumerate(expected):
        for rank, result in enumerate((first, second)):
            actual = result["steps"][number]
            exact = {"rtol": 0, "atol": 0} if number == 0 else {"rtol": 1e-2, "atol": 1e-2}
            torch.testing.assert_close(actual["output"], step["outputs"][rank], **exact)
            torch.testing.assert_close(actual["weights"], step["weights"], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(
            first["steps"][number]["weights"], second["steps"][number]["weights"], rtol=0, atol=0
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_format_of_the_output_follows_the_set(trained: Path, kind: str) -> None:
    for result in on_both(trained, kind):
        assert [step["output"].dtype for step in result["steps"]] == [FP32 if "3" in names else BF16 for names in STEPS]


def test_the_oracle_tells_islands_from_none() -> None:
    """Else the tests above could not fail."""
    weights = dict(net().named_parameters())
    with_one, without = (forward_by_hand(weights, batch(0), names).float() for names in (("1", "3"), ()))
    assert (with_one - without).abs().max() > 1e-3


def test_units_that_gather_in_half_are_refused_with_the_way_out(trained: Path) -> None:
    first, second = on_both(trained, "refusals")
    assert first == second
    start = "Layer {!r} cannot run in FP32: FSDP gathers the weights of {!r} in torch.bfloat16; accepted: param_dtype="
    assert first["fsdp1"].startswith(start.format("3", "3"))
    assert first["fsdp1, any"].startswith(start.format("0", "0"))
    assert first["fsdp1, flat"].startswith(start.format("1", "1"))
    assert first["fsdp2"].startswith(start.format("1", "1"))
    assert [first[name] for name in ("fsdp1, no weights", "fsdp1, none", "fsdp2, another")] == [""] * 3


def test_a_unit_of_weights_in_two_formats_is_refused(trained: Path) -> None:
    for found in on_both(trained, "refusals"):
        assert found["fsdp2, mixed unit"].startswith(
            "One unit of FSDP2 holds '0.weight' in torch.bfloat16 and '1.weight' in torch.float32, which it cannot"
        )


def test_half_weights_around_an_fp32_unit(trained: Path) -> None:
    first, second = on_both(trained, "half weights")
    weights = {
        name: (p if name.startswith("1") else p.to(BF16)).detach().requires_grad_()
        for name, p in copy.deepcopy(net()).named_parameters()
    }

    def forward(x: Tensor) -> Tensor:
        x = linear(x.to(BF16), weights["0.weight"], weights["0.bias"])
        x = linear(x.float(), weights["1.weight"], weights["1.bias"]).to(BF16).tanh()
        return linear(x, weights["3.weight"], weights["3.bias"])

    outputs = [forward(batch(rank)) for rank in range(2)]
    for result, expected in zip((first, second), outputs, strict=True):
        torch.testing.assert_close(result["output"], expected.detach(), rtol=0, atol=0)
    loss = sum(output.float().square().mean() for output in outputs) / 2
    gradients = torch.autograd.grad(loss, list(weights.values()))  # type: ignore[arg-type]
    for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
        assert first["gradients"][name].dtype is weight.dtype
        torch.testing.assert_close(first["gradients"][name], gradient, rtol=2e-2, atol=2e-3)
        torch.testing.assert_close(first["gradients"][name], second["gradients"][name], rtol=0, atol=0)
