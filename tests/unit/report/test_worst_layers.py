from mp_plugin.fallback.layer_format import LayerFormat
from mp_plugin.fallback.precision_map import PrecisionMap
from mp_plugin.report.worst_layers import worst_layers
from mp_plugin.telemetry.layer_sample import TensorKind
from tests.helpers.planted_runs import info, overflow, planted_run, sample


def precision_map(layer: str, format: str) -> PrecisionMap:
    found = LayerFormat(format=format, why="autocast", since_step=0, is_island=False, bears_parameters=True)
    return PrecisionMap(precision="16-mixed", layers={layer: found})


def test_extremes_and_the_steps_that_had_them() -> None:
    run = planted_run(
        [
            sample("net.1", step=0, amax=1.0, subnormal=10, nans=1),
            sample("net.1", step=100, amax=65504 / 4, flushed=5, subnormal=20, zeros=50),
            sample("net.1", step=200, amax=65504 / 4, saturated=3, infs=2),
        ]
    )
    (found,) = worst_layers(run)
    assert (found.layer, found.kind, found.dtype, found.samples) == ("net.1", TensorKind.activation, "fp16", 3)
    assert (found.headroom_bits, found.headroom_step) == (2.0, 100)
    assert (found.underflow, found.underflow_step) == (0.5, 100)
    assert found.mean_underflow == 35 / (99 + 50 + 98)
    assert (found.saturated, found.nans, found.infs) == (3, 1, 2)


def test_the_worst_come_first() -> None:
    run = planted_run(
        [
            sample("fine"),
            sample("tight", amax=60000),
            sample("broken", infs=1),
            sample("silent", amax=0.0),
            sample("wide", amax=1e9, dtype="fp32"),
        ]
    )
    assert [each.layer for each in worst_layers(run)] == ["broken", "tight", "fine", "silent", "wide"]
    assert [each.layer for each in worst_layers(run, 2)] == ["broken", "tight"]
    assert len(worst_layers(run, None)) == 5


def test_where_inf_came_from_comes_before_what_it_spoiled() -> None:
    names = ("a", "net.head", "z")
    run = planted_run([*(sample(name, infs=1) for name in names), sample("tight", amax=60000)], incidents=[overflow(7)])
    assert [each.layer for each in worst_layers(run)] == ["net.head", "a", "z", "tight"]
    run = planted_run([sample("net.head"), sample("tight", amax=60000)], incidents=[overflow(7)])
    assert [each.layer for each in worst_layers(run)] == ["tight", "net.head"]


def test_each_kind_by_itself() -> None:
    run = planted_run([sample("a", amax=2.0), sample("a", kind="activation_gradient", amax=1.0, loss_scale=1024.0)])
    found = worst_layers(run)
    assert [(each.kind.value, each.loss_scale) for each in found] == [("activation_gradient", 1024), ("activation", 1)]


def test_a_layer_without_a_value_has_no_headroom_and_no_underflow() -> None:
    (found,) = worst_layers(planted_run([sample("dead", amax=0.0, zeros=100)]))
    assert (found.headroom_bits, found.headroom_step, found.underflow_step, found.mean_underflow) == (
        None,
        None,
        None,
        0,
    )


def test_no_samples_no_layers() -> None:
    assert worst_layers(planted_run()) == []


def test_of_a_layer_that_moved_to_fp32_what_it_was_before_counts() -> None:
    run = planted_run([sample("a", step=0, amax=1024.0), sample("a", step=1, amax=1e9, dtype="fp32")])
    (found,) = worst_layers(run)
    assert found.is_at_risk
    assert found.headroom_step == 0


def at_risk(*samples: object, **fields: object) -> dict[tuple[str, str], bool]:
    run = planted_run(samples, **fields)  # type: ignore[arg-type]
    return {(each.layer, each.kind.value): each.is_at_risk for each in worst_layers(run, None)}


def test_gradients_of_fp32_weights_are_at_risk_where_autocast_computed_them_in_half_precision() -> None:
    weights = {"kind": "parameter_gradient", "dtype": "fp32"}
    found = at_risk(
        sample("half"),
        sample("half", **weights),
        sample("norm", dtype="fp32"),
        sample("norm", **weights),
        sample("only", **weights),
        sample("beyond", amax=1e6, **weights),
        sample("mapped", **weights),
        sample("island.inner", **weights),
        sample("islands", **weights),
        info=info(fp32_layers={"island": "proved"}),
        precision_map=precision_map("mapped", "fp32"),
    )
    gradients = {layer: risk for (layer, kind), risk in found.items() if kind == "parameter_gradient"}
    assert gradients == {
        "half": True,
        "norm": False,
        "only": True,
        "beyond": False,
        "mapped": False,
        "island.inner": False,
        "islands": True,
    }
    assert found["norm", "activation"] is False


def test_in_an_fp32_run_every_layer_counts() -> None:
    assert at_risk(sample("a", dtype="fp32", compute_dtype="fp32")) == {("a", "activation"): True}
