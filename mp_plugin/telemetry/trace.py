"""Watch every operator of a training step and remember those that met non-finite numbers.

For incidents only: each operator's output is looked at with a sync, so that a step takes many times as long.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mp_plugin.numerics.finiteness import FINITE, INFINITE, Kind, Kinds, kinds_in, readable_values
from mp_plugin.telemetry.contents import flow_by_element
from mp_plugin.telemetry.events import Direction, Signature
from mp_plugin.telemetry.kept_calls import KeptCalls, mapped
from mp_plugin.telemetry.layer_stack import LayerStack
from mp_plugin.telemetry.operators import (
    CONSTANT,
    Flow,
    OperatorInfo,
    floating_tensors,
    inputs_that_count,
    named_arguments,
    non_finite_constant,
    operator_info,
    uses_batch_statistics,
)
from mp_plugin.telemetry.origin import Origin, Source, Step, find_origin
from mp_plugin.telemetry.spots import Spots
from mp_plugin.telemetry.writers import Writers, storage_of


@dataclass(frozen=True, slots=True)
class _Input:
    """A tensor among an operator's arguments."""

    before: Tensor
    """What it held when the operator began."""
    tensor: Tensor
    kinds: Kinds


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own, untyped
    """While entered, remember every operator whose output is not finite, with where it was called.

    It sees what runs eagerly, on any device, in the forward and the backward pass; a backward operator is known by the
    line and the layer of its forward. Compiled code has to be run eagerly meanwhile. Arguments and results are not
    changed. What cannot be looked at counts as finite.

    Args:
        layers: knows which layer runs; entered together with the trace.
        only: operator, location and direction of the only operators to look at; None for all of them.

    Example:
        >>> layers = LayerStack(torch.nn.Identity())
        >>> with Trace(layers) as trace:
        ...     loss = (torch.tensor([1.0, 0.0]).log() + 1).sum()
        >>> trace.find_origin([loss])
        Origin(step=0, source=None)
        >>> [step.operator for step in trace.steps]
        ['aten.log.default', 'aten.add.Tensor', 'aten.sum.default']
    """

    # Attention kernels written with torch's higher-order operators are called through.
    supports_higher_order_operators = True

    def __init__(self, layers: LayerStack, *, only: frozenset[Signature] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[Step] = []
        self.failure: Exception | None = None
        self.only = only
        self._only_operators = None if only is None else {operator for operator, _, _ in only}
        self._direction = Direction.forward
        self._spots = Spots(layers)
        self._writers = Writers()
        self._kept = KeptCalls(layers.lent_parameters)

    @contextmanager
    def backward(self) -> Iterator[None]:
        """What runs inside, but for recomputed activations, belongs to the backward pass."""
        before, self._direction = self._direction, Direction.backward
        try:
            yield
        finally:
            self._direction = before

    def find_origin(self, tensors: Sequence[Tensor]) -> Origin | None:
        """Return what made these tensors non-finite, as far as this rank knows; None if they are finite. Syncs.

        Should none of them lead anywhere, for they came through memory that nobody saw written, the earliest origin of
        anything non-finite has to do.
        """
        sinks = self._sinks(tensors)
        if not sinks:
            return None
        everything = (
            Source(maker=place, storage=0, kind=kind, into=kind)
            for place, step in enumerate(self.steps)
            for kind in step.kinds
        )
        return find_origin(self.steps, sinks) or find_origin(self.steps, everything)

    def made_at(self, tensor: Tensor) -> tuple[str, str | None]:
        """Return the layer and the line of user code that computed a tensor of the forward pass."""
        return self._spots.made_at(tensor)

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        info = operator_info(operator)
        is_watched = info.is_watched and (self._only_operators is None or info.name in self._only_operators)
        copies: dict[str, Any] = {}
        # A diagnosis must not stop what it diagnoses: the first failure is kept, to be told.
        try:
            self._spots.note(sys._getframe())
            if info.written:
                copies = self._before_writing(info, args, kwargs, is_watched)
        except Exception as error:
            self.failure = self.failure or error
        output = operator(*args, **kwargs)
        if is_watched:
            try:
                with torch.no_grad():
                    self._look(operator, info, args, kwargs, copies, output)
            except Exception as error:
                self.failure = self.failure or error
        return output

    def _before_writing(
        self, info: OperatorInfo, args: tuple[Any, ...], kwargs: dict[str, Any], is_watched: bool
    ) -> dict[str, Any]:
        """Return copies of the arguments that the operator is about to write to and looks at."""
        given = named_arguments(info, args, kwargs)
        for name in info.written:
            for tensor in floating_tensors(given.get(name)):
                self._writers.touched(tensor)
                self._kept.before_write(tensor)
        return {name: mapped(torch.clone, given[name]) for name in info.rewritten if is_watched and name in given}

    def _look(
        self,
        operator: Any,
        info: OperatorInfo,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        copies: Mapping[str, Any],
        output: Any,
    ) -> None:
        results = {id(each): each for each in floating_tensors(output)}
        if info.written:
            now = named_arguments(info, args, kwargs)
            ignored = ("running_mean", "running_var") if uses_batch_statistics(info, now) else ()
            written = (now.get(name) for name in info.written if name not in ignored)
            results |= {id(each): each for value in written for each in floating_tensors(value)}
        bad = [(tensor, kinds) for tensor in results.values() if (kinds := self._kinds(tensor))]
        if not bad:
            return
        ran = self._spots.where(self._direction, sys._getframe())
        if self.only is not None and (info.name, ran.location, ran.direction) not in self.only:
            return
        now = named_arguments(info, args, kwargs)
        given = {**now, **copies}
        counted = inputs_that_count(info, given)
        kinds = frozenset[Kind]().union(*(each for _, each in bad))
        is_constant = info.base == CONSTANT
        sources, made = self._flow(info, [] if is_constant else self._inputs(counted, now), bad, kinds)
        has_constant = is_constant or non_finite_constant(counted) is not None
        # +Inf for one element, by hand, is rather a mistake.
        meant = frozenset({Kind.negative_inf}) if is_constant else INFINITE
        is_filled = kinds <= meant and info.is_filling and has_constant
        step = Step(
            operator=info.name,
            direction=ran.direction,
            layer=ran.layer,
            location=ran.location,
            ran_at=ran.ran_at,
            kinds=kinds,
            made=made,
            sources=sources,
            writes=tuple(storage_of(tensor) for tensor, _ in bad),
            is_given=is_filled,
            is_collective=info.is_collective,
            takes_masks=info.flow is not Flow.mixed,
        )
        if step.is_maker and not is_filled:
            values = list(given.values())[: len(args)]
            step.call = self._kept.keep(
                (info.name, ran), operator, values, {name: given[name] for name in kwargs}, output
            )
        self.steps.append(step)
        for tensor, each in bad:
            self._writers.note(tensor, len(self.steps) - 1, each)

    def _inputs(self, counted: Mapping[str, Any], now: Mapping[str, Any]) -> list[_Input]:
        befores = (each for name in counted for each in floating_tensors(counted[name]))
        tensors = (each for name in counted for each in floating_tensors(now[name]))
        inputs = {id(before): (before, tensor) for before, tensor in zip(befores, tensors, strict=True)}
        return [
            # What was written to is looked at in its copy, and known by its own memory.
            _Input(before, tensor, self._kinds(tensor) if before is tensor else kinds_in(before) or FINITE)
            for before, tensor in inputs.values()
        ]

    def _flow(
        self, info: OperatorInfo, inputs: list[_Input], bad: list[tuple[Tensor, Kinds]], kinds: Kinds
    ) -> tuple[tuple[Source, ...], Kinds]:
        """Return which inputs the non-finite numbers of an output came from, and what of it came from finite ones."""
        spoiled = [each for each in inputs if each.kinds]
        held = frozenset[Kind]().union(*(each.kinds for each in spoiled))
        if not held:
            return (), kinds
        is_plain = kinds == {Kind.nan} and Kind.nan in held
        is_added = info.flow is Flow.added and len(spoiled) == 1 and spoiled[0] is inputs[0]
        if (info.flow in (Flow.by_element, Flow.chosen) or is_added) and len(bad) == 1 and not is_plain:
            try:
                values = [_real(each.before) for each in (spoiled if is_added else inputs)]
                ways, made = flow_by_element(values, _real(bad[0][0]), keeps_kinds=info.flow is Flow.chosen)
                return tuple(self._source(inputs[place], kind, into) for place, kind, into in sorted(ways)), made
            except (RuntimeError, ValueError):  # a shape that does not expand, a complex number
                pass
        from_kinds = {into: _came_from(info.flow, into, held) for into in kinds}
        sources = tuple(
            self._source(each, kind, into)
            for into in kinds
            for each in spoiled
            for kind in each.kinds & from_kinds[into]
        )
        return sources, frozenset(into for into in kinds if not from_kinds[into])

    def _source(self, given: _Input, kind: Kind, into: Kind) -> Source:
        maker = self._writers.writer(given.tensor, kind, given.before)
        return Source(maker=maker, storage=storage_of(given.tensor), kind=kind, into=into)

    def _sinks(self, tensors: Sequence[Tensor]) -> list[Source]:
        inputs = (_Input(tensor, tensor, kinds) for tensor in tensors if (kinds := self._writers.kinds(tensor)))
        return [self._source(each, kind, kind) for each in inputs for kind in each.kinds]

    def _kinds(self, tensor: Tensor) -> Kinds:
        return self._writers.kinds(tensor) or FINITE


def _came_from(flow: Flow, into: Kind, held: Kinds) -> Kinds:
    """Return which kinds among the inputs a kind in the output is from; none if it was made from finite numbers."""
    if flow in (Flow.selected, Flow.chosen) or into is Kind.nan and Kind.nan in held:
        return held & {into}
    return held & INFINITE


def _real(tensor: Tensor) -> Tensor:
    values = readable_values(tensor)
    if values is None or tensor.is_complex():
        raise ValueError("Only real numbers can be followed one by one.")
    return values
