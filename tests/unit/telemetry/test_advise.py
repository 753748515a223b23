import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.helpers.real_casts import Lost, lost
from mp_plugin.errors import ConfigError, TelemetryError
from mp_plugin.telemetry.advise import JUDGED, Advice, LayerAdvice, advise
from mp_plugin.telemetry.events import Action, Cause, Direction, Incident
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.store import Run
from mp_plugin.telemetry.tolerances import Tolerances
from tests.helpers.samples import sample, table

ACTIVATION, GRADIENT, WEIGHTS = TensorKind
POWERS = [2.0**power for power in range(25)]


def normal(center: float = 0.0, spread: float = 2.0, seed: int = 0, num: int = 400) -> Tensor:
    """Log-normal magnitudes around a power of two."""
    generator = torch.Generator().manual_seed(seed)
    powers = center + spread * torch.randn(num, generator=generator).clamp(-3, 3)
    return torch.exp2(powers) * torch.randint(0, 2, (num,), generator=generator).mul(2).sub(1)


def advice(layers: dict[str, tuple[Tensor | None, Tensor | None]], **tolerances: float) -> Advice:
    """Of activations and their gradients."""
    rows = []
    for name, tensors in layers.items():
        rows += [sample(name, kind, x) for kind, x in zip(TensorKind, tensors, strict=False) if x is not None]
    return advise(table(rows), Tolerances(**tolerances))


def of(found: Advice, layer: str, direction: Direction) -> LayerAdvice:
    (entry,) = [each for each in found.layers if (each.layer, each.direction) == (layer, direction)]
    return entry


def accepted(truth: Lost) -> bool:
    return truth.overflow <= 0 and truth.flushed <= 0.05 and truth.subnormal <= 0.1


@pytest.mark.parametrize("seed", range(40))
def test_the_window_of_loss_scales_against_real_casts_at_every_power_of_two(seed: int) -> None:
    chance = random.Random(seed)
    gradients = {
        name: normal(chance.uniform(-35, 5), chance.choice([0.5, 2.0, 4.0]), seed=place)
        for place, name in enumerate("abcde")
    }
    found = advice({name: (None, x) for name, x in gradients.items()})
    fitting = {scale: {n for n, x in gradients.items() if accepted(lost(x, "fp16", scale))} for scale in POWERS}
    most = max(map(len, fitting.values()))
    if found.loss_scales is None:
        assert most == 0
        return
    scales = found.loss_scales
    inside = [scale for scale in POWERS if scales.lowest <= scale <= scales.highest]
    assert len(scales.layers) == most
    assert all(fitting[scale] == scales.layers for scale in inside)
    runs = [scale for scale in POWERS if fitting[scale] == scales.layers]
    assert inside == runs or len(inside) >= len(runs) / 2
    assert set(found.fp32_layers) == set(gradients) - scales.layers


def test_each_layer_gets_the_cheapest_format_that_fits_it() -> None:
    found = advice(
        {
            "easy": (normal(), normal(-20)),
            "wide": (normal(0, 5.0), normal(-20)),  # more than 8 bits span
            "large": (normal(18), normal(-20)),  # beyond fp16, and 8 bits have a scale
            "both": (normal(12, 9.0), normal(-20)),
        }
    )
    assert [of(found, name, Direction.forward).cheapest for name in ("easy", "wide", "large", "both")] == [
        "e4m3",
        "e5m2",
        "e4m3",
        "bf16",
    ]
    assert list(found.fp32_layers) == ["large", "both"]
    assert "fp16 65504" in found.fp32_layers["large"]


@pytest.mark.parametrize("name", JUDGED)
def test_what_is_told_is_what_a_cast_does(name: str) -> None:
    values, gradients = normal(3, 6.0), normal(-22, 3.0, seed=1)
    found = advice({"layer": (values, gradients)})
    for direction, tensor in ((Direction.forward, values), (Direction.backward, gradients)):
        entry = of(found, "layer", direction).formats[name]
        for fit in (entry.plain, entry.scaled, entry.used):
            truth = lost(tensor, name, fit.scale)
            assert fit.flushed.low == pytest.approx(truth.flushed)
            assert fit.overflow.low <= truth.overflow <= fit.overflow.high
            assert fit.subnormal.low <= truth.subnormal <= fit.subnormal.high
        assert entry.fits == accepted(lost(tensor, name, entry.used.scale))
        assert entry.plain.scale == 1.0
        # One sample, so that the worst is all there is.
        assert entry.worst_flushed == pytest.approx(entry.used.flushed.low)


def test_scales_are_those_that_training_has() -> None:
    found = advice({"layer": (normal(5), normal(-25))})
    forward, backward = (of(found, "layer", direction).formats for direction in Direction)
    assert forward["fp16"].used == forward["fp16"].plain
    assert found.loss_scales is not None
    assert backward["fp16"].used.scale == found.loss_scales.highest
    for each in (forward, backward):
        assert each["bf16"].used == each["bf16"].plain
        assert each["e4m3"].used == each["e4m3"].scaled


def test_one_value_of_one_sample_is_enough_to_overflow() -> None:
    rows = [sample("head", ACTIVATION, torch.ones(10_000), step=step) for step in range(20)]
    assert advise(table(rows)).fp32_layers == {}
    rows.append(sample("head", ACTIVATION, torch.tensor([1.0, 7e4]), step=20))
    found = advise(table(rows))
    assert found.fp32_layers == {"head": "its activations reach 7e+04, fp16 65504"}
    assert not of(found, "head", Direction.forward).formats["fp16"].fits


def test_what_one_sample_flushes_is_told_and_all_together_decide() -> None:
    rows = [sample("head", ACTIVATION, torch.ones(1000), step=step) for step in range(20)]
    rows.append(sample("head", ACTIVATION, torch.tensor([1.0] + 9 * [1e-9]), step=77))
    entry = of(advise(table(rows)), "head", Direction.forward).formats["fp16"]
    assert entry.fits
    assert (entry.worst_flushed, entry.worst_step) == (0.9, 77)
    assert entry.used.flushed.high < 0.001


def test_gradients_of_parameters_stand_in_and_have_to_fit_too() -> None:
    small, large = normal(-30), normal(12)
    rows = [sample("a", WEIGHTS, small), sample("b", WEIGHTS, small), sample("b", GRADIENT, large)]
    rows += [sample("c", GRADIENT, small)]
    found = advise(table(rows))
    kinds = {each.layer: each.histogram.kind for each in found.layers}
    assert kinds == {"a": WEIGHTS, "b": GRADIENT, "c": GRADIENT}
    # No scale fits both gradients of b.
    assert list(found.fp32_layers) == ["b"]
    rows[1:3] = [sample("b", WEIGHTS, large), sample("b", GRADIENT, small)]
    entry = of(advise(table(rows)), "b", Direction.backward)
    assert entry.formats["fp16"].used.flushed.high < 0.01
    assert not entry.formats["fp16"].fits


def test_gradients_of_a_layer_that_has_to_be_in_fp32_anyway_do_not_narrow_the_window() -> None:
    large = (normal(20), normal(5))
    found = advice({"large": large, "larger": large, "other": (normal(), normal(-30))})
    assert list(found.fp32_layers) == ["large", "larger"]
    assert found.loss_scales is not None
    assert found.loss_scales.layers == {"other"}


def test_nan_and_inf() -> None:
    rows: list[Any] = [
        sample("stem", ACTIVATION, torch.ones(3)),
        sample("head", ACTIVATION, torch.tensor([1.0, torch.inf])),
    ]
    rows += [sample("stem", GRADIENT, torch.tensor([torch.nan])), sample("head", GRADIENT, torch.ones(3))]
    found = advise(table(rows))
    assert found.fp32_layers == {"head": "NaN or Inf in its activations at step 0"}
    assert of(found, "head", Direction.forward).cheapest == "fp32"
    assert found.unknown_layers == ("stem",)
    assert of(found, "stem", Direction.backward).cheapest == "unknown"
    assert found.summary == (
        "Whether fp16 fits is not known (head needs fp32; 1 cannot be judged, with NaN or Inf in every sample); bf16 "
        "fits forward for 1 of 1 layers, backward for 1 of 1 layers; fp8 fits with a scale for each tensor: e4m3 "
        "forward for 1 of 1 layers, e5m2 backward for 1 of 1 layers."
    )
    assert "2 samples with NaN or Inf are left out." in found.limits


def incident(cause: Cause, **changes: Any) -> Incident:
    known: dict[str, Any] = {
        **{"step": 5, "batch_idx": 5, "kind": "inf", "parameters": ("a.weight",), "rank": 0, "loss_scale": 1.0},
        **{"dtype": "fp16", "action": Action.skip, "cause": cause, "layer": "wide"},
    }
    return Incident(**{**known, **changes})


@pytest.mark.parametrize(
    ("incidents", "expected"),
    [
        ([], {"head"}),
        ([incident(Cause.forward)], {"wide"}),
        ([incident(Cause.forward, layer=None)], {"head"}),
        ([incident(Cause.forward, evidence={"forward_finite_in_fp32": True})], {"wide"}),
        ([incident(Cause.forward, evidence={"forward_finite_in_fp32": False})], set()),
        ([incident(Cause.data)], set()),
        ([incident(Cause.weights)], set()),
        ([incident(Cause.data, step=6)], {"head"}),
    ],
)
def test_only_what_more_range_would_cure_needs_fp32(incidents: list[Incident], expected: set[str]) -> None:
    good, bad = torch.ones(4), torch.tensor([torch.nan])
    rows = [sample(name, ACTIVATION, good, step=step) for step in range(5) for name in ("head", "wide")]
    rows += [sample(name, ACTIVATION, bad, step=5) for name in ("head", "wide")]
    found = advise(Run(directory=Path("runs/7"), samples=table(rows), incidents=incidents))
    assert set(found.fp32_layers) == expected
    assert not found.unknown_layers
    assert f"({2 - len(expected)} of 2 layers" in found.summary


def test_nothing_is_known_of_a_run_that_never_took_a_step() -> None:
    rows = [sample(name, GRADIENT, torch.tensor([torch.nan])) for name in ("a", "b")]
    with pytest.raises(TelemetryError, match="The run has only samples of NaN, Inf and zeros, by which"):
        advise(table(rows))
    found = advise(table([*rows, sample("a", ACTIVATION, torch.ones(1))]))
    assert found.fp32_layers == {}
    assert found.summary.startswith(
        "Whether fp16 fits is not known (2 cannot be judged, with NaN or Inf in every sample); bf16 fits forward for "
        "1 of 1 layers; fp8 fits"
    )


def test_the_whole_model_in_words() -> None:
    layers: dict[str, tuple[Tensor | None, Tensor | None]] = {f"{n}": (normal(), normal(-20)) for n in range(5)}
    found = advice(layers)
    assert found.loss_scales is not None
    assert found.summary == (
        "fp16 is safe with a loss scale of 2^9 to 2^24 (5 of 5 layers); bf16 fits all 5 layers; fp8 fits with a scale "
        "for each tensor: e4m3 forward for 5 of 5 layers, e5m2 backward for 5 of 5 layers."
    )
    layers["1"] = (normal(17), normal(-20))
    assert "(4 of 5 layers; 1 needs fp32)" in advice(layers).summary
    layers["2"] = layers["4"] = layers["3"] = layers["1"]
    assert "(1 of 5 layers; 1, 2, 3 and 1 more need fp32)" in advice(layers).summary
    layers["0"] = layers["1"]
    assert advice(layers).summary.startswith("fp16 fits none of 5 layers; bf16 fits all 5 layers; ")


def test_what_was_not_sampled_is_said() -> None:
    found = advice({"a": (normal(), None)})
    assert "fits the activations (1 of 1 layers), but gradients were not sampled" in found.summary
    assert "backward" not in found.summary
    (only,) = found.limits
    assert "not accuracy" in only
    found = advise(table([sample("a", WEIGHTS, normal(-9), dtype="fp16")]))
    assert "forward" not in found.summary
    assert [limit.split()[0] for limit in found.limits] == ["This", "Activations", "Backward", "8"]


def test_tolerances_decide() -> None:
    values = normal(-18, 4.0)
    layers: dict[str, tuple[Tensor | None, Tensor | None]] = {"a": (values, None)}
    (why,) = advice(layers).fp32_layers.values()
    assert why == f"{lost(values, 'fp16').subnormal:.0%} of its activations would be subnormal"
    assert advice(layers, subnormal=1).fp32_layers == {}
    share = lost(values, "fp16").flushed
    assert 0 < share < 0.05
    assert "flushed to zero" in advice(layers, subnormal=1, flushed=share / 2).fp32_layers["a"]


@pytest.mark.parametrize("name", ["overflow", "flushed", "subnormal"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), "much", None])
def test_a_tolerance_that_is_no_share_is_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"Tolerances\.{name}=.* is not accepted; accepted: a number, 0 to 1\."):
        Tolerances(**{name: value})
