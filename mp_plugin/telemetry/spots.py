"""Where in the model and in its code an operator runs; a backward operator is known by its forward."""

import threading
from types import FrameType
from typing import Any, NamedTuple

import torch

from mp_plugin.telemetry.events import Direction
from mp_plugin.telemetry.layer_stack import LayerStack
from mp_plugin.telemetry.source import Place, Site, call_site, is_in_backward, is_recomputing

UNDISPATCHED = 3
"""Nodes that torch makes after an operator, at most, without another operator: writing to a view makes two."""


class Spot(NamedTuple):
    """A layer and a line."""

    layer: str
    site: Site


class Ran(NamedTuple):
    """Where an operator ran, as an incident tells it."""

    layer: str
    location: str | None
    direction: Direction
    ran_at: str | None = None
    """Line of user code inside the backward pass."""


class Spots:
    """Know where each node of the autograd graph was made, as long as the forward pass is watched.

    Args:
        layers: knows which layer runs.
    """

    def __init__(self, layers: LayerStack) -> None:
        self._layers = layers
        self._spots: dict[tuple[int, int], Spot] = {}
        self._home = threading.get_ident()

    def note(self, frame: FrameType) -> None:
        """Call for each operator before it runs, with the frame that runs it."""
        # An autograd node takes its number just before its operator is dispatched to where we see it. Each thread
        # counts for itself: a GPU's backward pass has its own, in which checkpointed activations are computed again.
        key = threading.get_ident(), torch.autograd._get_sequence_nr() - 1  # type: ignore[attr-defined]
        if key not in self._spots:
            self._spots[key] = self._here(frame)

    def where(self, direction: Direction, frame: FrameType) -> Ran:
        """Return where the operator runs that is being dispatched.

        Args:
            direction: the pass that runs; recomputed activations belong to the forward pass, whatever runs.
            frame: what runs the operator.
        """
        if direction is Direction.forward or is_recomputing(frame):
            here = self._here(frame)
            return Ran(here.layer, _text(here.site.place), Direction.forward)
        site = call_site(frame)
        spot = self._of(torch._C._current_autograd_node(), frame)
        line = _text(site.place)
        if spot is None:
            return Ran("", line, Direction.backward, line)
        forward = spot.site.applied_at or spot.site.place
        is_hook = site.place is not None and not site.is_inside_function
        return Ran(spot.layer, line if is_hook or forward is None else str(forward), Direction.backward, line)

    def made_at(self, tensor: torch.Tensor) -> tuple[str, str | None]:
        """Return the layer and the line of user code that computed a tensor of the forward pass."""
        node = tensor.grad_fn
        while node is not None:
            spot = self._of(node, None)
            if spot is not None and spot.site.place is not None:
                return spot.layer, str(spot.site.place)
            node = next((before for before, _ in node.next_functions if before is not None), None)
        return "", None

    def _here(self, frame: FrameType) -> Spot:
        """Return where the forward pass is, or something that it asks for."""
        site = call_site(frame)
        if site.place is not None:
            return Spot(self._layers.current, site)
        # A gradient that the forward pass asks for, and whatever belongs to it, is known by what it is the gradient of.
        parent = self._of(torch._C._current_autograd_node(), frame)
        if parent is None:
            return Spot(self._layers.current, site)
        return Spot(self._layers.current if is_recomputing(frame) else parent.layer, parent.site)

    def _of(self, node: Any, frame: FrameType | None) -> Spot | None:
        if node is None:
            return None
        parameter = getattr(node, "variable", None)
        if parameter is not None:  # what adds up its gradients
            return Spot(self._layers.owner(parameter), Site(None))
        here = threading.get_ident()
        # In a thread of the device, what was recomputed there runs in a backward pass of its own.
        threads = (self._home,) if here == self._home or not is_in_backward(frame) else (here, self._home)
        for thread in threads:
            for number in range(node._sequence_nr(), node._sequence_nr() - UNDISPATCHED, -1):
                spot = self._spots.get((thread, number))
                if spot is not None:
                    return spot
        return None


def _text(place: Place | None) -> str | None:
    return None if place is None else str(place)
