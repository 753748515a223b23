import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn import BatchNorm1d, LayerNorm, Linear, Module, ModuleDict, ModuleList, ReLU, Sequential, Softmax

from mp_plugin.errors import ConfigError
from mp_plugin.fallback.islands import Islands
from mp_plugin.fallback.rules import select_layers


class Attention(Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.softmax = Linear(2, 6), Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        return x


class SelfAttention(Attention):
    pass


class Block(Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.norm = SelfAttention(), LayerNorm(2)

    def forward(self, x: Tensor) -> Tensor:
        return x


class Net(Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = Linear(2, 2)
        self.blocks = ModuleList([Block(), Block()])
        self.bn = BatchNorm1d(2)
        self.heads = ModuleDict({"a": Linear(2, 2), "b": Sequential(Linear(2, 2), ReLU())})


class Model(Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()


def selected(layers: Any = (), types: Any = (), model: Module | None = None) -> dict[str, str]:
    return select_layers(model or Net(), layers=layers, types=types)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("embed", ["embed"]),
        ("blocks.*.attn", ["blocks.0.attn", "blocks.1.attn"]),
        ("blocks.*.norm|embed", ["embed", "blocks.0.norm", "blocks.1.norm"]),
        ("*norm | bn", ["blocks.0.norm", "blocks.1.norm", "bn"]),
        ("blocks.[01].norm", ["blocks.0.norm", "blocks.1.norm"]),
        ("*softmax", ["blocks.0.attn.softmax", "blocks.1.attn.softmax"]),
        ("heads.b.?", ["heads.b.0", "heads.b.1"]),
        # What lies within a chosen layer is covered by it.
        ("blocks.0*", ["blocks.0"]),
        # A list or a dict stands for its entries.
        ("blocks", ["blocks.0", "blocks.1"]),
        ("heads", ["heads.a", "heads.b"]),
        ("*", ["embed", "blocks.0", "blocks.1", "bn", "heads.a", "heads.b"]),
        # With what wrappers put into names.
        ("_orig_mod.embed", ["embed"]),
        ("module.embed", ["embed"]),
        ("module._fsdp_wrapped_module.blocks.*._checkpoint_wrapped_module.attn", ["blocks.0.attn", "blocks.1.attn"]),
    ],
)
def test_globs_on_names(rule: str, expected: list[str]) -> None:
    assert selected([rule]) == dict.fromkeys(expected, rule)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("LayerNorm", ["blocks.0.norm", "blocks.1.norm"]),
        ("*Norm*", ["blocks.0.norm", "blocks.1.norm", "bn"]),
        ("_BatchNorm", ["bn"]),
        ("Attention", ["blocks.0.attn", "blocks.1.attn"]),
        ("ReLU|Softmax", ["blocks.0.attn.softmax", "blocks.1.attn.softmax", "heads.b.1"]),
        ("ModuleDict", ["heads.a", "heads.b"]),
        ("*", ["embed", "blocks.0", "blocks.1", "bn", "heads.a", "heads.b"]),
    ],
)
def test_globs_on_classes_and_their_bases(rule: str, expected: list[str]) -> None:
    assert selected(types=[rule]) == dict.fromkeys(expected, rule)


def test_each_layer_is_told_with_the_rule_that_chose_it_first_in_the_order_of_the_model() -> None:
    rules = {"layers": ["bn", "blocks.0.norm"], "types": ["*Norm*"]}
    assert selected(**rules) == {"blocks.0.norm": "blocks.0.norm", "blocks.1.norm": "*Norm*", "bn": "bn"}
    assert list(selected(**rules)) == ["blocks.0.norm", "blocks.1.norm", "bn"]


def test_no_rule_chooses_nothing() -> None:
    assert selected() == {}


def test_the_model_itself_is_no_layer() -> None:
    assert "" not in selected(["*"])
    with pytest.raises(ConfigError):
        selected(types=["Net"])


def test_wrappers_in_the_model_are_seen_through() -> None:
    model = Sequential(torch.compile(Block(), backend="eager"), ModuleList([checkpoint_wrapper(Block())]))  # type: ignore[arg-type, no-untyped-call]
    assert list(selected(["*.norm"], model=model)) == ["0.norm", "1.0.norm"]
    assert list(selected(["1"], model=model)) == ["1.0"]
    assert list(selected(types=["Block"], model=model)) == ["0", "1.0"]


def test_a_model_with_a_part_called_module() -> None:
    model = ModuleDict({"module": Sequential(Linear(2, 2)), "0": Linear(2, 2)})
    assert list(selected(["module.0"], model=model)) == ["module.0"]
    assert list(selected(["module.module.0"], model=model)) == ["module.0"]


def test_layers_that_are_islands_already_are_found_by_their_class() -> None:
    model = Net()
    Islands(model, device_type="cpu").set(["bn"])
    assert list(selected(types=["BatchNorm1d"], model=model)) == ["bn"]
    with pytest.raises(ConfigError, match="'Island' matches no layer"):
        selected(types=["Island"], model=model)


def test_a_shared_module_goes_by_its_first_name_whichever_is_given() -> None:
    model = ModuleDict({"a": Linear(2, 2)})
    model["b"] = model["a"]
    assert selected(["b"], model=model) == {"a": "b"}


def test_a_shared_module_that_is_called_elsewhere_too_is_not_covered() -> None:
    model = ModuleDict({"encoder": Sequential(Linear(2, 2), Linear(2, 2))})
    model["embed"] = model["encoder"][0]  # type: ignore[index]
    assert list(selected(["encoder", "embed"], model=model)) == ["encoder", "encoder.0"]
    assert list(selected(["encoder", "encoder.1"], model=model)) == ["encoder"]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_what_is_never_called_or_scripted_is_not_chosen() -> None:
    model = Sequential(torch.nn.MultiheadAttention(4, 2), torch.jit.trace(Linear(4, 4), torch.ones(1, 4)), Linear(4, 4))
    assert list(selected(types=["Linear", "*Script*|Linear"], model=model)) == ["2"]
    with pytest.raises(ConfigError, match=r"matches only '0.out_proj \(NonDynamicallyQuantizableLinear\)'"):
        selected(["*out_proj"], model=model)
    with pytest.raises(ConfigError, match="'1' matches only .*compiled by TorchScript"):
        selected(["1"], model=model)


@pytest.mark.parametrize(
    ("field", "rule", "message"),
    [
        # Somebody left out how the model is called, or a part of the name.
        ("layers", "embed", "'embed' matches no layer; did you mean 'net.embed'?"),
        ("layers", "bn|heads.c", "did you mean 'net.bn', 'net.heads.b', 'net.heads.a'"),
        ("layers", "blocks.*.norm", "did you mean 'net.blocks.0.norm', 'net.blocks.1.norm'?"),
        # Or mistyped it.
        ("layers", "net.embedd", "did you mean 'net.embed'"),
        ("layers", "net.Embed", "did you mean 'net.embed'"),
        ("types", "layernorm", "'layernorm' matches no layer; did you mean 'LayerNorm'"),
        ("types", "SoftMax", "did you mean 'Softmax'"),
        ("types", "Norm", "did you mean 'LayerNorm', "),
        # Or means another model.
        ("layers", "zzz", "'zzz' matches no layer; there are 'net', 'net.embed', "),
        ("layers", "zzz", "'net.blocks.0.attn.softmax', 'net.blocks.0.norm' and 11 more."),
        ("types", "QQQ", "there are 'Net', 'Linear', 'ModuleList', "),
        ("types", "Module", "Fallback.types: 'Module' matches no layer; did you mean 'ModuleList', 'ModuleDict'"),
        ("types", "object", "'object' matches no layer"),
    ],
)
def test_a_rule_that_matches_nothing_is_an_error_with_what_comes_near(field: str, rule: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        selected(model=Model(), **{field: [rule]})


def test_one_good_rule_does_not_hide_a_bad_one() -> None:
    with pytest.raises(ConfigError, match="Fallback.layers: 'nothing' matches no layer"):
        selected(["embed", "nothing"])


def test_an_empty_model_says_so() -> None:
    with pytest.raises(ConfigError, match="there are none"):
        selected(["x"], model=Linear(2, 2))
