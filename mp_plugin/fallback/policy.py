"""When a proved layer moves to FP32, when it is given back, and when it stays: pure functions from state to state."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mp_plugin.checks import is_count
from mp_plugin.config import Fallback
from mp_plugin.errors import CheckpointError

MOST_FAILURES = 2
"""Probations a layer may fail: after that it stays in FP32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Demoted:
    """A layer that was moved to FP32."""

    why: str
    """What was proved, in words."""
    since_step: int
    """Optimizer steps tried before it was."""
    clean_steps: int = 0
    """Optimizer steps taken since."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FallbackState:
    """All that the policy remembers; layers by their qualified names."""

    demoted: Mapping[str, Demoted] = field(default_factory=dict)
    """Layers in FP32 by proof."""
    watched: Mapping[str, int] = field(default_factory=dict)
    """Layers that were given back, and the optimizer steps taken since."""
    failures: Mapping[str, int] = field(default_factory=dict)
    """How often a layer had to go back to FP32 while it was watched."""
    cured: Mapping[tuple[str, ...], int] = field(default_factory=dict)
    """Incidents that each set of layers has cured."""

    def as_dict(self) -> dict[str, Any]:
        """Return the state as plain types, for a checkpoint."""
        return {
            "demoted": {name: asdict(each) for name, each in self.demoted.items()},
            "watched": dict(self.watched),
            "failures": dict(self.failures),
            "cured": [[list(names), count] for names, count in self.cured.items()],
        }

    @classmethod
    def from_dict(cls, values: Any) -> "FallbackState":
        """Rebuild a state from what `as_dict` returned.

        Raises:
            CheckpointError: for anything else.
        """
        try:
            demoted = {_name(name): _demoted(each) for name, each in values["demoted"].items()}
            watched = {_name(name): _count(steps) for name, steps in values["watched"].items()}
            failures = {_name(name): _count(times) for name, times in values["failures"].items()}
            cured = {tuple(map(_name, names)): _count(count) for names, count in values["cured"]}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            accepted = "a dict of demoted, watched, failures and cured"
            raise CheckpointError(
                f"The precision state has fallback={values!r}; accepted: {accepted} ({error!r})."
            ) from None
        return cls(demoted=demoted, watched=watched, failures=failures, cured=cured)


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """How many of a model's parameter-bearing layers lie in some set of layers."""

    layers: int
    """In the set, the parameter-bearing layers inside of its members included."""
    total: int
    """In the model."""


def is_within(share: Share, *, members: int, max_fraction: float) -> bool:
    """Whether a set of layers may be moved to FP32, all that are there already included.

    A share is rounded down to whole layers, but a single member may always move, unless `max_fraction` is 0 or it holds
    more than half of the model: in a small one a single layer is a large share.

    Example:
        >>> is_within(Share(layers=3, total=10), members=3, max_fraction=0.2)
        False
        >>> is_within(Share(layers=1, total=3), members=1, max_fraction=0.2)
        True
    """
    # The share of a product of floats: 0.29 * 100 is 28.999999999999996.
    if share.layers <= max_fraction * share.total + 1e-9:
        return True
    return max_fraction > 0 and members == 1 and 2 * share.layers <= max(share.total, 2)


def after_proof(
    state: FallbackState, culprits: tuple[str, ...], *, why: str, step: int, config: Fallback
) -> tuple[FallbackState, bool]:
    """Return the state after a batch was cured by layers in FP32, and whether they stay there.

    Args:
        state: before.
        culprits: layers that cured the batch, beside those that are in FP32 already.
        why: what was proved.
        step: optimizer steps tried before this one.
        config: `patience` counts the incidents that one set has to cure.
    """
    count = state.cured.get(culprits, 0) + 1
    # A layer on probation has been proved before.
    failed = [name for name in culprits if name in state.watched]
    state = replace(state, cured={**state.cured, culprits: count})
    if count < config.patience and not failed:
        return state, False
    failures = {**state.failures, **{name: state.failures.get(name, 0) + 1 for name in failed}}
    watched = {name: steps for name, steps in state.watched.items() if name not in culprits}
    demoted = {**state.demoted, **{name: Demoted(why=why, since_step=step) for name in culprits}}
    return replace(state, demoted=demoted, watched=watched, failures=failures), True


def after_step(state: FallbackState, config: Fallback) -> tuple[FallbackState, tuple[str, ...]]:
    """Return the state after an optimizer step that was taken, and the layers that are given back now."""
    if not state.demoted and not state.watched:
        return state, ()
    watched = {name: steps + 1 for name, steps in state.watched.items()}
    watched = {name: steps for name, steps in watched.items() if steps < config.probation_steps}
    demoted = {name: replace(each, clean_steps=each.clean_steps + 1) for name, each in state.demoted.items()}
    given_back = tuple(
        name
        for name, each in demoted.items()
        if each.clean_steps >= config.probation_steps and state.failures.get(name, 0) < MOST_FAILURES
    )
    kept = {name: each for name, each in demoted.items() if name not in given_back}
    return replace(state, demoted=kept, watched={**watched, **dict.fromkeys(given_back, 0)}), given_back


def _name(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"a layer's name is {value!r}")
    return value


def _count(value: object) -> int:
    if not isinstance(value, int) or not is_count(value):
        raise ValueError(f"a count is {value!r}")
    return value


def _demoted(values: Any) -> Demoted:
    clean_steps = _count(values["clean_steps"])
    return Demoted(why=_name(values["why"]), since_step=_count(values["since_step"]), clean_steps=clean_steps)
