"""From all operators that met non-finite numbers to the one that made them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mp_plugin.numerics.finiteness import FINITE, Kind, Kinds
from mp_plugin.telemetry.events import Direction


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Non-finite numbers of one kind in an input of an operator."""

    maker: int | None
    """Which traced step wrote them; None for a tensor that was there before."""
    storage: int
    """Identity of its memory."""
    kind: Kind
    into: Kind
    """What became of them in the operator's output."""

    @property
    def has_nan(self) -> bool:
        """Whether they are NaN."""
        return self.kind is Kind.nan

    @property
    def is_mask(self) -> bool:
        """Whether they are -Inf, of which attention masks are made."""
        return self.kind is Kind.negative_inf


@dataclass(kw_only=True, slots=True)
class Step:
    """An operator whose output is not finite."""

    operator: str
    direction: Direction
    layer: str
    location: str | None
    kinds: Kinds
    """What its output holds."""
    made: Kinds = FINITE
    """What of it came from finite numbers, at least in part."""
    ran_at: str | None = None
    """Line of user code inside the backward pass, such as that of a custom autograd Function."""
    sources: tuple[Source, ...] = ()
    writes: tuple[int, ...] = ()
    """Identities of the memory where its non-finite numbers are."""
    is_given: bool = False
    """Whether it writes a mask: an Inf that is a constant among its arguments."""
    is_collective: bool = False
    """Whether it brings numbers of other ranks, so that nothing was made here."""
    takes_masks: bool = False
    """Whether an Inf can go through it and still be a mask."""
    call: Any = field(default=None, repr=False)
    """What is needed to look at the call again; None where that is not kept."""

    @property
    def makes_nan(self) -> bool:
        """Whether its output holds a NaN."""
        return Kind.nan in self.kinds

    @property
    def is_maker(self) -> bool:
        """Whether it made NaN where there was none, or Inf from finite numbers."""
        if self.is_collective:
            return False
        return bool(self.made) or (self.makes_nan and not any(source.has_nan for source in self.sources))


@dataclass(frozen=True, slots=True)
class Origin:
    """Where non-finite numbers came from: a step that made them, or met them first."""

    step: int
    source: Source | None = None
    """For numbers that were there before: the input in which they were met."""


@dataclass(frozen=True, slots=True)
class _Roots:
    """Earliest origins of each sort that lead to numbers of one kind in a tensor."""

    serious: Origin | None = None
    """An operator that made them from finite numbers, or a tensor that was not finite before."""
    given: Origin | None = None
    """A mask, written here or there before: harmless until a whole row is masked."""

    def or_(self, other: "_Roots") -> "_Roots":
        return _Roots(_earlier(self.serious, other.serious), _earlier(self.given, other.given))


_RootsOfKinds = Mapping[Kind, _Roots]


def find_origin(steps: Sequence[Step], sinks: Iterable[Source]) -> Origin | None:
    """Walk back from what must not be non-finite to the earliest operator or tensor that is to blame.

    A NaN comes from a NaN input if there is one. Else it was made: from an Inf that an earlier operator made, or that
    was there before, which is then to blame; from finite numbers, or from an Inf that somebody meant, the -Inf of an
    attention mask for one, in which case the operator itself is. An Inf comes from an Inf input if there is one. What
    becomes finite again on the way, 1/Inf or a masked-out logarithm of zero, leads nowhere and blames nobody.

    Args:
        steps: in the order in which they ran.
        sinks: the non-finite numbers of a loss or of gradients.

    Returns:
        The origin; None if none of the sinks leads to one on this rank.

    Example:
        >>> common = dict(direction=Direction.forward, layer="", location=None, kinds=frozenset({Kind.inf}))
        >>> overflow = Step(operator="aten.mm.default", made=frozenset({Kind.inf}), **common)
        >>> inf = dict(storage=7, kind=Kind.inf, into=Kind.inf)
        >>> victim = Step(operator="aten.add.Tensor", sources=(Source(maker=0, **inf),), **common)
        >>> find_origin([overflow, victim], sinks=[Source(maker=1, **inf)])
        Origin(step=0, source=None)
    """
    known: list[_RootsOfKinds] = []
    for place, step in enumerate(steps):
        known.append({} if step.is_collective else {kind: _roots(place, step, kind, known) for kind in step.kinds})
    found = _Roots()
    for sink in sinks:
        if sink.maker is not None:
            found = found.or_(_made_by(sink, known))
    return found.serious or found.given


def _roots(place: int, step: Step, kind: Kind, known: Sequence[_RootsOfKinds]) -> _Roots:
    found = _Roots()
    if kind in step.made:
        found = _Roots(given=Origin(place)) if step.is_given else _Roots(serious=Origin(place))
    sources = [source for source in step.sources if source.into is kind]
    if kind is not Kind.nan:
        before = _merge(place, sources, known)
        # What was added up or multiplied with others masks nothing any more.
        return found.or_(before if step.takes_masks else _Roots(_earlier(before.serious, before.given)))
    found = found.or_(_merge(place, (source for source in sources if source.has_nan), known))
    before = _merge(place, (source for source in sources if source.kind is Kind.inf), known)
    if before.serious is None:  # -Inf masks more often than it is a mistake
        before = before.or_(_merge(place, (source for source in sources if source.is_mask), known))
    if before.serious is None and before.given is not None:
        # A mask is no accident, but a row that is masked as a whole is one, of the operator that meets it.
        return found.or_(_Roots(Origin(place, None if step.takes_masks else before.given.source)))
    return found.or_(_Roots(before.serious))


def _merge(place: int, sources: Iterable[Source], known: Sequence[_RootsOfKinds]) -> _Roots:
    merged = _Roots()
    for source in sources:
        if source.maker is not None:
            merged = merged.or_(_made_by(source, known))
        else:
            met = Origin(place, source)
            merged = merged.or_(_Roots(given=met) if source.is_mask else _Roots(serious=met))
    return merged


def _made_by(source: Source, known: Sequence[_RootsOfKinds]) -> _Roots:
    assert source.maker is not None
    roots = known[source.maker]
    if source.kind in roots:
        return roots[source.kind]
    merged = _Roots()
    for each in roots.values():
        merged = merged.or_(each)
    return merged


def _earlier(one: Origin | None, other: Origin | None) -> Origin | None:
    if one is None or other is None:
        return one or other
    return one if one.step <= other.step else other
