"""Watch every operator of a training step and remember those that met non-finite numbers.

For incidents only: each operator's output is looked at with a sync, so that a step takes many times as long.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mp_plugin.numerics.finiteness import is_finite, non_finite_counts
from mp_plugin.numerics.grad_stats import local_part
from mp_plugin.telemetry.events import Direction, Signature
from mp_plugin.telemetry.layer_stack import LayerStack
from mp_plugin.telemetry.operators import (
    OperatorInfo,
    floating_tensors,
    inputs_that_count,
    named_arguments,
    non_finite_constant,
    operator_info,
)
from mp_plugin.telemetry.origin import Origin, Source, Step, find_origin
from mp_plugin.telemetry.source import Place, Site, call_site, is_recomputing

KEPT_CALLS = 16
"""Operators whose arguments are kept to look at again: the origin is among the first that made a non-finite number."""


@dataclass(frozen=True, slots=True)
class Call:
    """An operator with what it was given and what it returned."""

    operator: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


class _Spot(NamedTuple):
    """Where in the model and in its code a node of the autograd graph was made."""

    layer: str
    site: Site


class Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own, untyped
    """While entered, remember every operator whose output is not finite, with where it was called.

    It sees what runs eagerly, on any device, in the forward and the backward pass; a backward operator is known by the
    line and the layer of its forward. Compiled code has to be run eagerly meanwhile. Arguments and results are not
    changed. What cannot be looked at counts as finite, and as `unchecked`.

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
        self.unchecked = 0
        self.failure: Exception | None = None
        self._layers = layers
        self.only = only
        self._only_operators = None if only is None else {operator for operator, _, _ in only}
        self._direction = Direction.forward
        self._last_writer: dict[int, int] = {}
        self._nodes: dict[int, _Spot] = {}
        self._kept = 0

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
        bad = [tensor for tensor in tensors if is_finite(tensor) is False]
        if not bad:
            return None
        writers = (self._last_writer.get(storage_of(tensor)) for tensor in bad)
        seen = [writer for writer in writers if writer is not None]
        return find_origin(self.steps, seen) or find_origin(self.steps, range(len(self.steps)))

    def made_at(self, tensor: Tensor) -> tuple[str, str | None]:
        """Return the layer and the line of user code that computed a tensor of the forward pass."""
        node = tensor.grad_fn
        while node is not None:
            spot = self._spot_of(node)
            if spot is not None and spot.site.place is not None:
                return spot.layer, str(spot.site.place)
            node = next((before for before, _ in node.next_functions if before is not None), None)
        return "", None

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        info = operator_info(operator)
        is_watched = not info.is_blank and (self._only_operators is None or info.name in self._only_operators)
        given: dict[str, Any] = {}
        with self._stepping_aside():
            self._note_node()
            if is_watched:
                given = _as_before(info, named_arguments(info, args, kwargs))
        output = operator(*args, **kwargs)
        if is_watched:
            with self._stepping_aside(), torch.no_grad():
                now = named_arguments(info, args, kwargs)
                written = [each for name in info.written for each in floating_tensors(now.get(name))]
                call = _Call(operator, len(args), kwargs, output)
                self._look(info, given, now, [*floating_tensors(output), *written], call)
        return output

    @contextmanager
    def _stepping_aside(self) -> Iterator[None]:
        """A diagnosis must not stop what it diagnoses: the first failure is kept, to be told."""
        try:
            yield
        except Exception as error:
            self.failure = self.failure or error

    def _note_node(self) -> None:
        # An autograd node takes its number just before its operator is dispatched to where we see it.
        number = torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
        if number not in self._nodes:
            self._nodes[number] = _Spot(self._layers.current, call_site(sys._getframe()))

    def _look(
        self,
        info: OperatorInfo,
        given: Mapping[str, Any],
        now: Mapping[str, Any],
        results: list[Tensor],
        call: "_Call",
    ) -> None:
        bad = [tensor for tensor in {id(each): each for each in results}.values() if not self._is_finite(tensor)]
        if not bad:
            if self._last_writer:
                self._forget(results, now)
            return
        counts = [non_finite_counts(tensor) for tensor in bad]
        makes_nan = any(nan for nan, _, _ in counts)
        is_mask = not makes_nan and not any(inf for _, inf, _ in counts)
        counted = inputs_that_count(info, given)
        sources = tuple(self._sources(counted, now))
        layer, location, direction, ran_at = self._where(sys._getframe())
        if self.only is not None and (info.name, location, direction) not in self.only:
            return
        step = Step(
            operator=info.name,
            direction=direction,
            layer=layer,
            location=location,
            ran_at=ran_at,
            makes_nan=makes_nan,
            sources=sources,
            writes=tuple(map(storage_of, bad)),
            is_given=is_mask and not info.is_arithmetic and any(map(non_finite_constant, counted.values())),
            is_collective=info.is_collective,
            takes_masks=info.takes_masks,
        )
        if step.is_maker and not step.is_given and self._kept < KEPT_CALLS:
            self._kept += 1
            step.call = call.kept(info, given)
        self.steps.append(step)
        self._last_writer.update(dict.fromkeys(step.writes, len(self.steps) - 1))

    def _where(self, frame: FrameType) -> tuple[str, str | None, Direction, str | None]:
        """Return layer, line and pass of an operator; for user code inside the backward pass also its own line."""
        site = call_site(frame)
        spot = self._spot_of(torch._C._current_autograd_node())
        if self._direction is Direction.forward or is_recomputing(frame):
            if spot is not None and site.place is None:  # a gradient that the forward pass asks for
                return spot.layer, _text(spot.site.place), Direction.forward, None
            return self._layers.current, _text(site.place), Direction.forward, None
        if spot is None:
            return "", _text(site.place), Direction.backward, None
        forward = spot.site.applied_at or spot.site.place
        if forward is None:
            return spot.layer, _text(site.place), Direction.backward, None
        return spot.layer, str(forward), Direction.backward, _text(site.place)

    def _spot_of(self, node: Any) -> _Spot | None:
        if node is None:
            return None
        number = node._sequence_nr()
        # An in-place write to a view makes a second node, for which nothing is dispatched.
        return self._nodes.get(number) or self._nodes.get(number - 1)

    def _sources(self, given: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[Source]:
        # What was written to is looked at in its copy, and known by its own memory.
        tensors = (each for name in given for each in floating_tensors(given[name]))
        originals = (each for name in given for each in floating_tensors(now[name]))
        pairs = {id(pair[0]): pair for pair in zip(tensors, originals, strict=True)}
        for tensor, original in pairs.values():
            if self._is_finite(tensor):
                continue
            nan, inf, _ = non_finite_counts(tensor)
            storage = storage_of(original)
            yield Source(
                maker=self._last_writer.get(storage),
                storage=storage,
                has_nan=nan > 0,
                is_mask=nan == 0 and inf == 0,
            )

    def _is_finite(self, tensor: Tensor) -> bool:
        finite = is_finite(tensor)
        self.unchecked += finite is None
        return finite is not False

    def _forget(self, results: list[Tensor], now: Mapping[str, Any]) -> None:
        """Note that memory which held non-finite numbers was freed and holds finite ones now."""
        inputs = {storage_of(each) for value in now.values() for each in floating_tensors(value)}
        for tensor in results:
            storage = storage_of(tensor)
            if storage not in inputs:  # a finite part of it says nothing about the rest
                self._last_writer.pop(storage, None)


class _Call(NamedTuple):
    """A call that has just returned."""

    operator: Any
    positional: int
    kwargs: dict[str, Any]
    output: Any

    def kept(self, info: OperatorInfo, given: Mapping[str, Any]) -> Call:
        args = tuple(_detached(value) for value in list(given.values())[: self.positional])
        return Call(self.operator, args, {name: _detached(given[name]) for name in self.kwargs}, _detached(self.output))


def storage_of(tensor: Tensor) -> int:
    """Return the identity of a tensor's memory, which its views and detached copies share."""
    tensor = local_part(tensor)
    try:
        return tensor.untyped_storage()._cdata  # type: ignore[no-any-return]  # untyped in torch
    except (NotImplementedError, RuntimeError):  # sparse tensors and the like have none of their own
        return id(tensor)


def _as_before(info: OperatorInfo, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call, with copies of those that it is about to write to and looks at."""
    names = frozenset() if info.is_collective else info.written - info.overwritten
    return {name: _mapped(torch.clone, value) if name in names else value for name, value in arguments.items()}


def _detached(value: Any) -> Any:
    return _mapped(Tensor.detach, value)


def _mapped(function: Any, value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)([_mapped(function, each) for each in value]) if type(value) in (list, tuple) else value
    return value


def _text(place: Place | None) -> str | None:
    return None if place is None else str(place)
