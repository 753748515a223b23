import logging
import random
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from mp_plugin.errors import ConfigError
from mp_plugin.fallback.layer_format import LayerFormat
from mp_plugin.fallback.precision_map import FILE_NAME, MANY, PrecisionMap, precision_map
from mp_plugin.telemetry.census_taker import CensusTaker


class Net(nn.Module):
    """Names that YAML could take for numbers, and one that it could take for false."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4)), nn.Softmax(-1))
        self.no = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.no(self.blocks(inputs))  # type: ignore[no-any-return]


OBSERVED = {"blocks.0": "fp16", "blocks.1.0": "fp32", "blocks.1.1": "fp32", "blocks.2": "fp32", "no": "fp16"}
ISLANDS = {"blocks.1": ("rule: types *Norm*", 0), "blocks.2": ("proved: step 7, aten.exp.default", 7)}


def entry(**values: Any) -> LayerFormat:
    defaults = {"format": "fp16", "why": "autocast", "since_step": 0, "is_island": False, "bears_parameters": True}
    return LayerFormat(**{**defaults, **values})


def of_net() -> PrecisionMap:
    return precision_map(Net(), OBSERVED, ISLANDS, "16-mixed")


# Building it.


def test_every_layer_with_parameters_and_every_island_is_in_the_map() -> None:
    built = of_net()
    assert built.precision == "16-mixed"
    assert built.layers == {
        "blocks.0": entry(),
        "blocks.1": entry(format="fp32", why="rule: types *Norm*", is_island=True, bears_parameters=False),
        "blocks.1.0": entry(format="fp32", why="in blocks.1: rule: types *Norm*"),
        "blocks.1.1": entry(format="fp32", why="in blocks.1: rule: types *Norm*"),
        "blocks.2": entry(
            format="fp32", why="proved: step 7, aten.exp.default", since_step=7, is_island=True, bears_parameters=False
        ),
        "no": entry(),
    }
    assert list(built.layers) == ["blocks.0", "blocks.1", "blocks.1.0", "blocks.1.1", "blocks.2", "no"]
    assert built.islands == {"blocks.1": "rule: types *Norm*", "blocks.2": "proved: step 7, aten.exp.default"}


def test_an_island_that_computes_nothing_itself_ran_in_what_it_calls() -> None:
    built = precision_map(Net(), {**OBSERVED, "blocks.1.1": "bf16"}, ISLANDS, "16-mixed")
    assert built.layers["blocks.1"].format == "bf16"  # observed, not what was meant
    built = precision_map(Net(), {**OBSERVED, "blocks.1": "fp64"}, ISLANDS, "16-mixed")
    assert built.layers["blocks.1"].format == "fp64"
    built = precision_map(Net(), {}, ISLANDS, "16-mixed")
    assert {layer.format for layer in built.layers.values()} == {"not observed"}
    built = precision_map(Net(), dict.fromkeys(OBSERVED, "not run"), ISLANDS, "16-mixed")
    assert {built.layers[name].format for name in ("blocks.1.0", "blocks.2", "no")} == {"not run"}


@pytest.mark.parametrize(
    ("precision", "why"), [("bf16-mixed", "autocast"), ("bf16-true", "weights"), ("32-true", "weights")]
)
def test_why_a_layer_runs_in_what_it_does(precision: str, why: str) -> None:
    assert precision_map(Net(), OBSERVED, {}, precision).layers["no"].why == why


# On disk.


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "run" / FILE_NAME
    of_net().save(path)
    assert PrecisionMap.load(path) == of_net()
    assert PrecisionMap.load(str(path)) == of_net()
    of_net().save(path)
    assert list(path.parent.iterdir()) == [path]
    text = path.read_text()
    assert text.startswith("# The number format that each layer of a run really had, and why.\n")
    # One line each, to read and to edit.
    line = "  blocks.0: {format: fp16, why: autocast, since_step: 0, is_island: false, bears_parameters: true}"
    assert line in text.splitlines()


@pytest.mark.parametrize("name", ["0", "1.0", "1e3", "no", "null", "ünï", "a b", "~", "0x1f", "2024-01-01", "x: {y"])
def test_any_name_and_reason_survive(tmp_path: Path, name: str) -> None:
    # What a module may be called is anything without a dot.
    odd = PrecisionMap(precision="bf16-true", layers={name: entry(why=f"rule: {name} *|[a]\n# 'q\" \t")})
    odd.save(tmp_path / FILE_NAME)
    assert PrecisionMap.load(tmp_path / FILE_NAME) == odd


def test_an_empty_model_has_an_empty_map(tmp_path: Path) -> None:
    empty = precision_map(nn.Identity(), {}, {}, "32-true")
    empty.save(tmp_path / FILE_NAME)
    assert PrecisionMap.load(tmp_path / FILE_NAME) == empty
    empty.check_fits(nn.Identity())


def test_names_of_wrapped_models_are_understood(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    wrapped = {
        f"_orig_mod.module.{name}".replace("1.", "1._fsdp_wrapped_module."): each
        for name, each in of_net().layers.items()
    }
    replace(of_net(), layers=wrapped).save(path)
    loaded = PrecisionMap.load(path)
    assert loaded.differences(Net()) == []
    assert loaded.check_fits(Net()) == of_net()
    assert of_net().check_fits(torch.compile(Net(), backend="eager")) == of_net()  # type: ignore[arg-type]


def test_a_module_that_is_called_module_keeps_its_name() -> None:
    net = nn.ModuleDict({"module": nn.ModuleDict({"a": nn.Linear(2, 2)}), "a": nn.Linear(2, 2)})
    built = precision_map(net, {}, {}, "16-mixed")
    assert list(built.layers) == ["module.a", "a"]
    assert built.check_fits(net) == built
    # Only one of the two is there: nothing is taken for it.
    assert built.differences(nn.ModuleDict({"a": nn.Linear(2, 2)})) == ["module.a is not in the model"]
    # Nor where the other one needs no place in the map.
    net["a"] = nn.Identity()
    built = precision_map(net, {}, {}, "16-mixed")
    assert list(built.check_fits(net).layers) == ["module.a"]


GOOD = yaml.safe_dump(of_net().as_dict())


def text_with(**changes: Any) -> str:
    return yaml.safe_dump({**of_net().as_dict(), **changes})


def with_layer(**changes: Any) -> str:
    return text_with(layers={"head": {**asdict(entry()), **changes}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has None; accepted: a table of version, precision and layers."),
        ("layers: {}", "has ['layers']; accepted: a table of version, precision and layers."),
        ("- fp16\n- fp32\n", "has ['fp16', 'fp32']; accepted: a table of version, precision and layers."),
        (text_with(more=1), "accepted: a table of version, precision and layers."),
        (text_with(version=2), "has version=2; accepted: 1."),
        (text_with(version=True), "has version=True; accepted: 1."),
        (text_with(precision="fp8"), "has precision='fp8'; accepted: '32-true', 'tf32', 'bf16-mixed', '16-mixed'"),
        (text_with(precision=["16-mixed"]), "has precision=['16-mixed']; accepted: '32-true'"),
        (text_with(layers=None), "has layers=None; accepted: a table of layers by name."),
        (text_with(layers=["head"]), "has layers=['head']; accepted: a table of layers by name."),
        (text_with(layers={0: asdict(entry())}), "has a layer 0; accepted: qualified names, in quotes."),
        (text_with(layers={"": asdict(entry())}), "has a layer ''; accepted: qualified names, in quotes."),
        (text_with(layers={"head": "fp16"}), "at layer head, has 'fp16'; accepted: format, why, since_step, is_island"),
        (text_with(layers={"head": {"format": "fp16"}}), "at layer head, has ['format']; accepted: format, why,"),
        (with_layer(format=16), "at layer head, has format=16; accepted: text that is not empty."),
        (with_layer(format=" "), "at layer head, has format=' '; accepted: text that is not empty."),
        (with_layer(why=None), "at layer head, has why=None; accepted: text that is not empty."),
        (with_layer(format=["fp16"] * 1000), "at layer head, has format=['fp16', 'fp16', "),
        (with_layer(since_step=-1), "at layer head, has since_step=-1; accepted: a whole number, at least 0."),
        (with_layer(since_step=1.5), "at layer head, has since_step=1.5; accepted: a whole number, at least 0."),
        (with_layer(is_island="yes"), "at layer head, has is_island='yes'; accepted: true or false."),
        (with_layer(bears_parameters=1), "at layer head, has bears_parameters=1; accepted: true or false."),
        (
            text_with(layers={"a.b": asdict(entry()), "a._orig_mod.b": asdict(entry())}),
            "has the layer a.b twice; accepted: each layer once.",
        ),
        ("layers: {", "is not YAML (ParserError: "),
        ("!!python/object/apply:os.system [ls]", "is not YAML (ConstructorError: "),
        ("day: 2024-99-99", "is not YAML (ValueError: "),
        ("\t", "is not YAML (ScannerError: "),
        ("[" * 5000, "is not YAML (RecursionError: "),
        ("a\0b", "is not YAML (ReaderError: "),
    ],
    ids=lambda value: value[:40],
)
def test_an_ill_formed_file_is_refused_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / FILE_NAME
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        PrecisionMap.load(path)
    assert str(caught.value).startswith(f"The precision map {path}")
    assert message in str(caught.value)
    assert_one_sentence(caught.value)


def assert_one_sentence(error: ConfigError) -> None:
    assert "\n" not in str(error)
    assert str(error).endswith(".")
    assert len(str(error)) < 700
    assert "; accepted: " in str(error)


def test_a_file_that_cannot_be_read_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml cannot be read \(No such file or directory\); accepted: a prec"):
        PrecisionMap.load(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match=r"cannot be read \(Is a directory\); accepted: a precision_map.yaml that"):
        PrecisionMap.load(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(
        ConfigError, match=r"binary is not YAML \(UnicodeDecodeError: .*; accepted: a precision_map.yaml"
    ):
        PrecisionMap.load(tmp_path / "binary")


def test_damaged_files_are_read_or_refused_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    of_net().save(path)
    good = path.read_bytes()
    chance = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(good)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(damaged))
            kind = chance.randrange(3)
            if kind == 0:
                damaged[place] = chance.randrange(256)
            elif kind == 1:
                del damaged[place : place + chance.randint(1, 40)]
            else:
                damaged[place:place] = chance.choice([b": ", b"{", b"- ", b"&a ", b"*a", b"\n", b"!!int ", b"'", b"0"])
        path.write_bytes(bytes(damaged))
        try:
            loaded = PrecisionMap.load(path)
        except ConfigError as error:
            refused += 1
            assert_one_sentence(error)
        else:
            assert all(isinstance(each, LayerFormat) for each in loaded.layers.values())
    assert refused > 100


def test_plain_values_survive_a_checkpoint(tmp_path: Path) -> None:
    torch.save(of_net().as_dict(), tmp_path / "state.pt")
    values = torch.load(tmp_path / "state.pt", weights_only=True)
    assert PrecisionMap.from_dict(values) == of_net()
    with pytest.raises(ConfigError, match=r"^The precision map has version=0; accepted: 1\.$"):
        PrecisionMap.from_dict({**values, "version": 0})


# Against a model and rules.


def test_another_model_is_refused_with_the_differences() -> None:
    class Other(Net):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.no = nn.Linear(4, 4), nn.Identity()
            self.blocks[1] = nn.Linear(4, 4)

    assert of_net().differences(Other()) == [
        "blocks.1.0 is not in the model",
        "blocks.1.1 is not in the model",
        "head is not in the map",
    ]
    with pytest.raises(ConfigError) as caught:
        of_net().check_fits(Other())
    assert str(caught.value) == (
        "The precision map is of another model: blocks.1.0 is not in the model, blocks.1.1 is not in the model, "
        "head is not in the map; accepted: the map of a run of this one."
    )


def test_many_differences_are_counted() -> None:
    other = nn.Sequential(*(nn.Linear(1, 1) for _ in range(40)))
    differences = len(of_net().layers) + 40
    with pytest.raises(ConfigError, match=rf"blocks.2 is not in the model and {differences - MANY} more; ") as caught:
        of_net().check_fits(other)
    assert_one_sentence(caught.value)


def test_rules_and_a_map_may_agree() -> None:
    assert of_net().contradictions({"blocks.1.0": "types *Norm*", "blocks.2": "types Softmax"}) == []
    of_net().check_agrees(["blocks.1"])
    of_net().check_agrees([])
    # What an island casts to half by itself it does as an island.
    precision_map(Net(), {**OBSERVED, "blocks.1.1": "fp16"}, ISLANDS, "16-mixed").check_agrees(["blocks.1.1"])
    # Autocast's own rules left it in FP32.
    precision_map(Net(), {**OBSERVED, "no": "fp32"}, {}, "16-mixed").check_agrees(["no"])
    precision_map(Net(), {**OBSERVED, "no": "not run by itself"}, {}, "16-mixed").check_agrees(["no"])


def test_rules_that_contradict_a_map_are_refused_by_name() -> None:
    assert of_net().contradictions(["no"]) == ["no in fp16"]
    # A rule for a layer speaks for all below it.
    assert of_net().contradictions(["blocks"]) == ["blocks.0 in fp16"]
    with pytest.raises(ConfigError) as caught:
        of_net().check_agrees({"no": "layers no", "blocks": "layers blocks"})
    assert str(caught.value) == (
        "Fallback has rules for FP32 and a map that says otherwise, of blocks.0 in fp16, no in fp16; accepted: rules "
        "for layers in FP32 in the map, or rules or a map alone."
    )


# In another run, and for export.


def observed_in(net: nn.Module) -> dict[str, str]:
    with CensusTaker(net) as taker, torch.autocast("cpu", dtype=torch.float16):
        net(torch.randn(2, 4))
    return taker.census().formats(net)


def test_a_map_makes_another_run_of_the_model_run_in_the_same_formats(tmp_path: Path) -> None:
    net = Net()
    plain = observed_in(net)
    assert plain["blocks.1.0"] == "fp16"
    with precision_map(net, {}, ISLANDS, "16-mixed").applied(net, device_type="cpu"):
        observed = observed_in(net)
    assert observed["blocks.1.0"] == observed["blocks.1.1"] == "fp32"
    precision_map(net, observed, ISLANDS, "16-mixed").save(tmp_path / FILE_NAME)
    assert observed_in(net) == plain  # the block leaves nothing behind

    other = Net()
    loaded = PrecisionMap.load(tmp_path / FILE_NAME)
    with loaded.applied(other, device_type="cpu"):
        assert observed_in(other) == observed
        assert {name: loaded.layers[name].format for name in observed} == observed
    assert observed_in(other) == plain


def test_a_map_of_another_model_is_not_applied() -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    with (
        pytest.raises(ConfigError, match="The precision map is of another model: "),
        of_net().applied(net, device_type="cpu"),
    ):
        pytest.fail("applied")


def test_an_exception_in_the_block_undoes_the_islands() -> None:
    net = Net()
    with of_net().applied(net, device_type="cpu"):
        assert type(net.blocks[2]) is not nn.Softmax
    with pytest.raises(ZeroDivisionError), of_net().applied(net, device_type="cpu"):
        _ = 1 / 0
    assert type(net.blocks[2]) is nn.Softmax


class Deployed(nn.Module):
    """What is exported brings its autocast region along."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            return self.net(inputs)  # type: ignore[no-any-return]


def test_an_exported_model_computes_what_the_run_did() -> None:
    net, inputs = Net().eval(), torch.randn(2, 4)
    net.blocks[1][1].weight.data *= 3e4  # type: ignore[index, union-attr, operator]  # which fp16 does not hold
    net.blocks[1][0].weight.data *= 100  # type: ignore[index, union-attr, operator]
    model = Deployed(net)
    with torch.no_grad():
        assert not model(inputs).isfinite().all()
        with of_net().applied(net, device_type="cpu"):
            expected = model(inputs)
            exported = torch.export.export(
                model, (inputs,), strict=False
            )  # strict export mistakes any cast in autocast
        assert expected.isfinite().all()
        torch.testing.assert_close(exported.module()(inputs), expected, rtol=0, atol=0)


def test_a_layer_of_half_weights_hands_on_half_numbers() -> None:
    net = Net().bfloat16()
    net.blocks[1].float()
    with (
        torch.no_grad(),
        precision_map(net, {}, {"blocks.1": ("rule", 0)}, "bf16-true").applied(net, device_type="cpu"),
    ):
        assert net(torch.randn(2, 4, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_loading_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    of_net().save(tmp_path / FILE_NAME)
    with caplog.at_level(logging.DEBUG):
        PrecisionMap.load(tmp_path / FILE_NAME)
    assert not caplog.records
