import io

from rich.console import Console

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
