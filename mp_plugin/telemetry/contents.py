"""How non-finite numbers got from an operator's inputs into its output."""

from collections.abc import Sequence

from torch import Tensor

from mp_plugin.numerics.finiteness import Kind, Kinds


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
        >>> import torch
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
