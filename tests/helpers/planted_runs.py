"""Runs made by hand, of a few samples and incidents that a test wants to tell apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mp_plugin.telemetry.events import Action, Cause, Direction, Incident
from mp_plugin.telemetry.layer_sample import LayerSample, TensorKind
from mp_plugin.telemetry.run_info import RunInfo
from mp_plugin.telemetry.stats_files import rows_of
from mp_plugin.telemetry.store import Run
from mp_plugin.telemetry.tensor_stats import TensorStats

BEGAN, UPDATED = "2026-02-03T04:00:00.000+00:00", "2026-02-03T05:00:00.000+00:00"


def sample(layer: str, *, step: int = 0, kind: str = "activation", amax: float = 1.0, **changes: Any) -> LayerSample:
    """A sample of 100 values in fp16; `changes` are fields of it, or of its statistics."""
    own = {name: changes.pop(name) for name in ("dtype", "compute_dtype", "loss_scale") if name in changes}
    fields = {"dtype": "fp16", "compute_dtype": "fp16", "loss_scale": 1.0, **own}
    stats = TensorStats(**{"numel": 100, "amax": amax, **changes})
    return LayerSample(step=step, layer=layer, kind=TensorKind(kind), stats=stats, **fields)


def overflow(step: int, **changes: Any) -> Incident:
    """A traced overflow in the forward pass of net.head that cost its step."""
    fields: dict[str, Any] = {
        "step": step,
        "batch_idx": step,
        "kind": "inf",
        "parameters": ("net.head.weight",),
        "rank": 0,
        "loss_scale": 1024.0,
        "dtype": "fp16",
        "action": Action.skip,
        "cause": Cause.forward,
        "direction": Direction.forward,
        "layer": "net.head",
        "operator": "aten.addmm.default",
        "location": "model.py:57 in forward",
        "reason": "overflow: 70,000 is beyond the largest fp16 number, 65,504",
        "traced": True,
        "evidence": {"forward_finite_in_fp32": True},
    }
    return Incident(**{**fields, **changes})


def info(*, steps: int = 1900, skipped: int = 0, status: str = "finished", **summary: Any) -> RunInfo:
    """What a 16-mixed run says of itself."""
    return RunInfo(
        run=BEGAN,
        status=status,
        updated=UPDATED,
        precision="16-mixed",
        compute_dtype="fp16",
        summary={"steps": steps, "skipped_steps": skipped, **summary},
    )


def planted_run(samples: Sequence[LayerSample] = (), **fields: Any) -> Run:
    """A run of these samples; `fields` are those of `Run`."""
    return Run(**{"directory": Path("runs/7"), "samples": rows_of(samples, BEGAN), **fields})
