"""Tell the world of an incident: a line on disk, a panel in the terminal, an alert."""

import logging
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl

from mp_plugin.alerts import Alerts
from mp_plugin.run_directory import run_directory
from mp_plugin.scaling.verdict import gather
from mp_plugin.telemetry.batches import BatchFolder
from mp_plugin.telemetry.events import Incident
from mp_plugin.telemetry.store import IncidentLog

if TYPE_CHECKING:
    from rich.console import Console

    from mp_plugin.precision import AdaptivePrecision

log = logging.getLogger(__name__)


class IncidentReporter:
    """Report each incident of a fit, once it is known how it ended; all ranks together, rank 0 writes.

    Every incident gets a line in `telemetry/incidents.jsonl`; one that was traced, be it in vain, a panel and an alert,
    and its batch in a file, if `Telemetry.keep_batches` says so. Nothing is written in a `fast_dev_run`.

    Args:
        trainer: that fits.
        plugin: whose incidents.
        run: the name of this session.
    """

    def __init__(self, trainer: "pl.Trainer", plugin: "AdaptivePrecision", *, run: str) -> None:
        self._trainer = trainer
        self._run = run
        self._plugin = plugin
        self._alerts = Alerts()
        self._is_located = self._is_mute = False
        self._log: IncidentLog | None = None
        self._batches: BatchFolder | None = None

    def __call__(self, incident: Incident) -> None:
        """Report an incident."""
        self._locate()
        is_traced = incident.traced or incident.evidence.get("untraced") == "not reproduced"
        extra = self._save_batch(incident) if is_traced else {}
        if not self._trainer.is_global_zero:
            return
        if self._log is not None:
            self._log.append(incident, **extra)
        if is_traced:
            self._print(incident)
            self._alerts.send(self._trainer, incident)

    def tell(self, event: dict[str, Any]) -> None:
        """Report that a layer was given back."""
        if self._trainer.is_global_zero:
            log.warning("Step %d: %s %s, and watched.", event["step"], ", ".join(event["layers"]), event["event"])
        self.write(event)

    def write(self, event: dict[str, Any]) -> None:
        """Write down what happened besides incidents."""
        self._locate()
        if self._trainer.is_global_zero and self._log is not None:
            self._log.append_event(event)

    def _print(self, incident: Incident) -> None:
        if self._is_mute:
            return
        try:
            from mp_plugin.telemetry.panel import incident_panel  # here, as a machine that only trains may lack rich

            console_of(self._trainer).print(incident_panel(incident))
        except Exception as error:  # a terminal that knows no such letters, or is gone, must not end a run
            self._is_mute = True
            reason = f"{type(error).__name__}: {error}"
            log.warning("Incidents cannot be shown here (%s); telemetry/incidents.jsonl has them.", reason)

    def _locate(self) -> None:
        if self._is_located:
            return
        self._is_located = True
        directory = run_directory(self._trainer, self._plugin.telemetry)
        if directory is None:
            return
        self._log = IncidentLog(directory, run=self._run)
        self._batches = BatchFolder(directory) if self._plugin.telemetry.keep_batches else None

    def _save_batch(self, incident: Incident) -> dict[str, str]:
        start = self._plugin.start
        if self._batches is None or start is None:
            return {}
        file = None
        start.restore_batches()  # a retry may have taken something out again
        batch = next((each for each in start.window if each.batch_idx == incident.batch_idx), None)
        if batch is not None and incident.rank == self._trainer.global_rank:
            file = self._batches.save(
                batch.batch,
                batch_idx=batch.batch_idx,
                step=incident.step,
                rank=incident.rank,
                random_state=batch.random_state,
                # As it was then: the scale may have been lowered since.
                plugin_state={**self._plugin.state_dict(), "scale": incident.loss_scale},
            )
        saved = next((each for each in gather(file) if each is not None), None)
        return {} if saved is None else {"batch_file": saved}


def console_of(trainer: "pl.Trainer") -> "Console":
    """Return the console to print to: that of a live display, if there is one, as two would overwrite each other.

    Raises:
        ImportError: where rich is not installed.
    """
    from rich.console import Console
    from rich.progress import Progress

    live = getattr(trainer.progress_bar_callback, "progress", None)
    return live.console if isinstance(live, Progress) else Console()
