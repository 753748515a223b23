"""Rules in real trainings of every precision, against models whose author wrote the casts by hand."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from mp_plugin import AdaptivePrecision, Fallback, LossScaling
from mp_plugin.errors import ConfigError
from mp_plugin.fallback.islands import is_island
from tests.helpers.training import assert_bitwise_equal, quiet_trainer, weights

TOKENS, WIDTH = 12, 8
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
SCALING = LossScaling(init_scale=2.0**8)


class Net(nn.Module):
    """Tokens to tokens; the head may have the weights of the embedding."""

    def __init__(self, *, tied: bool, head: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.body = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH))
        self.head = head(WIDTH, TOKENS, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        return self.head(x + self.body(self.norm(x)))  # type: ignore[no-any-return]


class Trained(pl.LightningModule):
    """Notes in what its layers give their outputs, where it may."""

    def __init__(self, net: nn.Module, *, is_watched: bool) -> None:
        super().__init__()
        self.net = net
        self.dtypes: dict[str, torch.dtype] = {}
        for name, module in net.named_modules() if is_watched else ():
            module.register_forward_hook(lambda _m, _i, output, name=name: self.dtypes.update({name: output.dtype}))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return cross_entropy(self.net(batch[:, :-1]).float().flatten(0, 1), batch[:, 1:].flatten())

    def configure_optimizers(self) -> Any:
        self.seen_by_optimizer = {name: parameter.dtype for name, parameter in self.net.named_parameters()}
        return optimizer_for(self)


def optimizer_for(module: nn.Module) -> torch.optim.Optimizer:
    """Not Adam where weights are fp16: its epsilon, which that rounds to zero, is another story."""
    if any(weight.dtype == FP16 for weight in module.parameters()):
        return torch.optim.SGD(module.parameters(), lr=0.5, momentum=0.9)
    return torch.optim.AdamW(module.parameters(), lr=0.01)


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, TOKENS, (4, 6), generator=generator) for _ in range(6)]


def train(
    precision: str, net: nn.Module, *, callbacks: Any = (), is_watched: bool = True, **rules: Any
) -> tuple[AdaptivePrecision, Trained]:
    scaling = SCALING if precision == "fp16" else None
    plugin = AdaptivePrecision(precision, scaling=scaling, fallback=Fallback(**rules) if rules else None)
    model = Trained(net, is_watched=is_watched)
    trainer = quiet_trainer(plugins=[plugin], callbacks=list(callbacks))
    trainer.fit(model, DataLoader(batches(), batch_size=None))  # type: ignore[arg-type]
    assert not any(is_island(module) for module in model.modules())
    return plugin, model


class InFP32(nn.Linear):
    """What people write into code of others."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


@pytest.mark.parametrize(("precision", "half"), [("fp16", FP16), ("bf16", BF16)])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    "rules", [{"layers": ["net.head"]}, {"layers": ["*head|*.none"]}, {"layers": ["_orig_mod.net.head"]}]
)
def test_in_mixed_precision_a_rule_is_the_cast_by_hand(
    precision: str, half: torch.dtype, tied: bool, rules: dict[str, Any]
) -> None:
    plugin, ruled = train(precision, Net(tied=tied), **rules)
    _, truth = train(precision, Net(tied=tied, head=InFP32))
    _, plain = train(precision, Net(tied=tied))
    assert plugin.fp32_layers == ["net.head"]
    assert ruled.dtypes["head"] == truth.dtypes["head"] == FP32
    assert ruled.dtypes["body.2"] == plain.dtypes["head"] == half
    assert_bitwise_equal(weights(ruled), weights(truth))
    assert any(not torch.equal(one, other) for one, other in zip(weights(ruled), weights(plain), strict=True))


def by_hand(half: torch.dtype, islands: set[str], *, tied: bool) -> Net:
    """Train with FP32 weights for some layers and half ones for all others, in plain PyTorch."""
    net = Net(tied=tied)
    in_fp32 = {id(weight) for name in islands for weight in net.get_submodule(name).parameters()}
    for weight in net.parameters():
        weight.data = weight.data if id(weight) in in_fp32 else weight.data.to(half)
    for name in islands:
        layer = net.get_submodule(name)
        layer.register_forward_pre_hook(
            lambda _m, inputs: tuple(each.float() if each.is_floating_point() else each for each in inputs)
        )
        layer.register_forward_hook(lambda _m, _i, output: output.to(half))
    optimizer = optimizer_for(net)
    for batch in batches():
        optimizer.zero_grad()
        cross_entropy(net(batch[:, :-1]).float().flatten(0, 1), batch[:, 1:].flatten()).backward()
        optimizer.step()
    return net


@pytest.mark.parametrize(("precision", "half"), [("bf16_true", BF16), ("16-true", FP16)])
@pytest.mark.parametrize(
    ("tied", "rule", "islands"),
    [
        (False, "net.head", ["head"]),
        (False, "net.body", ["body"]),
        (True, "net.head", ["embed", "head"]),
        (True, "net.embed", ["embed", "head"]),
    ],
)
def test_half_models_have_fp32_weights_there_before_the_optimizer_is_built(
    precision: str, half: torch.dtype, tied: bool, rule: str, islands: list[str]
) -> None:
    net = Net(tied=tied)
    plugin, ruled = train(precision, net, layers=[rule])
    assert plugin.fp32_layers == [f"net.{name}" for name in islands]
    expected = {
        name: FP32 if any(name.startswith(f"{island}.") for island in islands) else half
        for name, _ in net.named_parameters()
    }
    assert ruled.seen_by_optimizer == expected
    assert {name: parameter.dtype for name, parameter in net.named_parameters()} == expected
    assert (net.head.weight is net.embed.weight) is tied
    # Outputs go on in half.
    assert {ruled.dtypes[name] for name, _ in net.named_children()} == {half}
    assert_bitwise_equal(weights(net), weights(by_hand(half, set(islands), tied=tied)))
    if tied:
        source, other = (rule, "net.embed") if rule == "net.head" else (rule, "net.head")
        assert plugin.layer_fallback.reasons[other] == (f"tied to {source}", 0)


@pytest.mark.parametrize("rules", [{"layers": ["net.head"]}, {"types": ["Linear"]}, {"auto": True}])
def test_in_fp32_a_rule_makes_no_difference(rules: dict[str, Any]) -> None:
    plugin, ruled = train("fp32", Net(tied=True), **rules)
    _, plain = train("fp32", Net(tied=True))
    assert plugin.fp32_layers == []
    assert_bitwise_equal(weights(ruled), weights(plain))


def test_tf32_is_refused() -> None:
    with pytest.raises(ConfigError, match="'tf32', which is one switch for all of them; accepted: fallback=None"):
        train("tf32", Net(tied=True), layers=["net.head"])


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32", "bf16_true", "16-true"])
def test_a_rule_that_matches_nothing_is_refused_with_what_comes_near(precision: str) -> None:
    with pytest.raises(ConfigError, match=r"Fallback.layers: 'net.haed' matches no layer; .*'net.head'"):
        train(precision, Net(tied=True), layers=["net.haed"])


@pytest.mark.parametrize("precision", ["fp16", "bf16_true"])
def test_layers_go_by_their_types(precision: str) -> None:
    plugin, model = train(precision, Net(tied=False), types=["LayerNorm", "Tanh"])
    assert plugin.fp32_layers == ["net.norm", "net.body.1"]
    assert plugin.summary()["fp32_layers"] == {"net.norm": "rule: LayerNorm", "net.body.1": "rule: Tanh"}
    assert model.dtypes["body.1"] == (FP32 if precision == "fp16" else BF16)


# What people do with a model while it trains.


class Copies(Callback):
    """Copies, pickles and shows the model in the middle of a training, as an average of weights would."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.copy = copy.deepcopy(pl_module.net)
        self.pickled = pickle.loads(pickle.dumps(pl_module.net.body))
        self.shown = str(pl_module.net)


def test_a_model_is_copied_and_pickled_while_layers_are_in_fp32() -> None:
    net, callback = Net(tied=True), Copies()
    train("bf16", net, layers=["net.head", "net.body.0"], callbacks=[callback], is_watched=False)
    assert_bitwise_equal(weights(callback.copy), weights(net))
    assert callback.copy.head.weight is callback.copy.embed.weight
    assert callback.shown.count("fp32 island") == 2
    assert "island" not in str(net)
    x = torch.randn(2, WIDTH)
    with torch.autocast("cpu", BF16):
        assert callback.copy.head(x).dtype == FP32
        assert callback.pickled[0](x).dtype == FP32
        # The copy is one of its own.
        assert net.head(x).dtype == BF16


class Fails(Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        assert is_island(pl_module.net.head)
        raise KeyError("of the user's own")


@pytest.mark.parametrize("precision", ["fp16", "bf16_true"])
def test_after_an_exception_every_module_is_what_it_was(precision: str) -> None:
    net = Net(tied=True)
    before = [type(module) for module in net.modules()]
    with pytest.raises(KeyError, match="of the user's own"):
        train(precision, net, layers=["net.head"], callbacks=[Fails()])
    assert [type(module) for module in net.modules()] == before
    # And can be trained once more.
    assert train(precision, net, layers=["net.body"])[0].fp32_layers == ["net.body"]


def test_frozen_layers_may_be_in_fp32_too() -> None:
    net = Net(tied=False)
    net.head.requires_grad_(False)
    before = net.head.weight.clone()
    plugin, model = train("bf16", net, layers=["net.head"])
    assert plugin.fp32_layers == ["net.head"]
    assert model.dtypes["head"] == FP32
    assert torch.equal(net.head.weight, before)


def whole(net: nn.Module) -> nn.Module:
    net.compile(backend="eager")
    return net


def a_part(net: Any) -> nn.Module:
    net.body.compile(backend="eager")
    return net  # type: ignore[no-any-return]


def wrapped(net: Any) -> nn.Module:
    net.body = torch.compile(net.body, backend="eager")
    return net  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch's own
@pytest.mark.parametrize("compiled", [whole, a_part, wrapped])
def test_compiled_models_are_compiled_once(compiled: Callable[[nn.Module], nn.Module]) -> None:
    torch._dynamo.reset()
    counters.clear()
    plugin, ruled = train("bf16", compiled(Net(tied=True)), is_watched=False, layers=["net.body.0"])
    assert plugin.fp32_layers == ["net.body.0"]
    assert counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()
    _, truth = train("bf16", Net(tied=True), is_watched=False, layers=["net.body.0"])
    assert_bitwise_equal(weights(ruled), weights(truth))
