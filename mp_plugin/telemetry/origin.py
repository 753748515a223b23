"""From all operators that met non-finite numbers to the one that made them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from mp_plugin.telemetry.events import Direction


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A non-finite input of an operator."""

    maker: int | None
    """Which traced step wrote it last; None for a tensor that was there before."""
    storage: int
    """Identity of its memory."""
    has_nan: bool
    is_mask: bool
    """Whether -Inf is all that is not finite in it."""


@dataclass(kw_only=True, slots=True)
class Step:
    """An operator whose output is not finite."""

    operator: str
    direction: Direction
    layer: str
    location: str | None
    makes_nan: bool
    ran_at: str | None = None
    """Line of user code inside the backward pass, such as that of a custom autograd Function."""
    sources: tuple[Source, ...] = ()
    writes: tuple[int, ...] = ()
    """Identities of the memory where its non-finite numbers are."""
    is_given: bool = False
    """Whether it writes a mask: -Inf from a constant among its arguments."""
    is_collective: bool = False
    """Whether it brings numbers of other ranks, so that nothing was made here."""
    takes_masks: bool = False
    call: Any = field(default=None, repr=False)
    """What is needed to look at the call again; None where that is not kept."""

    @property
    def is_maker(self) -> bool:
        """Whether it made NaN where there was none, or Inf from finite numbers."""
        return not self.is_collective and not any(each.has_nan or not self.makes_nan for each in self.sources)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where non-finite numbers came from: a step that made them, or met them first."""

    step: int
    source: Source | None = None
    """For numbers that were there before: the input in which they were met."""


@dataclass(frozen=True, slots=True)
class _Roots:
    """Earliest origins of each kind that lead to a tensor."""

    made: Origin | None = None
    """An operator that made non-finite from finite numbers."""
    there: Origin | None = None
    """A tensor that was not finite before."""
    given: Origin | None = None
    """A mask of -Inf, written here or there before: harmless until a whole row is masked."""

    def or_(self, other: "_Roots") -> "_Roots":
        return _Roots(
            made=_earlier(self.made, other.made),
            there=_earlier(self.there, other.there),
            given=_earlier(self.given, other.given),
        )

    @property
    def serious(self) -> Origin | None:
        return _earlier(self.made, self.there)


def find_origin(steps: Sequence[Step], sinks: Iterable[int]) -> Origin | None:
    """Walk back from what must not be non-finite to the earliest operator or tensor that is to blame.

    A NaN comes from a NaN input if there is one. Else it was made: from an Inf that an earlier operator made, or that
    was there before, which is then to blame; from finite numbers, or from an Inf that somebody meant, the -Inf of an
    attention mask for one, in which case the operator itself is. An Inf comes from an Inf input if there is one. What
    becomes finite again on the way, 1/Inf or a masked-out logarithm of zero, leads nowhere and blames nobody.

    Args:
        steps: in the order in which they ran.
        sinks: the steps that wrote a non-finite loss or gradient.

    Returns:
        The origin; None if none of the sinks leads to one on this rank.

    Example:
        >>> common = dict(direction=Direction.forward, layer="", location=None, makes_nan=False)
        >>> overflow = Step(operator="aten.mm.default", **common)
        >>> victim = Step(operator="aten.add.Tensor", **common,
        ...     sources=(Source(maker=0, storage=7, has_nan=False, is_mask=False),))
        >>> find_origin([overflow, victim], sinks=[1])
        Origin(step=0, source=None)
    """
    roots: list[_Roots] = []
    for place, step in enumerate(steps):
        roots.append(_roots_of(place, step, roots))
    found = _Roots()
    for sink in sinks:
        found = found.or_(roots[sink])
    return found.serious or found.given


def _roots_of(place: int, step: Step, known: Sequence[_Roots]) -> _Roots:
    if step.is_collective:
        return _Roots()
    nan_sources = [source for source in step.sources if source.has_nan]
    if step.makes_nan and nan_sources:
        return _merge(place, nan_sources, known)
    made_here = _Roots(given=Origin(place)) if step.is_given else _Roots(made=Origin(place))
    if not step.sources:
        return made_here
    before = _merge(place, step.sources, known)
    if not step.makes_nan:
        return before
    if before.serious or before.given is None:
        return before
    # NaN from a mask: a mask is no accident, but a row that is masked as a whole is one, of the operator that meets it.
    return _Roots(made=Origin(place, None if step.takes_masks else before.given.source))


def _merge(place: int, sources: Iterable[Source], known: Sequence[_Roots]) -> _Roots:
    merged = _Roots()
    for source in sources:
        merged = merged.or_(_roots_of_source(place, source, known))
    return merged


def _roots_of_source(place: int, source: Source, known: Sequence[_Roots]) -> _Roots:
    if source.maker is not None:
        return known[source.maker]
    met = Origin(place, source)
    return _Roots(given=met) if source.is_mask else _Roots(there=met)


def _earlier(one: Origin | None, other: Origin | None) -> Origin | None:
    if one is None or other is None:
        return one or other
    return one if one.step <= other.step else other
