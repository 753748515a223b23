"""Sweeps: search spaces, the command lines of trials, what counts, and a small study from start to end."""

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

optuna = pytest.importorskip("optuna")
pytest.importorskip("plotly")

from optuna.trial import TrialState, create_trial  # noqa: E402
from rich.console import Console  # noqa: E402

from {{cookiecutter.package_name}}.sweep import ledger, worker  # noqa: E402
from {{cookiecutter.package_name}}.sweep.best import experiment_of  # noqa: E402
from {{cookiecutter.package_name}}.sweep.check import check_composes  # noqa: E402
from {{cookiecutter.package_name}}.sweep.command import as_override, settings_of  # noqa: E402
from {{cookiecutter.package_name}}.sweep.page import make_page  # noqa: E402
from {{cookiecutter.package_name}}.sweep.results import as_table  # noqa: E402
from {{cookiecutter.package_name}}.sweep.space import read_space  # noqa: E402
from {{cookiecutter.package_name}}.sweep.study import (  # noqa: E402
    PRUNERS,
    SAMPLERS,
    check_identity,
    make_identity,
    make_pruner,
    make_sampler,
    open_study,
    quieten,
)

LR = {"type": "float", "low": 1e-4, "high": 1e-2, "log": True}
TRAIN = {
    "digits": ["experiment=digits", "model.width=16"],
    "lm": ["experiment=lm", "model.width=16", "model.num_layers=1", "data.block_size=16"],
}
EXPERIMENT = "digits" if (Path(__file__).parents[1] / "conf/experiment/digits.yaml").exists() else "lm"
QUICK = ["trainer.max_epochs=2", "+trainer.limit_train_batches=2", "+trainer.limit_val_batches=1"]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    """Hide what Optuna says about parts of it that are experimental."""
    quieten()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"type": "flaot", "low": 0, "high": 1}, "type=flaot of model.lr is unknown"),
        ({"low": 0, "high": 1}, "type=None of model.lr is unknown"),
        ({"type": "float", "low": 1, "high": 0}, "space: model.lr: "),
        ({"type": "float", "low": 0, "high": 1, "log": True}, "space: model.lr: "),
        ({"type": "float", "low": "a", "high": 1}, "low=a of model.lr is not a number"),
        ({"type": "int", "low": 1.5, "high": 3}, "low=1.5 of model.lr is not an integer"),
        ({"type": "int", "low": 1}, "high=None of model.lr is not an integer"),
        ({"type": "float", "low": 0, "high": 1, "size": 2}, "model.lr has no size"),
        ({"type": "float", "low": 0, "high": 1, "log": "yes"}, "log=yes of model.lr"),
        ({"choices": []}, "choices=.. of model.lr is no list"),
        ({"choices": ["a", "a"]}, "choice a of model.lr is given twice"),
        ({"choices": [["a"]]}, "of model.lr is no plain value"),
        ({"choices": ["a"], "low": 1}, "model.lr has choices, so low"),
        (0.1, "model.lr=0.1 is no range"),
    ],
)
def test_bad_range_is_refused(spec: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_space({"model.lr": spec})


def test_empty_space_is_refused() -> None:
    with pytest.raises(ValueError, match="space is empty"):
        read_space({})


@pytest.mark.parametrize(
    "value",
    [None, True, 3, 1e-05, 0.1 + 0.2, "bf16", "", "it's", 'a"b', "a,b=c [d]", "back\\slash", "\\'", "end\\", "1"],
)
def test_values_survive_the_command_line(value: Any) -> None:
    read = OverridesParser.create().parse_override(as_override("key", value)).value()
    assert getattr(read, "text", read) == value
    assert type(getattr(read, "text", read)) is type(value)


def test_space_is_checked_against_the_config() -> None:
    train = TRAIN[EXPERIMENT]
    good = {"model.lr": LR, "precision": {"choices": ["bf16", "fp16"]}, "precision/fallback": {"choices": ["none"]}}
    # A loss scale exists with fp16 alone: the trials find that out one by one.
    scaled = {**good, "precision.scaling.init_scale": {"choices": [1.0, 2.0]}}
    check_composes(train, read_space(scaled), "val/loss")
    for extra, words in [
        ({"modle.lr": LR}, "modle.lr is not a setting of this project"),
        ({"precision": {"choices": ["bf16", "fp17"]}}, "precision=fp17 is unknown; accepted: bf16"),
        ({"model.width": {"choices": [1, 2]}}, "model.width is given twice"),
    ]:
        with pytest.raises(ValueError, match=words):
            check_composes(train, read_space({**good, **extra}), "val/loss")
    with pytest.raises(ValueError, match="hydra.run.dir=x cannot be set"):
        check_composes(["hydra.run.dir=x"], read_space(good), "val/loss")


def test_best_is_the_same_as_its_overrides(tmp_path: Path) -> None:
    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    train = [*TRAIN[EXPERIMENT], "+trainer.limit_val_batches=1", "~callbacks.progress_bar"]
    params: dict[str, Any] = {"model.lr": 1e-05, "precision": "fp16", "precision/scaling": "static"}
    params["precision.scaling.init_scale"] = 8.0
    groups = {key: bool(hydra.config_loader.get_group_options(key)) for key in params}
    assert groups["precision/scaling"]
    text, left = experiment_of(train, params, groups)
    assert left == ["~callbacks.progress_bar"]
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "best.yaml").write_text(text, encoding="utf-8")
    paths = ["paths.run_dir=here"]
    wanted = compose("train", [*settings_of(train, params), *paths])
    found = compose("train", [f"hydra.searchpath=['file://{tmp_path}']", "experiment=best", *left, *paths])
    assert OmegaConf.to_container(found) == OmegaConf.to_container(wanted)
    assert found.precision.scaling.init_scale == 8.0


def values_of(study: "optuna.Study") -> list[dict[str, Any]]:
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_depend_on_seed_and_number_alone(name: str) -> None:
    space = read_space({"model.lr": LR, "precision": {"choices": ["bf16", "fp16"]}})

    def draw(seed: int) -> list[dict[str, Any]]:
        study = optuna.create_study(study_name="s")
        for number in range(12):
            # A new sampler each time, as when the sweep is killed and started again.
            study.sampler = make_sampler(name, {}, seed, number)
            trial = study.ask(space)
            study.tell(trial, math.log(trial.params["model.lr"]) ** 2)
        return values_of(study)

    first = draw(0)
    assert draw(0) == first
    assert draw(1) != first
    assert len({params["model.lr"] for params in first[:8]}) == 8
    assert {params["precision"] for params in first} == {"bf16", "fp16"}


def test_options_reach_optuna_or_are_refused() -> None:
    assert make_sampler("tpe", {"n_startup_trials": 3}, 0, 0)._n_startup_trials == 3  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="sampler_options: colour is not an option of TPESampler"):
        make_sampler("tpe", {"colour": 1}, 0, 0)
    with pytest.raises(ValueError, match="pruner_options: PercentilePruner: .*percentile"):
        make_pruner("percentile", {})
    for name in PRUNERS:
        make_pruner(name, {"percentile": 50.0} if name == "percentile" else {})


def test_changed_study_is_refused(tmp_path: Path) -> None:
    space = read_space({"model.lr": LR})
    identity = make_identity(space, ["seed=1"], "val/loss", "minimize")
    study = open_study(tmp_path, "s", None, 1, "minimize", make_pruner("none", {}))
    check_identity(study, identity)
    # Nothing has been measured yet, so the metric may still be put right.
    check_identity(study, {**identity, "metric": "val/acc"})
    check_identity(study, identity)
    study.tell(study.ask(space), 1.0)
    check_identity(study, identity)
    wider = read_space({"model.lr": {**LR, "high": 0.1}, "model.width": {"choices": [1]}})
    for other, words in [
        ({**identity, "metric": "val/acc"}, "metric=val/loss, and now metric=val/acc"),
        ({**identity, "train": []}, r"train=\['seed=1'\], and now train=\[\]"),
        ({**identity, "direction": "maximize"}, "direction=minimize, and now direction=maximize"),
        (make_identity(wider, ["seed=1"], "val/loss", "minimize"), "space.model.lr=.*0.01.*, and now .*0.1"),
        ({**identity, **make_identity({"model.width": wider["model.width"]}, [], "", "")}, "metric="),
    ]:
        with pytest.raises(ValueError, match=words):
            check_identity(study, other)


def test_lost_trials_are_run_again_but_not_for_ever(tmp_path: Path) -> None:
    space = read_space({"model.lr": LR})
    study = open_study(tmp_path, "s", None, 1, "minimize", make_pruner("none", {}))
    for attempt in range(1, ledger.MOST_ATTEMPTS + 1):
        trial = study.ask(space)  # and its worker is killed before it shows a sign of life
        assert trial.user_attrs.get(ledger.ATTEMPT, 1) == attempt
        ledger.recover(study)
        ledger.recover(study)
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * ledger.MOST_ATTEMPTS
    assert len({params["model.lr"] for params in values_of(study)}) == 1
    assert [trial.number for trial in ledger.finished(study.trials)] == [ledger.MOST_ATTEMPTS - 1]
    assert ledger.fault(study.trials[0]) == "lost: its sweep was killed"

    failed = study.ask(space)
    failed.set_user_attr(ledger.ERROR, "model.lr is too high")
    study.tell(failed, state=TrialState.FAIL)
    ledger.recover(study)
    assert len(study.trials) == ledger.MOST_ATTEMPTS + 1, "a trial that failed by itself is not run again"


def test_gpus_are_those_that_the_worker_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert worker.visible_gpus() == ["2", "5"]


def test_best_value_is_finite() -> None:
    assert ledger.best_value([2.0, math.nan, 1.0, math.inf], "minimize") == 1.0
    assert ledger.best_value([2.0, math.nan, 1.0, -math.inf], "maximize") == 2.0
    assert ledger.best_value([math.nan], "minimize") is None


def test_page_needs_no_network() -> None:
    study = optuna.create_study(study_name="<b>")
    assert "No trial has reported" in make_page(study, "val/loss")
    space = read_space({"model.lr": LR, "model.width": {"choices": [1, 2]}})
    for number in range(12):
        trial = study.ask(space)
        trial.report(number, 1)
        study.tell(trial, trial.params["model.lr"] * 100 + trial.params["model.width"])
    page = make_page(study, "val/loss")
    for title in ("came to", "over validations", "side by side", "Each setting", "mattered"):
        assert title in page
    assert "Sweep &lt;b&gt;" in page
    assert "<script src" not in page
    assert "<link" not in page


BAD = {
    "name=a/b": "name=a/b is no name of a folder",
    "direction=down": "direction=down is unknown; accepted: minimize, maximize",
    "sampler=annealing": "sampler=annealing is unknown; accepted: tpe, random, qmc, gp",
    "pruner=axe": "pruner=axe is unknown",
    "n_trials=0": "n_trials=0 is out of range",
    "n_jobs=1.5": "n_jobs=1.5 is not a whole number",
    "timeout_minutes=-1": "timeout_minutes=-1 is out of range",
    "space.modle={type: float, low: 1, high: 2}": "modle",
    "storage=nosuch://x": "storage=nosuch://x cannot be opened as a study",
    "search=nowhere": "search=nowhere is unknown",
}


@pytest.mark.parametrize("override", BAD)
def test_setting_is_refused_before_any_trial(run_script: Callable[..., Any], tmp_path: Path, override: str) -> None:
    sentence = refusal(run_script, override)
    assert BAD[override] in sentence
    assert "\n" not in sentence
    assert not list(tmp_path.rglob("trials"))


def refusal(run_script: Callable[..., Any], *overrides: str) -> str:
    with pytest.raises(SystemExit) as caught:
        run_script("sweep.py", *overrides)
    assert isinstance(caught.value.code, str)
    return caught.value.code


def test_missing_package_names_the_extra(run_script: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("{{cookiecutter.package_name}}.sweep")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert 'pip install -e ".[sweep]"' in refusal(run_script)


def test_small_study(run_script: Callable[..., Any], tmp_path: Path) -> None:
    settings = [*TRAIN[EXPERIMENT], *QUICK, "logger=csv", "~callbacks.progress_bar"]
    train = "train=[" + ",".join(f'"{setting}"' for setting in settings) + "]"
    (tmp_path / "conf" / "search").mkdir(parents=True)
    # A learning rate of zero is refused by the model, so by a trial.
    search = {"space": {"model.lr": {"choices": [0.0, 0.01]}, "precision": {"choices": ["fp32", "bf16"]}}}
    text = "# @package _global_\n" + OmegaConf.to_yaml(OmegaConf.create({"train": [], **search}))
    (tmp_path / "conf" / "search" / "tiny.yaml").write_text(text, encoding="utf-8")
    command = ["search=tiny", "name=s", "n_jobs=2", "n_trials=2", "sampler=random", "seed=3", train]
    command.append(f"--config-dir={tmp_path / 'conf'}")
    run_script("sweep.py", *command)

    folder = tmp_path / "outputs" / "sweep" / "s"
    with open(folder / "results.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["trial"] for row in rows] == ["0", "1"]
    for row in rows:
        run = folder / "trials" / f"{int(row['trial']):04d}"
        report = json.loads((run / "trial.json").read_text())
        assert report["state"] == row["state"]
        assert str(report["params"]["model.lr"]) == row["model.lr"]
        if row["model.lr"] == "0.0":
            assert row["state"] == "FAIL"
            assert row["error"] == "model: lr=0.0 is out of range: it must be greater than 0."
        else:
            assert row["state"] == "COMPLETE"
            with open(run / "csv" / "metrics.csv", newline="", encoding="utf-8") as stream:
                logged = [float(line["val/loss"]) for line in csv.DictReader(stream) if line["val/loss"]]
            assert float(row["value"]) == pytest.approx(min(logged), rel=1e-6)
            assert list(report["values"]) == ["1", "2"]
    # All that was asked for is there, so nothing more is run.
    run_script("sweep.py", *command)
    assert len(list((folder / "trials").iterdir())) == 2
    other = refusal(run_script, "metric=val/acc", *command)
    assert "metric=val/loss, and now metric=val/acc" in other


def test_table_keeps_numbers_whole_in_80_columns() -> None:
    settings = {"model.lr": 0.003534, "model.dropout": 0.03798, "model.width": 256, "precision": "fp32"}
    row = {"trial": 0, "state": "COMPLETE", "value": 0.6585, **settings, "seconds": 21.93}
    console = Console(width=80)
    with console.capture() as printed:
        console.print(as_table([create_trial(value=0.6585)], [row], "val/loss", "minimize"))
    values = ["0", "COMPLETE", "0.6585", "0.003534", "0.03798", "256", "fp32", "21.93"]
    assert values in [line.split() for line in printed.get().splitlines()]
