"""The precision map that advice on a run comes down to: what does not fit fp16 is in FP32."""

from itertools import pairwise

from mp_plugin.errors import TelemetryError
from mp_plugin.fallback.layer_format import LayerFormat
from mp_plugin.fallback.layers import is_below
from mp_plugin.fallback.precision_map import NOT_OBSERVED, PrecisionMap
from mp_plugin.telemetry.advise import Advice
from mp_plugin.telemetry.layer_sample import TensorKind
from mp_plugin.telemetry.store import Run

PRECISION = "16-mixed"


def advised_map(run: Run, advice: Advice) -> PrecisionMap:
    """Return the map of a run in fp16 whose misfits are in FP32.

    What a misfit puts out goes into another layer, which would cast it to fp16, and whose backward pass makes its
    gradient: that is in FP32 too. Nobody has recorded which one it is, so it is the next one in the order of the model.
    What this run had in FP32 stays there: a rule or a proof had its reasons, which may lie inside of a layer, where
    nobody has sampled.

    Args:
        run: that the advice is about.
        advice: on it.

    Raises:
        TelemetryError: when nothing fits fp16, or when the run does not tell which layers its model has.
    """
    if {each.layer for each in advice.layers} <= advice.fp32_layers.keys():
        raise TelemetryError("fp16 fits no layer of this run, so that there is no map to write; accepted: another run.")
    bears_parameters = _layers(run)
    islands = {} if run.precision_map is None else dict(run.precision_map.islands)
    # The root goes by no name: a map cannot have it.
    for name, why in {**advice.fp32_layers, **_after(advice)}.items():
        if name:
            islands.setdefault(name, f"advised: {why}")
    outermost = {
        name: why
        for name, why in islands.items()
        if not any(is_below(name, other) for other in islands if other != name)
    }
    layers = {}
    for name in dict.fromkeys([*bears_parameters, *outermost]):
        island = next((each for each in outermost if is_below(name, each)), None)
        if island is None:
            fits = "not judged, NaN or Inf in every sample" if name in advice.unknown_layers else "fits fp16"
            layer_format, why = NOT_OBSERVED, f"advised: {fits}"
        else:
            layer_format, why = "fp32", outermost[island] if island == name else f"in {island}: {outermost[island]}"
        layers[name] = LayerFormat(
            format=layer_format,
            why=why,
            since_step=0,
            is_island=name in outermost,
            bears_parameters=bears_parameters.get(name, False),
        )
    return PrecisionMap(precision=PRECISION, layers=layers)


def _after(advice: Advice) -> dict[str, str]:
    """Return the layers that come after one whose output, or whose output's gradient, does not fit fp16."""
    misfits = {
        each.layer
        for each in advice.layers
        if each.is_known and not each.formats["fp16"].fits and each.histogram.kind is not TensorKind.parameter_gradient
    }
    names = list(dict.fromkeys(each.layer for each in advice.layers if each.layer))
    return {
        after: f"takes in what {name} puts out"
        for name, after in pairwise(names)
        if name in misfits and after not in advice.fp32_layers
    }


def _layers(run: Run) -> dict[str, bool]:
    """Return the layers that a map of the run's model has, and whether they bear parameters."""
    if run.precision_map is not None:
        return {name: layer.bears_parameters for name, layer in run.precision_map.layers.items()}
    kinds, names = (run.samples.column(name).to_pylist() for name in ("kind", "layer"))
    pairs = zip(kinds, names, strict=True)
    found = dict.fromkeys((name for kind, name in pairs if name and kind == TensorKind.parameter_gradient), True)
    if not found:
        raise TelemetryError(
            f"{run.directory} has no precision_map.yaml and no samples of parameters' gradients, so that nobody knows "
            "its layers; accepted: a run with Telemetry(gradients=True) that took a step when it was sampled."
        )
    return found
