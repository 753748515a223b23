"""Runs side by side, from their files to the verdicts."""

import json
import math

import pytest

from mp_plugin.compare import compare_runs, precisions_below
from mp_plugin.compare.as_json import comparison_json
from mp_plugin.compare.statistics import Line, Method
from mp_plugin.compare.verdict import Kind
from mp_plugin.errors import ConfigError, TelemetryError
from mp_plugin.report.verdict import Severity
from tests.helpers.compared_runs import (
    EQUIVALENT,
    FP32,
    MEMORY,
    STEP_MS,
    UNCLEAR,
    WORSE,
    write_cost,
    write_json,
    write_run,
    write_sweep,
)


def by_label(comparison):
    return {each.group.label: each for each in comparison.groups}


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path / "sweep", {"bf16": EQUIVALENT, "fp32": FP32, "fp16": WORSE})


def test_the_verdicts(sweep):
    found = by_label(compare_runs([sweep]))
    assert list(found) == ["fp32", "bf16", "fp16"]
    assert [each.verdict.kind for each in found.values()] == [Kind.reference, Kind.equivalent, Kind.worse]
    assert found["bf16"].verdict.sentence == (
        "bf16: equivalent to fp32 within 0.5 points (p < 0.001); 2.9× faster; 0.54× memory"
    )
    assert "fp16: worse than fp32 by 2 points (95% CI " in found["fp16"].verdict.sentence
    assert "more than the margin of 0.5 points; 2.0× faster; 0.60× memory" in found["fp16"].verdict.sentence
    assert found["bf16"].results[0].difference.method is Method.paired


def test_seeds_pair_the_runs_whatever_their_order(tmp_path):
    for seed, acc in enumerate(FP32):
        write_run(tmp_path / f"a{seed}", "fp32", seed, acc)
        write_run(tmp_path / f"b{9 - seed}", "bf16", seed, acc + 0.001 * (seed % 2))
    (_, candidate) = compare_runs([tmp_path]).groups
    differences = [0.0, 0.001, 0.0, 0.001, 0.0]
    assert candidate.results[0].difference.mean == pytest.approx(sum(differences) / 5)
    # Unpaired the seeds' own spread of 0.4 points would hide it.
    assert candidate.results[0].difference.high - candidate.results[0].difference.low < 0.0015


def test_too_few_seeds_are_said(tmp_path):
    write_sweep(tmp_path / "one", {"fp32": [0.9], "bf16": [0.903]})
    (_, candidate) = compare_runs([tmp_path]).groups
    assert candidate.verdict.kind is Kind.untested
    assert "0.3 points better than fp32 in one pair of seeds; a test needs 2 seeds or more" in (
        candidate.verdict.sentence
    )
    assert compare_runs([tmp_path], fail_if_worse=0.01).exit_status == 0


@pytest.mark.parametrize(
    ("accuracies", "status", "stands"),
    [(EQUIVALENT, 0, Line.holds), (WORSE, 3, Line.worse), (UNCLEAR, 4, Line.not_shown), (WORSE[:1], 3, Line.worse)],
)
def test_the_line(tmp_path, accuracies, status, stands):
    write_sweep(tmp_path / "sweep", {"fp32": FP32[: len(accuracies)], "bf16": accuracies})
    comparison = compare_runs([tmp_path], fail_if_worse=0.01)
    assert comparison.exit_status == status
    assert comparison.groups[1].line is stands
    assert compare_runs([tmp_path]).exit_status == 0


def test_a_crashed_run_holds_no_line_and_is_left_out(sweep):
    write_run(sweep / "crashed", "bf16", 9, status="failed")
    comparison = compare_runs([sweep], fail_if_worse=0.05)
    candidate = by_label(comparison)["bf16"]
    assert candidate.line is Line.not_shown
    assert "not shown to hold the line of 5 points below fp32, as 1 of 6 did not finish" in candidate.verdict.sentence
    assert len(candidate.results[0].values) == 5
    assert "bf16: 1 of 6 runs did not finish and is left out." in comparison.notes


def test_a_run_that_ended_in_nan_is_no_average(tmp_path):
    write_sweep(tmp_path / "sweep", {"fp32": FP32, "fp16": EQUIVALENT})
    write_run(tmp_path / "diverged", "fp16", 7, metrics={"test/loss": math.nan})
    comparison = compare_runs([tmp_path], metric="test/loss", fail_if_worse=0.5)
    assert comparison.groups[1].verdict.kind is Kind.broken
    assert "test/loss of fp16 is not finite in 1 of 6 runs" in comparison.groups[1].verdict.sentence
    assert comparison.exit_status == 3


@pytest.mark.parametrize("different", [{"task": "LanguageModel"}, {"fingerprint": "sha256:bb"}])
def test_runs_of_different_tasks_or_data_are_refused_by_name(tmp_path, different):
    write_run(tmp_path / "ours")
    write_run(tmp_path / "theirs", "bf16", **different)
    with pytest.raises(ConfigError, match=r"ours .* but .*theirs of .*accepted: runs of one task on the same data"):
        compare_runs([tmp_path])


def test_what_else_differs_is_named(tmp_path):
    write_run(tmp_path / "0", "fp32")
    write_run(tmp_path / "1", "bf16", config={"model": {"width": 128}})
    (note,) = compare_runs([tmp_path]).notes
    assert note == "The runs differ in more than precision and seed: model.width (64, 128)."


def test_settings_of_one_choice_are_told_apart(tmp_path):
    write_run(tmp_path / "0", "fp32")
    auto = {"settings": {"fallback": {"auto": True}}, "choices": {"precision/fallback@precision.fallback": "auto"}}
    none = {"settings": {"fallback": {"auto": False}}, "choices": {"precision/fallback@precision.fallback": "none"}}
    write_run(tmp_path / "1", "fp16", **auto)
    write_run(tmp_path / "2", "fp16", **none)
    write_run(tmp_path / "3", "bf16", settings={"scaling": {"init_scale": 1}})
    write_run(tmp_path / "4", "bf16", settings={"scaling": {"init_scale": 2}})
    assert precisions_below(tmp_path) == [
        "fp32",
        "fp16 fallback=auto",
        "fp16 fallback=none",
        "bf16 scaling.init_scale=1",
        "bf16 scaling.init_scale=2",
    ]


@pytest.mark.parametrize(
    ("settings", "choices"),
    [
        (
            {"telemetry": {"every_n_steps": 10, "directory": "elsewhere"}},
            {"precision/telemetry@precision.telemetry": "full"},
        ),
        ({"device": "cpu"}, {}),
        ({"exact": True}, {}),
    ],
)
def test_settings_that_do_not_change_the_arithmetic_make_no_group(tmp_path, settings, choices):
    write_run(tmp_path / "0", "fp32", 0)
    write_run(tmp_path / "1", "fp32", 1, settings=settings, choices=choices)
    auto = {"fallback": {"auto": True}}
    write_run(tmp_path / "2", "bf16", 0, settings=auto)
    write_run(tmp_path / "3", "bf16", 1, settings={**settings, "fallback": {"auto": False}}, choices=choices)
    assert precisions_below(tmp_path) == ["fp32", "bf16 fallback.auto=true", "bf16 fallback.auto=false"]


def test_the_only_pair_of_seeds_is_told_where_there_is_no_test(tmp_path):
    write_run(tmp_path / "0", "fp32", 0, 0.75)
    write_run(tmp_path / "1", "fp32", 1, 0.25)
    write_run(tmp_path / "2", "bf16", 0, 0.625)
    difference = compare_runs([tmp_path]).groups[1].results[0].difference
    assert (difference.mean, difference.method, difference.count) == (-0.125, Method.point, 1)


def test_the_reference_is_what_ran_in_fp32_whatever_its_choice_is_called(tmp_path):
    write_run(tmp_path / "0", "fp32", settings={"precision": "bf16-mixed"})
    write_run(tmp_path / "1", "fp32")
    assert precisions_below(tmp_path)[0] == "fp32 precision=32-true"


def test_differences_without_a_spread_are_untested(tmp_path):
    write_sweep(tmp_path / "sweep", {"fp32": (0.75, 0.875), "bf16": (0.75, 0.875), "fp16": (0.5, 0.625)})
    comparison = compare_runs([tmp_path])
    _, same, worse = comparison.groups
    assert any("all differences from fp32 are the same, so that there is no test" in each for each in comparison.notes)
    assert (same.p, same.verdict.kind) == (None, Kind.same)
    assert same.verdict.sentence.startswith("bf16: the same test/acc as fp32 in every run, so that there is nothing")
    assert same.verdict.severity is Severity.good
    assert (worse.p, worse.verdict.kind) == (None, Kind.untested)
    assert "25 points worse than fp32, untested; a test needs" in worse.verdict.sentence
    # The line is drawn all the same, by the difference itself.
    assert [group.line for group in compare_runs([tmp_path], fail_if_worse=0.1).groups] == [
        None,
        Line.holds,
        Line.worse,
    ]


def test_a_finished_run_without_the_metric_holds_no_line(tmp_path):
    for precision in ("fp32", "bf16"):
        for seed in range(4):
            extra = {} if (precision, seed) == ("bf16", 3) else {"test/f1": 0.5 + 0.01 * seed}
            write_run(tmp_path / f"{precision}{seed}", precision, seed, metrics=extra)
    comparison = compare_runs([tmp_path], metric="test/f1", fail_if_worse=0.01)
    assert comparison.groups[1].line is Line.not_shown
    assert comparison.exit_status == 4


def test_a_metric_that_some_runs_lack_is_not_passed_over_in_silence(sweep):
    card = next(sweep.rglob("metrics.json"))
    left = json.loads(card.read_text(encoding="utf-8"))
    del left["metrics"]["test/acc"]
    card.write_text(json.dumps(left), encoding="utf-8")
    comparison = compare_runs([sweep])
    assert comparison.metric.name == "test/loss"
    assert comparison.notes[0] == "Judged by test/loss, which all runs have; some lack test/acc."
    # In whose unit would a line be?
    with pytest.raises(ConfigError, match="Some runs lack test/acc, and a margin or line would be one of test/loss"):
        compare_runs([sweep], fail_if_worse=0.5)
    assert compare_runs([sweep], fail_if_worse=0.5, metric="test/loss").exit_status == 0
    assert "Judged by" not in " ".join(compare_runs([sweep], metric="test/loss").notes)


def test_without_fp32_the_first_group_is_the_reference_and_that_is_said(tmp_path):
    write_sweep(tmp_path / "sweep", {"fp16": FP32, "bf16": EQUIVALENT})
    comparison = compare_runs([tmp_path])
    assert comparison.reference == "fp16"
    assert comparison.notes[0].startswith("There is no finished run in FP32: fp16 is the reference")
    assert compare_runs([tmp_path], reference="bf16").reference == "bf16"
    with pytest.raises(ConfigError, match="no group fp64 to be the reference; accepted: fp16, bf16"):
        compare_runs([tmp_path], reference="fp64")


def test_runs_without_common_seeds_are_not_paired(tmp_path):
    for seed, acc in enumerate(FP32):
        write_run(tmp_path / f"a{seed}", "fp32", seed, acc)
        write_run(tmp_path / f"b{seed}", "bf16", 10 + seed, acc)
    comparison = compare_runs([tmp_path])
    assert comparison.groups[1].results[0].difference.method is Method.welch
    assert "an unpaired test" in comparison.notes[0]


def test_cost_is_a_multiple_of_the_reference(sweep):
    found = by_label(compare_runs([sweep], price_per_hour=2.0))
    cost = found["bf16"].cost
    assert cost.speed.middle == pytest.approx(STEP_MS["fp32"] / STEP_MS["bf16"])
    assert cost.memory.middle == pytest.approx(MEMORY["bf16"] / MEMORY["fp32"])
    assert cost.money == pytest.approx(0.2)
    assert (cost.energy, cost.energy_joules) == (None, None)
    assert cost.energy_source == "not measured: no RAPL here"


@pytest.mark.parametrize("label", ["process, resident", "process, resident, after other fits"])
def test_memory_that_holds_what_other_runs_left_is_not_divided(tmp_path, label):
    for place, (precision, seed) in enumerate([("fp32", 0), ("fp32", 1), ("bf16", 0), ("bf16", 1)]):
        first = "process, resident, after other fits" if place or label != "process, resident" else label
        write_run(tmp_path / str(place), precision, seed, 0.9 + 0.01 * seed, cost={"peak_memory_of": first})
    comparison = compare_runs([tmp_path])
    assert [group.cost.memory for group in comparison.groups] == [None, None]
    assert "memory" not in comparison.groups[1].verdict.sentence
    assert any("had trained other runs before" in note for note in comparison.notes)


def test_money_is_that_of_all_ranks_and_energy_is_never_guessed(tmp_path):
    measured = {"energy_joules": 500.0, "energy_source": "nvml", "ranks": 4, "train_seconds": 1800.0}
    write_sweep(tmp_path / "sweep", {"fp32": FP32[:2], "bf16": FP32[:2]}, cost=measured)
    for number, joules in ((2, 250.0), (3, 200.0)):
        write_cost(tmp_path / "sweep" / str(number), "bf16", **{**measured, "energy_joules": joules})
    found = by_label(compare_runs([tmp_path], price_per_hour=3.0))
    assert found["bf16"].cost.money == pytest.approx(0.5 * 4 * 3.0)
    assert found["bf16"].cost.energy.middle == pytest.approx(0.45)
    write_cost(tmp_path / "sweep" / "3", "bf16")
    assert by_label(compare_runs([tmp_path]))["bf16"].cost.energy_joules is None


def test_incidents_skipped_steps_and_islands_are_counted(tmp_path):
    write_run(tmp_path / "0", "fp32")
    write_run(tmp_path / "1", "fp16", 0, incidents=3, skipped=2, islands=["head"])
    write_run(tmp_path / "2", "fp16", 1, incidents=1, skipped=1, islands=["head", "norm"])
    found = by_label(compare_runs([tmp_path]))["fp16"]
    assert (found.incidents, found.skipped_steps, found.steps) == (4, 3, 200)
    assert found.islands == ("head", "norm")


def test_predictions_tell_calibration_and_agreement(tmp_path):
    label, confidence = [0, 1, 2, 3], [0.75] * 4
    wrong = {"fp32": [0, 1, 2, 0], "bf16": [0, 1, 0, 0]}
    for number, (precision, seed) in enumerate([("fp32", 0), ("fp32", 1), ("bf16", 0), ("bf16", 1)]):
        columns = {"label": label, "prediction": wrong[precision], "confidence": confidence}
        write_run(tmp_path / str(number), precision, seed, predictions=columns)
    found = by_label(compare_runs([tmp_path]))
    assert found["bf16"].likeness.mean == 0.75
    assert found["fp32"].likeness.mean == 1.0
    calibration = {label: each.results[-1].mean for label, each in found.items()}
    assert calibration == pytest.approx({"fp32": 0.0, "bf16": 0.25})


def test_damaged_files_are_named_and_the_rest_goes_on(sweep):
    (sweep / "0" / "telemetry" / "cost.json").write_text("{")
    (sweep / "1" / "metrics.json").write_text("[]")
    (sweep / "2" / "test_predictions.parquet").write_text("no parquet")
    (sweep / "3" / "telemetry" / "incidents.jsonl").write_text("torn\n")
    (sweep / "4" / "run.json").write_text('{"version": 9}')
    comparison = compare_runs([sweep])
    named = {path.relative_to(sweep).as_posix() for path, _ in comparison.damaged}
    assert named == {
        "0/telemetry/cost.json",
        "1/metrics.json",
        "2/test_predictions.parquet",
        "3/telemetry/incidents.jsonl",
        "4/run.json",
    }
    assert {run.status for run in comparison.runs if not run.is_finished} == {"left no metrics"}
    assert "fp16" in by_label(comparison)


def test_foreign_runs_have_a_csv_and_what_the_plugin_wrote(tmp_path):
    from dataclasses import replace

    from tests.helpers.planted_runs import info

    for name, precision, acc in (("a", "32-true", 0.9), ("b", "16-mixed", 0.8)):
        folder = tmp_path / "lightning_logs" / name
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"epoch,step,train_loss,test_acc\n0,1,2.0,\n0,2,1.5,\n1,2,,{acc}\n")
        replace(info(), precision=precision).save(folder)
    comparison = compare_runs([tmp_path])
    assert [each.group.label for each in comparison.groups] == ["32-true", "16-mixed"]
    assert comparison.metric.name == "test_acc"
    assert comparison.groups[1].results[0].difference.mean == pytest.approx(-0.1)


def test_a_run_without_a_partner_may_have_another_result(tmp_path):
    write_sweep(tmp_path / "s", {"fp32": (0.75, 0.875), "bf16": (0.75, 0.875, 0.1)})
    comparison = compare_runs([tmp_path])
    assert comparison.groups[1].verdict.kind is Kind.untested
    assert any("that of 2 pairs of seeds; 1 run without a partner" in note for note in comparison.notes)


def test_settings_that_hydra_left_unresolved_do_not_join_what_the_plugin_tells_apart(tmp_path):
    from dataclasses import replace

    from tests.helpers.planted_runs import info

    for place, precision in enumerate(("32-true", "bf16-mixed") * 2):
        folder = tmp_path / str(place)
        (folder / ".hydra").mkdir(parents=True)
        settings = f"seed: {place // 2}\nname: {precision}\ntrainer:\n  precision: ${{name}}\n"
        (folder / ".hydra" / "config.yaml").write_text(settings)
        (folder / "metrics.csv").write_text(f"epoch,step,test_acc\n0,1,{0.9 + 0.01 * place}\n")
        replace(info(), precision=precision).save(folder)
    comparison = compare_runs([tmp_path])
    assert [each.group.label for each in comparison.groups] == ["32-true", "bf16-mixed"]
    assert comparison.groups[1].results[0].difference.count == 2


def test_a_share_may_be_rounded_above_1(tmp_path):
    write_sweep(tmp_path / "s", {"fp32": (1.0000001192, 0.99), "bf16": (0.995, 0.99)})
    assert compare_runs([tmp_path]).metric.is_share


def test_an_accuracy_in_percent_is_no_share(tmp_path):
    write_sweep(tmp_path / "s", {"fp32": (90.0, 91.0, 92.0), "bf16": (90.1, 90.9, 92.2)})
    comparison = compare_runs([tmp_path])
    assert not comparison.metric.is_share
    assert comparison.margin == pytest.approx(0.91)  # 1% of the mean
    assert comparison.groups[1].verdict.sentence.startswith("bf16: equivalent to fp32 within 0.91 (p = ")


def test_the_json_is_whole(sweep):
    values = json.loads(comparison_json(compare_runs([sweep], fail_if_worse=0.01)))
    assert values["exit_status"] == 3
    bf16 = values["groups"][1]
    assert (bf16["precision"], bf16["verdict"], bf16["line"]) == ("bf16", "equivalent", "holds")
    assert bf16["metrics"]["test/acc"]["difference"]["method"] == "paired by seed"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"margin": -1.0}, "margin=-1.0 is not accepted"),
        ({"margin": 0.0}, "no finite number of runs shows equality"),
        ({"fail_if_worse": math.nan}, "fail_if_worse=nan is not accepted"),
        ({"metric": "test/f2"}, "No run has the metric test/f2; accepted: one of test/acc, test/loss"),
    ],
)
def test_settings_are_checked(sweep, settings, message):
    with pytest.raises(ConfigError, match=message):
        compare_runs([sweep], **settings)


def test_an_unknown_metric_needs_a_direction(tmp_path):
    write_sweep(tmp_path / "s", {"fp32": FP32, "bf16": WORSE}, metrics={"test/zeal": 1.0})
    with pytest.raises(ConfigError, match="accepted: --higher-is-better or --lower-is-better"):
        compare_runs([tmp_path], metric="test/zeal")
    assert compare_runs([tmp_path], metric="test/zeal", higher_is_better=False).metric.higher_is_better is False


def test_places_without_runs_are_refused(tmp_path):
    with pytest.raises(TelemetryError, match="holds no run"):
        compare_runs([tmp_path])
    with pytest.raises(TelemetryError, match="does not exist"):
        compare_runs([tmp_path / "nowhere"])
    write_run(tmp_path / "0", status="running")
    with pytest.raises(ConfigError, match=r"None of the runs finished: .*0 \(running\)"):
        compare_runs([tmp_path])


def test_one_precision_is_no_comparison(tmp_path):
    write_sweep(tmp_path / "s", {"bf16": FP32})
    assert "there is nothing to compare it with" in " ".join(compare_runs([tmp_path]).notes)
    with pytest.raises(ConfigError, match="there is no line to hold"):
        compare_runs([tmp_path], fail_if_worse=0.01)


def test_each_run_counts_once_and_names_may_be_hostile(tmp_path):
    sweep = write_sweep(tmp_path / "s", {"fp32": FP32, "bf16": FP32})
    assert len(compare_runs([sweep, sweep / "0"]).runs) == 10
    values = json.loads((sweep / "0" / "metrics.json").read_text())
    write_json(sweep / "0" / "metrics.json", {**values, "metrics": {**values["metrics"], "\x1b[31m</script>": 1}})
    assert compare_runs([sweep]).groups
