"""Tell whoever watches a run from afar about its incidents."""

import logging

import lightning.pytorch as pl
from lightning.pytorch.loggers import WandbLogger

from mp_plugin.telemetry.advice import advice
from mp_plugin.telemetry.events import Incident

log = logging.getLogger(__name__)

LONGEST_TITLE = 63
"""W&B wants fewer than 64 characters."""


class Alerts:
    """Send incidents as alerts to Weights & Biases, where a trainer logs there.

    Repeats of one origin have one title, of which W&B sends no more than one alert a minute. Whatever goes wrong never
    stops a run: it is told once, and nothing more is sent.
    """

    def __init__(self) -> None:
        self._is_broken = False

    def send(self, trainer: "pl.Trainer", incident: Incident) -> None:
        """Send an incident through each `WandbLogger` of a trainer; on other ranks than the first that does nothing."""
        if self._is_broken:
            return
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                try:
                    logger.experiment.alert(title=_title(incident), text=_text(incident), level="WARN")
                except Exception as error:  # a run must not end because a tracker cannot be reached
                    self._is_broken = True
                    reason = f"{type(error).__name__}: {error}"
                    log.warning("W&B cannot be alerted (%s); no more incidents of this run are sent there.", reason)
                    return


def _title(incident: Incident) -> str:
    what = f"{incident.kind} gradients" if incident.operator is None else f"{incident.operator} made {incident.kind}"
    return f"{incident.cause.value}: {what}"[:LONGEST_TITLE]


def _text(incident: Incident) -> str:
    return "\n".join(filter(None, (str(incident), incident.reason, advice(incident))))
