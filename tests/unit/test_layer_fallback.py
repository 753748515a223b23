"""What the shell adds to rules, maps, policy and proof. Whole trainings: tests/integration/test_fallback_*.py."""

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from mp_plugin import AdaptivePrecision, Fallback, LossScaling, Telemetry
from mp_plugin.errors import ConfigError
from mp_plugin.fallback.policy import Demoted, FallbackState
from mp_plugin.layer_fallback import LayerFallback
from mp_plugin.modes import parse_mode
from tests.helpers.faults.fp32 import LARGE, Inner, Layer, Trained, fp32_fault, plant
from tests.helpers.faults.networks import MLP
from tests.helpers.training import Regression, quiet_trainer

PROVED = FallbackState(demoted={"net.2": Demoted(why="proved: it was", since_step=3)})


def fallback(precision: str = "fp16", *, proves_at_floor: bool = False, **config: Any) -> LayerFallback:
    return LayerFallback(Fallback(**config), parse_mode(precision), Telemetry(), proves_at_floor=proves_at_floor)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_layers_move_on_the_way_if_somebody_asked_for_it(precision: str) -> None:
    assert fallback(precision, auto=True).may_act
    assert fallback(precision, proves_at_floor=True).may_act
    assert not fallback(precision, layers=["net.0"]).may_act
    assert not fallback("fp32", auto=True).may_act


@pytest.mark.parametrize("precision", ["bf16_true", "16-true"])
def test_half_weights_cannot_become_fp32_on_the_way(precision: str) -> None:
    fallback(precision, layers=["net.0"])
    with pytest.raises(ConfigError, match="Fallback.auto=True is not accepted with precision='(bf|)16-true'"):
        fallback(precision, auto=True)


@pytest.mark.parametrize("config", [{"layers": ["net.0"]}, {"types": ["Linear"]}, {"auto": True}])
def test_tf32_is_a_switch_of_all_layers(config: dict[str, Any]) -> None:
    fallback("tf32")
    with pytest.raises(ConfigError, match="one switch for all of them; accepted: fallback=None or precision='fp32'"):
        fallback("tf32", **config)


def test_what_is_not_traced_cannot_be_proved() -> None:
    with pytest.raises(ConfigError, match="Telemetry.max_traced of at least 1"):
        LayerFallback(Fallback(auto=True), parse_mode("fp16"), Telemetry(max_traced=0))


class Connected:
    """A fallback that is connected to a model for a while."""

    def __init__(self, shell: LayerFallback) -> None:
        self.shell, self.model = shell, Regression()

    def __enter__(self) -> LayerFallback:
        self.undo = self.shell.connect(self.model, self.model, "cpu")
        return self.shell

    def __exit__(self, *_: Any) -> None:
        self.undo()
        assert [type(part) for part in self.model.modules()] == [type(part) for part in Regression().modules()]


def test_after_a_run_it_tells_what_its_layers_were() -> None:
    shell = fallback(auto=True, layers=["net.0"])
    with Connected(shell):
        shell.load(PROVED)
        assert shell.names == ("net.0", "net.2")
    assert shell.names == ("net.0", "net.2")
    assert shell.reasons == {"net.0": ("rule: net.0", 0), "net.2": ("proved: it was", 3)}
    shell.start_afresh()
    with Connected(shell):
        assert shell.names == ("net.0",)


def test_in_fp32_no_layer_is_moved_and_rules_are_checked_all_the_same() -> None:
    with Connected(fallback("fp32", layers=["net.0"])) as shell:
        assert shell.names == ()
    with pytest.raises(ConfigError, match="matches no layer"), Connected(fallback("fp32", layers=["head"])):
        pass


def test_a_layer_given_back_is_reported_with_its_clean_steps() -> None:
    events: list[dict[str, Any]] = []
    shell = fallback(auto=True, probation_steps=2)
    shell.report = events.append
    with Connected(shell):
        shell.load(PROVED)
        shell.step_over(step=4, taken=True)
        shell.step_over(step=5, taken=False)  # which counts for nothing
        assert (shell.names, events) == (("net.2",), [])
        shell.step_over(step=6, taken=True)
        assert shell.names == ()
    told = {"event": "given back", "step": 6, "layers": ["net.2"], "evidence": {"net.2": {"clean_steps": 2}}}
    assert events == [told]


def test_only_a_plugin_that_proves_takes_over_what_was_proved(caplog: pytest.LogCaptureFixture) -> None:
    for shell in (fallback(), fallback(layers=["net.0"])):
        caplog.clear()
        with Connected(shell):
            shell.load(PROVED)
            assert "net.2" not in shell.names
        assert shell.state == FallbackState()
        assert "The checkpoint's run had net.2 in FP32 by proof; Fallback(auto=True) would keep that." in caplog.text
    caplog.clear()
    for shell in (fallback(auto=True), fallback(proves_at_floor=True)):
        with Connected(shell):
            shell.load(PROVED)
            assert shell.names == ("net.2",)
    assert caplog.text == ""


def test_a_checkpoint_that_is_only_evaluated_leaves_the_run_s_own_state_alone() -> None:
    shell = fallback(auto=True)
    shell.load(PROVED)
    with Connected(shell):
        shell.load(FallbackState(), for_good=False)
        assert shell.names == ()
    with Connected(shell):
        assert shell.names == ("net.2",)


# What is not tried again, in real trainings.


FAULT = fp32_fault("mlp: inside a layer")
BEYOND = 1e30


class Twice(Layer):
    """Overflows in fp16 at a large gain, and at the same place in FP32 too at one that is beyond."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.compute(x * self.gain * self.gain) / self.gain / self.gain


def train(model: Trained, gains: list[float], **config: Any) -> Any:
    plugin = AdaptivePrecision("fp16", scaling=LossScaling(init_scale=2.0**8), fallback=Fallback(auto=True, **config))
    healthy = FAULT.batches(faulty=(), count=len(gains))
    batches = [each._replace(knob=torch.full_like(each.knob, gain)) for each, gain in zip(healthy, gains, strict=True)]
    quiet_trainer(plugins=[plugin]).fit(model, DataLoader(batches, batch_size=None))  # type: ignore[arg-type]
    return plugin


def test_a_batch_that_fp32_does_not_cure_says_nothing_of_the_next_one() -> None:
    net: Any = MLP()
    plant(net.hidden[3], Twice)
    plugin = train(Trained(net), [1, BEYOND, LARGE, 1])
    assert [each.cured for each in plugin.incidents] == [False, True]
    first, second = plugin.incidents
    assert (first.operator, first.location, first.layer) == (second.operator, second.location, second.layer)
    assert plugin.fp32_layers == ["net.hidden.3"]


class Parted(Trained):
    """Each of its planted layers has batches of its own."""

    def forward(self, inputs: torch.Tensor, knob: torch.Tensor) -> torch.Tensor:
        for place, layer in enumerate(each for each in self.net.modules() if isinstance(each, Inner)):
            layer.gain = torch.tensor(LARGE if knob[0] == place else 1.0)
        return self.net(inputs)  # type: ignore[no-any-return]


def test_where_one_layer_may_not_move_another_one_on_the_same_line_is_still_tried() -> None:
    net: Any = FAULT.make().net
    for place in (1, 5):
        plant(net.hidden[place], Inner)
    # All go through the same line: one may move, the second is beyond the share, and the third is tried too.
    plugin = train(Parted(net), [-1, 0, 1, 1, 1, 2], max_fraction=0.01)
    assert plugin.fp32_layers == ["net.hidden.1"]
    proofs = [each.evidence.get("proof", {}) for each in plugin.incidents]
    assert [proof.get("layers") for proof in proofs] == [
        ("net.hidden.1",),
        ("net.hidden.3",),
        ("net.hidden.3",),
        None,  # what was refused is tried ever less often
        ("net.hidden.5",),
    ]
    assert ["refused" in proof for proof in proofs] == [False, True, True, False, True]
    assert "beyond Fallback.max_fraction=0.01" in proofs[1]["refused"]
