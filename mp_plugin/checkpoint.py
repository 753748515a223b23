"""The plugin's part of a checkpoint, and its exchange with Lightning's own plugins."""

import math
from typing import Any, NamedTuple

from mp_plugin.checks import is_count, is_number
from mp_plugin.errors import CheckpointError, ConfigError
from mp_plugin.fallback.policy import FallbackState
from mp_plugin.fallback.precision_map import PrecisionMap
from mp_plugin.modes import MODES
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.telemetry.record import RunRecord

STATE_VERSION = 1

OFFERED_KEYS = ("MixedPrecision", "FSDPPrecision")
"""Where Lightning's own plugins look for their scaler: written too, so that a user can go back."""

STOCK_KEYS = (*OFFERED_KEYS, "native_amp_scaling_state")
"""Where stock Lightning of any version keeps a scaler's state."""

_OUR_OWN = ("version", "precision", "record", "fallback", "precision_map")
_SCALER_STATE_OF_STOCK = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")
_SETTINGS = ("growth_factor", "backoff_factor", "growth_interval")


class Unpacked(NamedTuple):
    """What a checkpoint tells besides the loss scale."""

    record: RunRecord
    fallback: FallbackState
    """Layers in FP32 by proof."""
    precision_map: PrecisionMap | None
    """What each layer ran in, if somebody has looked."""


def pack(
    precision: str,
    scaler_state: dict[str, Any],
    record: RunRecord,
    fallback: FallbackState | None = None,
    precision_map: PrecisionMap | None = None,
) -> dict[str, Any]:
    """Return the plugin's state as plain types; its scaler part is one that `torch.amp.GradScaler` loads."""
    own = {"version": STATE_VERSION, "precision": precision, "record": record.state_dict()}
    observed = {} if precision_map is None else {"precision_map": precision_map.as_dict()}
    return {**scaler_state, **own, "fallback": (fallback or FallbackState()).as_dict(), **observed}


def unpack(state: dict[str, Any], scaler: LossScaler | None) -> Unpacked:
    """Load the scaler's state, if there is one on both sides, and return the rest.

    A checkpoint of another precision is welcome: it has no scale to give, or nobody takes it. Damage is refused all the
    same.

    Raises:
        CheckpointError: when the state is damaged or newer than this release; nothing is loaded then.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"The precision state is {state!r}; accepted: a dict.")
    version = state.get("version")
    # A boolean equals 1, and a tensor compares to another tensor.
    if not is_count(version) or version != STATE_VERSION:
        raise CheckpointError(f"The precision state has version={version!r}; accepted: {STATE_VERSION}.")
    precision = state.get("precision")
    if not isinstance(precision, str) or precision not in MODES:
        raise CheckpointError(f"The precision state has precision={precision!r}; accepted: {', '.join(MODES)}.")
    receiver = scaler if scaler is not None else LossScaler()  # one that only looks
    known = {*_OUR_OWN, *receiver.state_dict()}
    if unknown := [key for key in state if key not in known]:
        raise CheckpointError(f"The precision state has unknown {unknown!r}; accepted: {sorted(known)}.")
    if not isinstance(state.get("record"), dict):
        raise CheckpointError(f"The precision state has record={state.get('record')!r}; accepted: a dict of counters.")
    record = RunRecord.from_state_dict(state["record"])
    # Checkpoints of earlier releases have none.
    fallback = FallbackState.from_dict(state["fallback"]) if "fallback" in state else FallbackState()
    observed = _precision_map(state["precision_map"]) if "precision_map" in state else None
    if MODES[precision].scales_loss:
        _load_scaler({key: value for key, value in state.items() if key not in _OUR_OWN}, receiver)
    return Unpacked(record, fallback, observed)


def offer_to_stock(checkpoint: dict[str, Any], scaler: LossScaler | None) -> None:
    """Leave the scaler's state where stock plugins would look for it."""
    if scaler is not None:
        state = scaler.state_dict()
        for key in OFFERED_KEYS:
            checkpoint[key] = {name: state[name] for name in _SCALER_STATE_OF_STOCK}


def adopt_stock(checkpoint: dict[str, Any], scaler: LossScaler | None) -> None:
    """Load the scaler's state that a stock plugin left in a checkpoint, if there is one.

    Raises:
        CheckpointError: when that state is damaged.
    """
    if scaler is None:
        return
    for key in STOCK_KEYS:
        state = checkpoint.get(key)
        # A stock bf16-mixed run leaves an empty state.
        if state is not None and state != {}:
            if isinstance(state, dict):
                # A scaler derived from torch's may have left more.
                state = {name: state[name] for name in _SCALER_STATE_OF_STOCK if name in state}
            _load_scaler(state, scaler)
            return


def _precision_map(values: Any) -> PrecisionMap:
    try:
        return PrecisionMap.from_dict(values)
    except ConfigError as error:
        raise CheckpointError(f"The precision state has precision_map={values!r}; {error}") from None


def _load_scaler(state: Any, scaler: LossScaler) -> None:
    """Load a scaler's state whose settings, which nobody takes, are numbers too."""
    if isinstance(state, dict):
        for key in _SETTINGS:
            if key in state and not is_number(state[key], lowest=-math.inf):
                raise CheckpointError(f"The loss scaler state has {key}={state[key]!r}; accepted: a finite number.")
    scaler.load_state_dict(state)
