"""Which kinds of non-finite numbers a tensor holds, and how they got from an operator's inputs into its output."""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from mp_plugin.numerics.finiteness import readable_values


class Kind(str, Enum):
    """A kind of non-finite number."""

    nan = "nan"
    inf = "inf"
    negative_inf = "-inf"


Kinds = frozenset[Kind]
FINITE: Kinds = frozenset()
INFINITE: Kinds = frozenset({Kind.inf, Kind.negative_inf})


def kinds_in(tensor: Tensor) -> Kinds | None:
    """Return the kinds of non-finite numbers in a tensor; None if it cannot be looked at. Syncs.

    Example:
        >>> sorted(kinds_in(torch.tensor([1.0, float("nan"), float("-inf")])))
        [<Kind.negative_inf: '-inf'>, <Kind.nan: 'nan'>]
    """
    try:
        values = readable_values(tensor)
        if values is None:
            return None
        if values.numel() == 0:
            return FINITE
        with _without_modes(values):
            # A sum is the cheapest of all reads, but not in half precision on a CPU.
            if (values.itemsize > 2 or values.is_cuda) and math.isfinite(values.sum().item()):
                return FINITE
            return _kinds_of(values)
    # Tensor subclasses may raise anything; a tensor that cannot be read is an answer here, not an error.
    except Exception:
        return None


def _without_modes(values: Tensor) -> AbstractContextManager[Any]:
    # Who watches or guards what the training does need not see this. Tensor subclasses compute by that way alone.
    is_plain = type(values) in (Tensor, torch.nn.Parameter)
    return torch._C._DisableTorchDispatch() if is_plain else nullcontext()


def _kinds_of(values: Tensor) -> Kinds:
    smallest, largest = torch.stack(values.aminmax()).tolist()
    kinds = set()
    if math.isnan(largest):
        kinds.add(Kind.nan)
        values = values.nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
        smallest, largest = torch.stack(values.aminmax()).tolist()
    if largest == math.inf:
        kinds.add(Kind.inf)
    if smallest == -math.inf:
        kinds.add(Kind.negative_inf)
    return frozenset(kinds)


def holds(values: Tensor, kind: Kind) -> Tensor:
    """Return a mask of the elements that are of this kind."""
    return values.isnan() if kind is Kind.nan else values == float(kind.value)


def flow_by_element(
    inputs: Sequence[Tensor], output: Tensor, *, keeps_kinds: bool = False
) -> tuple[set[tuple[int, Kind, Kind]], Kinds]:
    """Follow the non-finite numbers of an operator that computes each element of its output from those at its place.

    Args:
        inputs: real, and of shapes that expand to the output's.
        output: real.
        keeps_kinds: whether the operator chooses among its inputs' numbers, and leaves them as they are.

    Returns:
        Each way from an input into the output, as index of the input, kind there, and kind in the output; and the
        kinds that appeared where all inputs are finite.

    Example:
        >>> scores, mask = torch.tensor([1.0, 3e38]), torch.tensor([float("-inf"), 3e38])
        >>> flow_by_element([scores, mask], scores + mask)
        ({(1, <Kind.negative_inf: '-inf'>, <Kind.negative_inf: '-inf'>)}, frozenset({<Kind.inf: 'inf'>}))
    """
    ways: set[tuple[int, Kind, Kind]] = set()
    made = set()
    bad = [(place, each.expand(output.shape)) for place, each in enumerate(inputs) if not each.isfinite().all()]
    for into in Kind:
        here = holds(output, into)
        if not here.any():
            continue
        unexplained = here
        for place, values in bad:
            reached = values[here]
            for kind in (into,) if keeps_kinds else Kind:
                if holds(reached, kind).any():
                    ways.add((place, kind, into))
            unexplained = unexplained & values.isfinite()
        if unexplained.any():
            made.add(into)
    return ways, frozenset(made)


def first_place(tensor: Tensor, kind: Kind) -> tuple[int, ...] | None:
    """Return the index of the first element of this kind; None if there is none."""
    places = holds(tensor, kind).nonzero()
    return tuple(places[0].tolist()) if len(places) else None


def memory_of(tensor: Tensor) -> Tensor:
    """Return the strided tensor that holds the numbers of a tensor of any layout."""
    if tensor.layout is torch.strided:
        return tensor
    return tensor._values() if tensor.layout is torch.sparse_coo else tensor.values()
