from mp_plugin.report.page_advice import page_advice
from mp_plugin.telemetry.advise import JUDGED, advise
from mp_plugin.telemetry.store import open_run
from tests.helpers.planted_runs import planted_run
from tests.helpers.recorded_runs import record_run


def test_the_page_lists_what_the_advisor_says(tmp_path):
    run = open_run(record_run(tmp_path))
    found, advice = page_advice(run), advise(run)
    assert found.advice == advice
    assert [(row.layer, row.direction, row.cheapest) for row in found.rows] == [
        (each.layer, each.direction.value, each.cheapest) for each in advice.layers
    ]
    for row, layer in zip(found.rows, advice.layers, strict=True):
        assert [fits for fits, _ in row.verdicts] == [layer.formats[name].fits for name in JUDGED]
    assert [direction for direction, _ in found.strips] == ["forward", "backward"]
    assert all(len(formats) == 6 for _, formats in found.strips)


def test_without_histograms_the_page_says_why_there_is_no_advice():
    assert "no samples" in page_advice(planted_run()).missing
