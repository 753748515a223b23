"""An incident in the terminal, to be read in five seconds."""

from collections.abc import Iterator

from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mp_plugin.telemetry.advice import advice
from mp_plugin.telemetry.events import Action, Cause, Incident

WIDEST_TEXT = 96
"""Characters of a line: longer ones are hard to read, however wide the terminal is."""

LISTED_PARAMETERS = 3

MEANING = {
    Cause.data: "the batch itself is not finite",
    Cause.weights: "weights were not finite before the step",
    Cause.forward: "the forward pass made it from finite numbers",
    Cause.loss: "only the loss times its scale overflows",
    Cause.backward: "the forward pass is finite, the backward pass is not",
    Cause.unknown: "not found out",
}


def incident_panel(incident: Incident) -> Panel:
    """Lay out an incident as a rich panel: what, where, why, what was done, and what to do.

    Example:
        >>> from rich.console import Console
        >>> incident = Incident(step=5, batch_idx=2, kind="inf", parameters=("weight",), rank=0, loss_scale=1024.0,
        ...     dtype="fp16", action=Action.retry, cause=Cause.loss, layer="", operator="aten.mul.Tensor",
        ...     location="train.py:12 in training_step", amax_in=1024.0, traced=True, cured=True)
        >>> Console(width=80).print(incident_panel(incident))
        ╭─ Incident at step 5, batch 2: loss ──────────────────────────────────────────╮
        │ what   aten.mul.Tensor made inf in fp16 (largest input 1,024)                │
        │ where  train.py:12 in training_step                                          │
        │ why    only the loss times its scale overflows                               │
        │ done   loss scale lowered from 1,024, batch run again, finite this time      │
        │ to do  Nothing: the loss scale was lowered. If it recurs, set a lower        │
        │        LossScaling.max_scale.                                                │
        ╰──────────────────────────────────────────────────────────────────────────────╯
    """
    rows = Table.grid(padding=(0, 2, 0, 0))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(max_width=WIDEST_TEXT, overflow="fold")
    for label, lines in (
        ("what", _what(incident)),
        ("where", _where(incident)),
        ("why", _why(incident)),
        ("done", [_done(incident)]),
        ("to do", [advice(incident)]),
    ):
        # As text, not as markup: names of users may hold brackets.
        rows.add_row(label, Text("\n".join(lines)))
    title = Text(f"Incident at step {incident.step:,}, batch {incident.batch_idx:,}: {incident.cause.value}")
    style = "red" if incident.action is Action.raise_ else "yellow"
    return Panel(rows, title=title, title_align="left", border_style=style, expand=False)


def _what(incident: Incident) -> Iterator[str]:
    if incident.operator is None:
        names = incident.parameters[:LISTED_PARAMETERS]
        more = len(incident.parameters) - len(names)
        yield f"{incident.kind} gradients in {', '.join(names)}{f' and {more:,} more' if more else ''}"
    elif incident.cause in (Cause.data, Cause.weights):
        yield f"{incident.operator} was the first to meet {incident.kind}"
    else:
        inputs = "" if incident.amax_in is None else f" (largest input {incident.amax_in:,.6g})"
        yield f"{incident.operator} made {incident.kind} in {incident.dtype}{inputs}"


def _where(incident: Incident) -> Iterator[str]:
    rank = f" on rank {incident.rank}" if incident.rank else ""
    if incident.operator is None:
        yield f"not traced{rank}"
        return
    of_layer = f" of {incident.layer}" if incident.layer else ""
    if incident.direction is not None:
        yield f"{incident.direction.value} pass{of_layer}{rank}"
    if incident.location:
        yield incident.location
    if "ran_at" in incident.evidence:
        yield f"called back at {incident.evidence['ran_at']}"


def _why(incident: Incident) -> Iterator[str]:
    yield incident.reason or MEANING[incident.cause]
    if incident.evidence.get("forward_finite_in_fp32"):
        yield "the same batch is finite in fp32"
    if incident.evidence.get("backward_finite_at_lower_scale"):
        yield "the same batch is finite at the lowest loss scale"
    elif incident.evidence.get("backward_finite_at_lower_scale") is False:
        yield "the same batch is not finite at the lowest loss scale either"
    yield from _swallowed(incident)


def _swallowed(incident: Incident) -> Iterator[str]:
    found = incident.evidence.get("swallowed")
    if found is not None:
        places = ", ".join(each for each in (found["layer"], found["location"]) if each)
        yield f"before it {found['operator']} made inf in {places or 'the forward pass'}, which the loss does not show"


def _done(incident: Incident) -> str:
    lowered = f"loss scale lowered from {incident.loss_scale:,.15g}"
    outcome = ", finite this time" if incident.cured else ", still not finite"
    until = "from now on" if incident.evidence.get("proof", {}).get("stays") else "for this batch"
    return {
        Action.backoff: f"step skipped, {lowered}",
        Action.retry: f"{lowered}, batch run again{outcome}",
        Action.fallback: f"{', '.join(incident.culprits)} in fp32 {until}, batch run again{outcome}",
        Action.skip: "step skipped",
        Action.zeroed: "gradients of the second closure call of the step zeroed",
        Action.raise_: "run stopped",
    }[incident.action]
