"""The smallest set of layers that cures a step when it runs in FP32: delta debugging over the layers of a model."""

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

CURED = "cured"
LIMIT_REACHED = "limit reached"
NO_CURE = "no set of layers cures it"

_NUM_NAMED = 8
"""Layers of a tried set that are named in the record; the first half of the layers of a model would fill pages."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One run of a step with a set of layers in FP32."""

    num_layers: int
    layers: tuple[str, ...]
    """The first few of them, in the order of the model."""
    outcome: str
    """`cured`, `not cured`, `finite`, or `next origin: <layer>` where the run was traced."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Isolation:
    """What was found out about which layers have to run in FP32."""

    layers: tuple[str, ...]
    """They cured the step, in the order of the model; empty if no set is known that does."""
    reruns: int
    """Runs of the step that it took."""
    is_minimal: bool
    """Whether none of them can be left out, and none that is not small replaced by layers below it."""
    why: str
    """`cured`, `limit reached`, or `no set of layers cures it`."""
    tried: tuple[Trial, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self)


def max_reruns(num_layers: int) -> int:
    """Return how many runs `isolate` needs at most to find one culprit, wherever it is.

    Example:
        >>> max_reruns(300)
        24
    """
    return 2 * _log2(num_layers) + 6


def isolate(
    cures: Callable[[frozenset[str]], bool],
    layers: Sequence[str],
    *,
    origin: str | None = None,
    next_origin: Callable[[frozenset[str]], str | None] | None = None,
    is_small: Callable[[str], bool] | None = None,
    limit: int,
) -> Isolation:
    """Find a minimal set of layers that cures a step which goes wrong without any.

    First the origin alone, which is mostly enough; then the origins that show one after the other, each with those
    before it in FP32; then a search over all layers, in which one culprit costs the logarithm of their number. Layers
    that hold others come last there, deepest first, so that one is chosen only for operators that it runs itself.
    Assumes that more layers in FP32 never make a step worse; where that does not hold, the set still cures the step,
    and still none of its layers can be left out.

    Args:
        cures: whether the step is finite with just these layers, and all below them, in FP32. What it raises is raised.
        layers: qualified names in the order of the model, those of layers that hold others as well.
        origin: the layer in which the non-finite numbers arose, if that is known.
        next_origin: the layer in which they arise with these layers in FP32; None if they do not, empty outside of all.
        is_small: whether a layer that holds others may be in FP32 as a whole if it is an origin: it is where the
            operator was seen. Without it, layers inside are tried in its place.
        limit: runs of the step, that is calls of `cures` and `next_origin`, never to be exceeded.

    Example:
        >>> isolate(lambda fp32: {"1", "4"} <= fp32, ["0", "1", "2", "3", "4"], limit=20).layers
        ('1', '4')
    """
    search = _Search(cures, layers, next_origin, is_small, limit)
    try:
        found = search.follow(origin) if origin in search.below else None
        found = search.everywhere() if found is None else found
    except _LimitReached:
        return search.result(search.smallest, why=CURED if search.smallest else LIMIT_REACHED)
    return search.result(found, why=CURED if found else NO_CURE, is_minimal=found is not None)


class _LimitReached(Exception):
    pass


class _Search:
    def __init__(
        self,
        cures: Callable[[frozenset[str]], bool],
        layers: Sequence[str],
        next_origin: Callable[[frozenset[str]], str | None] | None,
        is_small: Callable[[str], bool] | None,
        limit: int,
    ) -> None:
        self._cures, self._next_origin, self._limit = cures, next_origin, limit
        self._place = {name: place for place, name in enumerate(dict.fromkeys(layers))}
        self._above = {name: [above for above in _above(name) if above in self._place] for name in self._place}
        below: dict[str, set[str]] = {name: {name} for name in self._place}
        for name, all_above in self._above.items():
            for above in all_above:
                below[above].add(name)
        self.below = {name: frozenset(names) for name, names in below.items()}
        """What runs in FP32 if a layer does: itself, and all below it."""
        self._is_small = is_small or (lambda name: len(below[name]) == 1)
        self._outcomes: dict[frozenset[str], bool] = {frozenset(): False}
        self._trials: list[Trial] = []
        self.smallest: frozenset[str] | None = None
        """Of the sets that are known to cure the step, the one that covers the fewest layers."""

    def result(self, found: frozenset[str] | None, *, why: str, is_minimal: bool = False) -> Isolation:
        return Isolation(
            layers=tuple(self._in_order(found or ())),
            reruns=len(self._trials),
            is_minimal=is_minimal,
            why=why,
            tried=tuple(self._trials),
        )

    def follow(self, origin: str | None) -> frozenset[str] | None:
        """Put into FP32 one origin after the other, as they show; None if that leads nowhere."""
        grown: list[str] = []
        # What is left of the bound is enough for the search over all layers.
        num_runs = _log2(len(self.below)) + 3
        while origin in self.below and origin not in self._covered(grown):
            grown.append(origin)
            if self._try(grown):
                # What was in FP32 before comes first: that this alone does not cure the step is known.
                parts = [[each] if self._is_small(each) else self._inside_out(self.below[each]) for each in grown]
                candidates = list(chain.from_iterable(parts))
                return self._minimal(list(dict.fromkeys(candidates)))
            if self._next_origin is None or len(self._trials) + 2 > num_runs:
                break
            origin = self._trace(grown, self._next_origin)
        return None

    def everywhere(self) -> frozenset[str] | None:
        """Search all layers; None if the step goes wrong with all of them in FP32."""
        return self._minimal(self._inside_out(self.below)) if self._try(self.below) else None

    def _minimal(self, candidates: list[str]) -> frozenset[str]:
        """Choose from candidates that cure the step together; layers come after all that are below them."""
        chosen: list[str] = []
        # The last of the shortest part of the candidates that is enough is indispensable: without it, and with all
        # others that are left, the step goes wrong. So it is chosen, and what was behind it is not needed.
        while not self._try(chosen):
            needed = self._num_needed(candidates, chosen)
            chosen.append(candidates[needed - 1])
            covered = self._covered(chosen)
            candidates = [name for name in candidates[: needed - 1] if name not in covered]
        return self._without_dispensable(frozenset(chosen))

    def _num_needed(self, candidates: list[str], chosen: list[str]) -> int:
        """Return how many of the candidates, from the first on, cure the step together with what is chosen."""
        too_few, enough = 0, len(candidates)
        if len(self.below[candidates[-1]]) > 1:
            # Mostly a layer that holds others was an origin by what it runs itself.
            too_few, enough = self._narrowed(candidates, chosen, too_few, enough, at=enough - 1)
        while enough - too_few > 1:
            too_few, enough = self._narrowed(candidates, chosen, too_few, enough, at=(too_few + enough) // 2)
        return enough

    def _narrowed(
        self, candidates: list[str], chosen: list[str], too_few: int, enough: int, *, at: int
    ) -> tuple[int, int]:
        tried = [*candidates[:at], *chosen]
        is_enough = at > too_few and not self._must_fail(tried) and self._try(tried)
        return (too_few, at) if is_enough else (max(at, too_few), enough)

    def _without_dispensable(self, chosen: frozenset[str]) -> frozenset[str]:
        """Leave out what can be left out: nothing, if more layers in FP32 never make a step worse."""
        for name in self._in_order(chosen):
            if self._try(chosen - {name}):
                return self._without_dispensable(chosen - {name})
        return chosen

    def _try(self, names: Collection[str]) -> bool:
        covered = self._covered(names)
        if covered not in self._outcomes:
            outermost = self._count_run(names)
            cured = self._outcomes[covered] = bool(self._cures(outermost))
            self._record(outermost, CURED if cured else f"not {CURED}")
        if self._outcomes[covered] and (self.smallest is None or len(covered) < len(self._covered(self.smallest))):
            self.smallest = self._outermost(names)
        return self._outcomes[covered]

    def _trace(self, names: Collection[str], next_origin: Callable[[frozenset[str]], str | None]) -> str | None:
        outermost = self._count_run(names)
        origin = next_origin(outermost)
        self._record(outermost, "finite" if origin is None else f"next origin: {origin}")
        return origin

    def _count_run(self, names: Collection[str]) -> frozenset[str]:
        if len(self._trials) >= self._limit:
            raise _LimitReached
        return self._outermost(names)

    def _record(self, names: frozenset[str], outcome: str) -> None:
        named = tuple(self._in_order(names)[:_NUM_NAMED])
        self._trials.append(Trial(num_layers=len(names), layers=named, outcome=outcome))

    def _must_fail(self, names: Collection[str]) -> bool:
        covered = self._covered(names)
        return any(covered <= tried for tried, cured in self._outcomes.items() if not cured)

    def _covered(self, names: Iterable[str]) -> frozenset[str]:
        return frozenset().union(*(self.below[name] for name in names))

    def _outermost(self, names: Collection[str]) -> frozenset[str]:
        chosen = frozenset(names)
        return frozenset(name for name in chosen if chosen.isdisjoint(self._above[name]))

    def _in_order(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=self._place.__getitem__)

    def _inside_out(self, names: Iterable[str]) -> list[str]:
        """Sort layers that hold no others before those that do, and of these the deepest first."""
        return sorted(
            self._in_order(names), key=lambda name: -name.count(".") if len(self.below[name]) > 1 else -math.inf
        )


def _above(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:number]) for number in range(1, len(parts))]


def _log2(number: int) -> int:
    return max(number - 1, 0).bit_length()
