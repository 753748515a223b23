"""The plugin's part of a checkpoint, and its exchange with Lightning's own plugins."""

from typing import Any

from mp_plugin.errors import CheckpointError
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.telemetry.record import RunRecord

STATE_VERSION = 1

OFFERED_KEYS = ("MixedPrecision", "FSDPPrecision")
"""Where Lightning's own plugins look for their scaler: written too, so that a user can go back."""

STOCK_KEYS = (*OFFERED_KEYS, "native_amp_scaling_state")
"""Where stock Lightning of any version keeps a scaler's state."""

_OUR_OWN = ("version", "precision", "record")
_SCALER_STATE_OF_STOCK = ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker")


def pack(precision: str, scaler: LossScaler | None, record: RunRecord) -> dict[str, Any]:
    """Return the plugin's state as plain types; its scaler part is one that `torch.amp.GradScaler` loads."""
    scaler_state = scaler.state_dict() if scaler is not None else {}
    return {**scaler_state, "version": STATE_VERSION, "precision": precision, "record": record.state_dict()}


def unpack(state: dict[str, Any], scaler: LossScaler | None) -> RunRecord:
    """Load the scaler's state, if there is one on both sides, and return the counters.

    A checkpoint of another precision is welcome: it has no scale to give, or nobody takes it.

    Raises:
        CheckpointError: when the state is damaged or newer than this release; nothing is loaded then.
    """
    if not isinstance(state, dict):
        raise CheckpointError(f"The precision state is {state!r}; accepted: a dict.")
    version = state.get("version")
    if version != STATE_VERSION:
        raise CheckpointError(f"The precision state has version={version!r}; accepted: {STATE_VERSION}.")
    if not isinstance(state.get("record"), dict):
        raise CheckpointError(f"The precision state has record={state.get('record')!r}; accepted: a dict of counters.")
    record = RunRecord.from_state_dict(state["record"])
    if scaler is not None and state.get("precision") == "16-mixed":
        scaler.load_state_dict({key: value for key, value in state.items() if key not in _OUR_OWN})
    return record


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
        # A stock bf16-mixed run leaves an empty state.
        if checkpoint.get(key):
            state = checkpoint[key]
            if isinstance(state, dict):
                # A scaler derived from torch's may have left more.
                state = {name: state[name] for name in _SCALER_STATE_OF_STOCK if name in state}
            scaler.load_state_dict(state)
            return
