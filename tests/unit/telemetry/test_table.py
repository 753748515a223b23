import io

from rich.console import Console

from mp_plugin.telemetry.events import Cause
from mp_plugin.telemetry.record import RunRecord
from mp_plugin.telemetry.table import summary_table
from tests.unit.telemetry.test_events import incident


def rendered(record: RunRecord, scale: float | None) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(summary_table(record.summary(precision="16-mixed", scale=scale)))
    return console.export_text()


def test_shows_steps_scale_and_the_worst_parameters() -> None:
    record = RunRecord()
    for _ in range(1234):
        record.took_step(2.0**15)
    record.add(incident(parameters=tuple(f"layer{i}" for i in range(7))))
    record.skipped_step(2.0**16)
    text = rendered(record, 2.0**15)
    for expected in (
        "16-mixed",
        "1,235",
        "1,234",
        "32,768 (min 32,768, max 65,536)",
        "layer4",
        "and 2 more parameters",
    ):
        assert expected in text
    assert "layer5" not in text


def test_a_parameter_name_is_text_and_not_markup() -> None:
    record = RunRecord()
    record.add(incident(parameters=("[red]x[/red]",)))
    assert "[red]x[/red]" in rendered(record, 1.0)


def test_no_scale_no_row() -> None:
    assert "loss scale" not in rendered(RunRecord(), None)


def test_a_line_that_would_stand_for_one_parameter_names_it() -> None:
    record = RunRecord()
    record.add(incident(parameters=tuple(f"layer{i}" for i in range(6))))
    text = rendered(record, 1.0)
    assert "layer5" in text
    assert "more parameters" not in text


def explained(*untraced: str, origins: int = 0) -> RunRecord:
    record = RunRecord()
    for number in range(origins):
        for _ in range(number + 1):
            record.add(incident(operator=f"aten.op{number}", layer="[net]", cause=Cause.forward, traced=True))
    for why in untraced:
        record.add(incident(cause=Cause.backward, evidence={"untraced": why} if why else {}))
    return record


def test_shows_causes_and_the_most_frequent_origins() -> None:
    lines = [" ".join(line.strip("│").split()) for line in rendered(explained("budget", origins=4), 1.0).splitlines()]
    assert "by cause │ forward 10, backward 1" in lines
    assert [line for line in lines if line.startswith("origin")] == [
        "origin of 4 │ aten.op3 in [net]: forward",
        "origin of 3 │ aten.op2 in [net]: forward",
        "origin of 2 │ aten.op1 in [net]: forward",
    ]


def test_says_what_was_not_traced_and_why() -> None:
    def traced(*untraced: str) -> str:
        return " ".join(rendered(explained(*untraced, origins=2), 1.0).replace("│", "").split())

    assert "traced 3 of 6: 2 of a known origin, 1 beyond max_traced" in traced("repeat", "repeat", "budget")
    assert "traced 3 of 5: 2 beyond max_traced" in traced("off", "budget")
    assert "traced 3 of 5: 1 in steps that cannot be run again, 1 that could not be traced" in traced("no closure", "")
    assert "traced 3 of 4: 1 finite when run again" in traced("not reproduced")
    assert "traced" not in traced()


def test_without_incidents_there_is_one_row() -> None:
    text = rendered(RunRecord(), 1.0)
    assert "by cause" not in text
    assert "traced" not in text
