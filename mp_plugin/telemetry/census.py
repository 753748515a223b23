"""What really ran: operators counted by layer and number format, in one forward pass."""

import json
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.nn import Module

from mp_plugin.fallback.layers import bears_parameters, layers_by_name
from mp_plugin.formats import FORMATS
from mp_plugin.telemetry.operators import BLANK, COLLECTIVES, OVERWRITING
from mp_plugin.whole_file import write_whole

log = logging.getLogger(__name__)

NOT_RUN = "not run"
NOT_BY_ITSELF = "not run by itself"
"""Of a layer that was never called, but whose parameters another layer has used, as attention does its `out_proj`'s."""

MOVING = frozenset(
    {"_to_copy", "copy", "copy_", "clone", "lift_fresh", "lift_fresh_copy", "_unsafe_view", "_pin_memory"}
    | {"cat", "stack", "constant_pad_nd", "repeat", "roll", "flip", "_reshape_copy", "expand_copy"}
)
"""Operators that bring numbers to another place or into another format, and compute none."""

MAKING = frozenset(
    {"zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full", "full_like", "new_full", "fill"}
    | {"scalar_tensor", "arange", "linspace", "logspace", "eye", "bernoulli", "rand", "rand_like", "randn"}
    | {"randn_like", "randint", "randint_like", "normal", "randperm"}
)
"""Operators that make numbers of nothing."""

IDLE = MOVING | MAKING | BLANK | OVERWRITING

MANTISSA_BITS = {name: known.mantissa_bits for name, known in FORMATS.items()} | {"fp64": 52}


@dataclass(frozen=True, kw_only=True, slots=True)
class Census:
    """How often which operator ran in which format, by layer.

    The format of an operator is that of its first floating-point output. Views are not counted, nor what has no such
    output. An operator belongs to the innermost layer that ran; one that has several names goes by its first.

    Example:
        >>> counts = {"head": {"aten._to_copy.default": {"fp16": 2}, "aten.addmm.default": {"bf16": 1}}}
        >>> Census(counts=counts, on_parameters={"head": {"bf16": 1}}, lent=frozenset()).format_of("head")
        'bf16'
    """

    counts: dict[str, dict[str, dict[str, int]]]
    """Layer, operator, format: calls. What ran outside of all layers but the model itself is under an empty name."""
    on_parameters: dict[str, dict[str, int]]
    """Layer, format: calls of operators that compute with parameters, or with casts and copies of them."""
    lent: frozenset[str]
    """Layers whose parameters were used by an operator of another layer."""

    def format_of(self, layer: str) -> str:
        """Return the format that a layer ran in: the least precise one, if there were several.

        Casts, copies and operators that only make or move numbers do not count. Of the others, those that take
        parameters decide, if the layer has such; else all do.

        Returns:
            `fp16`, `bf16`, `fp32`, `fp64`, torch's own name of another format, `NOT_RUN` or `NOT_BY_ITSELF`.
        """
        formats = set(self.on_parameters.get(layer, ()))
        if not formats:
            operators = self.counts.get(layer, {})
            formats = {each for name, formats in operators.items() if computes(name) for each in formats}
        if not formats:
            return NOT_BY_ITSELF if layer in self.lent else NOT_RUN
        return least_precise(formats)

    def formats(self, root: Module) -> dict[str, str]:
        """Return the format of each layer of a model that bears parameters or computes, in the order of the model."""
        found = {name: (self.format_of(name), module) for name, module in layers_by_name(root).items()}
        return {name: each for name, (each, module) in found.items() if bears_parameters(module) or each != NOT_RUN}

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {
            "version": 1,
            "layers": {
                layer: {"format": self.format_of(layer), "operators": operators}
                for layer, operators in self.counts.items()
            },
            "not run by themselves": sorted(self.lent - self.counts.keys()),
        }


def least_precise(formats: Iterable[str]) -> str:
    """Return the format with the fewest bits of mantissa; one that is not known counts as having none.

    Example:
        >>> least_precise(["fp32", "fp16"])
        'fp16'
    """
    return min(formats, key=lambda name: (MANTISSA_BITS.get(name, 0), name))


def merged(censuses: Iterable[Census]) -> Census:
    """Return the census of several ranks together: a layer may have run on some of them alone."""
    counts: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    on_parameters: dict[str, Counter[str]] = defaultdict(Counter)
    lent: frozenset[str] = frozenset()
    for census in censuses:
        for layer, operators in census.counts.items():
            for operator, formats in operators.items():
                counts[layer][operator].update(formats)
        for layer, formats in census.on_parameters.items():
            on_parameters[layer].update(formats)
        lent |= census.lent
    return plain_census(counts, on_parameters, lent)


def write_census(census: Census, directory: str | os.PathLike[str]) -> None:
    """Write `telemetry/census.json` into a run's directory, whole or not at all; trouble is only warned about."""
    path = Path(directory) / "telemetry" / "census.json"
    try:
        write_whole(path, json.dumps(census.as_dict(), indent=1) + "\n")
    except OSError as error:  # a run must not end because what it ran in cannot be written
        log.warning("%s cannot be written (%s: %s).", path, type(error).__name__, error)


def plain_census(
    counts: dict[str, dict[str, Counter[str]]], on_parameters: dict[str, Counter[str]], lent: frozenset[str]
) -> Census:
    """Return what was counted as plain dicts."""
    return Census(
        counts={
            layer: {operator: dict(formats) for operator, formats in operators.items()}
            for layer, operators in counts.items()
        },
        on_parameters={layer: dict(formats) for layer, formats in on_parameters.items()},
        lent=lent,
    )


def computes(operator: str) -> bool:
    """Whether an operator, by its name such as `aten.mm.default`, computes numbers."""
    namespace, _, rest = operator.partition(".")
    return rest.partition(".")[0] not in IDLE and namespace not in COLLECTIVES
