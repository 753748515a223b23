"""Which number format each layer of a run had, as a file that another run can be given."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # its types are a package of their own
from torch.nn import Module

from mp_plugin.casting import DTYPES
from mp_plugin.errors import ConfigError
from mp_plugin.fallback.islands import Islands
from mp_plugin.fallback.layer_format import LayerFormat, shown
from mp_plugin.fallback.layers import bears_parameters, is_below, layers_by_name
from mp_plugin.modes import MODES
from mp_plugin.parameter_names import plain_name
from mp_plugin.telemetry.census import NOT_BY_ITSELF, NOT_RUN, least_precise
from mp_plugin.whole_file import write_whole

FILE_NAME = "precision_map.yaml"
VERSION = 1
"""What the file means; a release that changes that counts it up."""

NOT_OBSERVED = "not observed"
"""Of a layer that nobody has looked at."""

OBSERVED = "The number format that each layer of a run really had, and why."
"""What a map is that a run has written."""
USE = 'Fallback(map="this file") runs the layers with is_island: true in FP32.'

MANY = 5
"""Names listed in an error at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionMap:
    """The formats of a model's layers: those that bear parameters, and those that were chosen to run in FP32.

    Example:
        >>> from torch.nn import LayerNorm, Linear, Sequential
        >>> net = Sequential(Linear(2, 2), LayerNorm(2))
        >>> observed = {"0": "fp16", "1": "fp32"}
        >>> islands = {"1": ("rule: types *Norm*", 0)}
        >>> found = precision_map(net, observed, islands, "16-mixed")
        >>> found.islands
        {'1': 'rule: types *Norm*'}
        >>> found.differences(Sequential(Linear(2, 2)))
        ['1 is not in the model']
    """

    precision: str
    """Lightning's name of the run's precision, such as `16-mixed`."""
    layers: dict[str, LayerFormat]
    """By qualified name, in the order of the model."""

    @property
    def islands(self) -> dict[str, str]:
        """The layers that were chosen to run in FP32, and why."""
        return {name: layer.why for name, layer in self.layers.items() if layer.is_island}

    # On disk and in checkpoints.

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        layers = {name: asdict(layer) for name, layer in self.layers.items()}
        return {"version": VERSION, "precision": self.precision, "layers": layers}

    @classmethod
    def from_dict(cls, values: Any, origin: str = "The precision map") -> "PrecisionMap":
        """Rebuild it; layer names may have the parts that wrappers put in.

        Args:
            values: what `as_dict` returned.
            origin: what an error says of where they are from.

        Raises:
            ConfigError: for anything else.
        """
        if not isinstance(values, dict) or values.keys() != {"version", "precision", "layers"}:
            has = list(values) if isinstance(values, dict) else values
            raise ConfigError(f"{origin} has {shown(has)}; accepted: a table of version, precision and layers.")
        if type(values["version"]) is not int or values["version"] != VERSION:
            raise ConfigError(f"{origin} has version={shown(values['version'])}; accepted: {VERSION}.")
        precision = values["precision"]
        if not isinstance(precision, str) or precision not in MODES:
            raise ConfigError(f"{origin} has precision={shown(precision)}; accepted: {', '.join(map(repr, MODES))}.")
        if not isinstance(values["layers"], dict):
            raise ConfigError(f"{origin} has layers={shown(values['layers'])}; accepted: a table of layers by name.")
        layers: dict[str, LayerFormat] = {}
        for name, entry in values["layers"].items():
            if not isinstance(name, str) or not plain_name(name):
                raise ConfigError(f"{origin} has a layer {shown(name)}; accepted: qualified names, in quotes.")
            if plain_name(name) in layers:
                raise ConfigError(f"{origin} has the layer {plain_name(name)} twice; accepted: each layer once.")
            layers[plain_name(name)] = LayerFormat.from_dict(entry, f"{origin}, at layer {plain_name(name)},")
        return cls(precision=precision, layers=layers)

    def save(self, path: str | os.PathLike[str], *, title: str = OBSERVED) -> None:
        """Write it as YAML, whole or not at all.

        Args:
            path: of the file.
            title: says in its first line what it is.

        Raises:
            OSError: when the file cannot be written.
        """
        text = yaml.safe_dump(self.as_dict(), sort_keys=False, default_flow_style=None, width=2**30, allow_unicode=True)
        write_whole(path, f"# {title}\n# {USE}\n{text}")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "PrecisionMap":
        """Read what `save` wrote.

        Raises:
            ConfigError: for a file that is missing, cannot be read, or is not a precision map.
        """
        origin = f"The precision map {os.fspath(path)}"
        accepted = f"accepted: a {FILE_NAME} that a run has written"
        try:
            text = Path(path).read_text(encoding="utf-8")
            values = yaml.safe_load(text)
        except OSError as error:
            raise ConfigError(f"{origin} cannot be read ({error.strerror or error}); {accepted}.") from error
        # Not all that a parser stumbles over is an error of its own: dates that are none, or a thousand brackets.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(f"{origin} is not YAML ({type(error).__name__}: {reason}); {accepted}.") from error
        return cls.from_dict(values, origin)

    # Against a model, and against rules.

    def differences(self, root: Module) -> list[str]:
        """Return in words what layers the map has and a model lacks, and the other way round."""
        return _differences(self._named_as_in(root), root)

    def check_fits(self, root: Module) -> "PrecisionMap":
        """Return the map under the names of a model, without a leading `module.` that the model does not have.

        Raises:
            ConfigError: for a model with other layers; the message lists the differences.
        """
        fitted = self._named_as_in(root)
        if differences := _differences(fitted, root):
            raise ConfigError(
                f"The precision map is of another model: {_few(differences)}; accepted: the map of a run of this one."
            )
        return fitted

    def contradictions(self, rule_layers: Collection[str]) -> list[str]:
        """Return in words which layers rules put in FP32 that did not run in it."""
        return [
            f"{name} in {layer.format}"
            for name, layer in self.layers.items()
            if layer.format not in _AGREES_WITH_FP32
            and any(is_below(name, rule) for rule in rule_layers)
            and not any(is_below(name, island) for island in self.islands)
        ]

    def check_agrees(self, rule_layers: Collection[str]) -> None:
        """Check that a map and rules can be followed together.

        Raises:
            ConfigError: when a rule puts a layer in FP32 that ran in another format; the message names it.
        """
        if contradictions := self.contradictions(rule_layers):
            raise ConfigError(
                f"Fallback has rules for FP32 and a map that says otherwise, of {_few(contradictions)}; accepted: "
                "rules for layers in FP32 in the map, or rules or a map alone."
            )

    @contextmanager
    def applied(self, model: Module, *, device_type: str) -> Iterator[None]:
        """Run a model as the run did while the block runs: for evaluation or export, within its autocast region.

        In a precision whose weights are half, the islands' own weights have to be FP32, as they were in the run. Of
        `torch.export`, use `strict=False`: its other way takes a cast within autocast for none.

        Args:
            model: with the names of the run's LightningModule.
            device_type: of the autocast region.

        Raises:
            ConfigError: for a model with other layers.
        """
        fitted = self.check_fits(model)
        mode = MODES[self.precision]
        output_dtype = DTYPES[mode.weights] if mode.weights != "fp32" else None
        with Islands(model, device_type=device_type, output_dtype=output_dtype).tried(fitted.islands):
            yield

    def _named_as_in(self, root: Module) -> "PrecisionMap":
        known = layers_by_name(root)
        names = {name: _without_module(name, known) for name in self.layers}
        if len({*names.values()}) < len(names):
            return self
        return replace(self, layers={names[name]: each for name, each in self.layers.items()})


def precision_map(
    root: Module,
    formats_observed: Mapping[str, str],
    islands: Mapping[str, tuple[str, int]],
    precision: str,
) -> PrecisionMap:
    """Return the map of a run.

    Args:
        root: the model.
        formats_observed: by layer, as `Census.formats` has them, of the islands as they are now.
        islands: by layer, why it is one and since which step.
        precision: Lightning's name of the run's precision.
    """
    others = "autocast" if MODES[precision].is_mixed else "weights"
    layers = {}
    for name, module in layers_by_name(root).items():
        island = next((each for each in islands if is_below(name, each)), None)
        if not bears_parameters(module) and name not in islands:
            continue
        why, since_step = (others, 0) if island is None else islands[island]
        layers[name] = LayerFormat(
            format=_observed(name, formats_observed, is_island=name in islands),
            why=why if island in (None, name) else f"in {island}: {why}",
            since_step=since_step,
            is_island=name in islands,
            bears_parameters=bears_parameters(module),
        )
    return PrecisionMap(precision=precision, layers=layers)


_DID_NOT_RUN = (NOT_RUN, NOT_BY_ITSELF, NOT_OBSERVED)
_AGREES_WITH_FP32 = ("fp32", "fp64", *_DID_NOT_RUN)


def _observed(name: str, formats: Mapping[str, str], *, is_island: bool) -> str:
    found = formats.get(name, NOT_OBSERVED)
    if not is_island or found not in _DID_NOT_RUN:
        return found
    # A layer that only calls others ran in what they did.
    inside = [each for below, each in formats.items() if is_below(below, name) and each not in _DID_NOT_RUN]
    return least_precise(inside) if inside else found


def _differences(fitted: PrecisionMap, root: Module) -> list[str]:
    model = layers_by_name(root)
    missing = [f"{name} is not in the model" for name in fitted.layers if name not in model]
    bearing = [name for name, module in model.items() if bears_parameters(module)]
    return missing + [f"{name} is not in the map" for name in bearing if name not in fitted.layers]


def _without_module(name: str, known: Mapping[str, Module]) -> str:
    """Return a layer's name without the part that data parallelism puts before it, if the model has it so."""
    bare = name.removeprefix("module.")
    return bare if name not in known and bare in known else name


def _few(words: Sequence[str]) -> str:
    more = len(words) - MANY
    return ", ".join(words[:MANY]) + (f" and {more} more" if more > 0 else "")
