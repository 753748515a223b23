"""What a run tells of itself while it goes on."""

from typing import Any

from mp_plugin.fallback.precision_map import PrecisionMap
from mp_plugin.layer_fallback import LayerFallback
from mp_plugin.layer_sampling import LayerSampler
from mp_plugin.modes import Mode
from mp_plugin.scaling.guard import StepGuard
from mp_plugin.scaling.scaler import LossScaler
from mp_plugin.scaling.step_plan import StepPlan
from mp_plugin.scaling.window import ScaleWindow
from mp_plugin.telemetry.census import Census
from mp_plugin.telemetry.events import Incident


class RunView:
    """The read-only side of `AdaptivePrecision`: what happened so far, for the price of an attribute."""

    mode: Mode
    guard: StepGuard
    layer_fallback: LayerFallback
    sampler: LayerSampler
    step_plan: StepPlan | None = None
    """How the newest optimizer step was made."""
    census: Census | None = None
    """What ran in which format when the layers in FP32 last changed; with a fallback or `Telemetry.census`."""
    precision_map: PrecisionMap | None = None
    """The format that each layer ran in then, and why."""

    @property
    def scaler(self) -> LossScaler | None:
        """The loss scaler of a 16-mixed run; None in every other precision."""
        return self.guard.scaler

    @property
    def loss_scale(self) -> float:
        """What the next loss is multiplied by; 1.0 without loss scaling. No sync."""
        return self.guard.loss_scale

    @property
    def effective_step(self) -> int:
        """Optimizer steps that changed a weight."""
        return self.guard.record.effective_step

    @property
    def skipped_steps(self) -> int:
        """Optimizer steps not taken because a gradient was not finite."""
        return self.guard.record.skipped_steps

    @property
    def retried_steps(self) -> int:
        """Optimizer steps taken with the gradients of a batch that was run again."""
        return self.guard.record.retried_steps

    @property
    def fp32_layers(self) -> list[str]:
        """Qualified names of the layers in FP32 beyond autocast's own rules, in the order of the model."""
        return list(self.layer_fallback.names)

    @property
    def scale_window(self) -> ScaleWindow | None:
        """The loss scales that fit all layers, as of the newest sample of the gradients; None without samples."""
        return self.layer_fallback.sampler.window

    @property
    def incidents(self) -> list[Incident]:
        """The newest incidents, newest last."""
        return list(self.guard.record.incidents)

    def summary(self) -> dict[str, Any]:
        """Return steps, skips, loss scale and incidents of this run as plain JSON values."""
        scale = self.loss_scale if self.scaler is not None else None
        summary = self.guard.record.summary(precision=self.mode.name, scale=scale)
        window = self.scale_window
        return {
            **summary,
            "gradients": None if self.step_plan is None else str(self.step_plan),
            "fp32_layers": {name: why for name, (why, _) in self.layer_fallback.reasons.items()},
            "scale_window": None if window is None else window.as_dict(),
            "telemetry": self.sampler.summary(),
        }
