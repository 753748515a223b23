"""Every combination of options generates the right files, and every file is well formed."""

import ast
import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LICENSES = ("MIT", "Apache-2.0", "BSD-3-Clause", "Proprietary")
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
CI_AND_DOCKER = tuple(product(("github", "none"), (False, True)))

COMMON_FILES = """
.gitignore
.pre-commit-config.yaml
LICENSE
Makefile
README.md
conf/callbacks/cost.yaml
conf/callbacks/default.yaml
conf/callbacks/early_stopping.yaml
conf/callbacks/ema.yaml
conf/callbacks/progress.yaml
conf/callbacks/step_checkpoints.yaml
conf/callbacks/test_predictions.yaml
conf/data/as_trained.yaml
conf/debug/default.yaml
conf/debug/fast.yaml
conf/debug/overfit.yaml
conf/eval.yaml
conf/hydra/default.yaml
conf/logger/csv.yaml
conf/logger/mlflow.yaml
conf/logger/tensorboard.yaml
conf/logger/wandb.yaml
conf/model/as_trained.yaml
conf/paths/default.yaml
conf/precision/as_trained.yaml
conf/predict.yaml
conf/sweep.yaml
conf/train.yaml
conf/trainer/ddp.yaml
conf/trainer/default.yaml
conf/trainer/fsdp.yaml
conf/trainer/fsdp2.yaml
conf/trainer/slurm.yaml
docs/cluster.md
docs/data.md
docs/model.md
docs/precision.md
docs/run.md
docs/sweeps.md
eval.py
predict.py
pyproject.toml
src/PKG/__init__.py
src/PKG/ablate.py
src/PKG/baselines/__init__.py
src/PKG/baselines/majority.py
src/PKG/batch_seed.py
src/PKG/checkpoint.py
src/PKG/checkpoint_io.py
src/PKG/checks.py
src/PKG/clean_runs.py
src/PKG/compare_at_end.py
src/PKG/csv_logger.py
src/PKG/data/__init__.py
src/PKG/data/base.py
src/PKG/data/class_splits.py
src/PKG/data/epoch_draws.py
src/PKG/data/epoch_shuffle.py
src/PKG/data/fingerprint.py
src/PKG/data/hf_dataset.py
src/PKG/data/kept.py
src/PKG/data/resumable_loader.py
src/PKG/data/shared_examples.py
src/PKG/data/visible_files.py
src/PKG/ema.py
src/PKG/entry_point.py
src/PKG/environment.py
src/PKG/errors.py
src/PKG/evaluation.py
src/PKG/git_facts.py
src/PKG/instantiate.py
src/PKG/launch.py
src/PKG/locks.py
src/PKG/loggers.py
src/PKG/meeting_point.py
src/PKG/models/__init__.py
src/PKG/other_process.py
src/PKG/overrides.py
src/PKG/packages.py
src/PKG/prediction.py
src/PKG/prediction_file.py
src/PKG/preemption.py
src/PKG/processes.py
src/PKG/resume.py
src/PKG/run.py
src/PKG/run_card.py
src/PKG/run_directory.py
src/PKG/shard.py
src/PKG/step_checkpoints.py
src/PKG/sweep/__init__.py
src/PKG/sweep/app.py
src/PKG/sweep/best.py
src/PKG/sweep/check.py
src/PKG/sweep/command.py
src/PKG/sweep/ledger.py
src/PKG/sweep/page.py
src/PKG/sweep/process.py
src/PKG/sweep/report.py
src/PKG/sweep/results.py
src/PKG/sweep/space.py
src/PKG/sweep/study.py
src/PKG/sweep/worker.py
src/PKG/tasks/__init__.py
src/PKG/tasks/base.py
src/PKG/tasks/classification.py
src/PKG/terminal.py
src/PKG/trained_settings.py
src/PKG/training.py
src/PKG/whole_file.py
sweep.py
tests/conftest.py
tests/test_ablate.py
tests/test_bad_input.py
tests/test_clean_runs.py
tests/test_configs.py
tests/test_ddp.py
tests/test_ema.py
tests/test_eval_and_predict.py
tests/test_loaders.py
tests/test_loggers.py
tests/test_prediction_file.py
tests/test_reproducibility.py
tests/test_resume.py
tests/test_run_card.py
tests/test_schedule.py
tests/test_sweep.py
tests/test_train.py
train.py
"""
IMAGE_FILES = """
conf/data/cifar10.yaml
conf/data/digits.yaml
conf/data/hf_images.yaml
conf/data/image_folder.yaml
conf/experiment/cifar10.yaml
conf/experiment/digits.yaml
conf/experiment/hf_images.yaml
conf/experiment/image_folder.yaml
conf/model/mlp.yaml
conf/model/small_cnn.yaml
conf/model/timm.yaml
conf/search/digits.yaml
src/PKG/data/cifar10.py
src/PKG/data/digits.py
src/PKG/data/hf_images.py
src/PKG/data/image_check.py
src/PKG/data/image_folder.py
src/PKG/data/image_transform.py
src/PKG/data/images.py
src/PKG/models/mlp.py
src/PKG/models/small_cnn.py
src/PKG/models/timm_model.py
src/PKG/tasks/image_classification.py
tests/test_cifar10.py
tests/test_digits.py
tests/test_hf_images.py
tests/test_image_folder.py
tests/test_image_runs.py
tests/test_image_transform.py
tests/test_timm.py
"""
NLP_FILES = """
conf/data/hf_labelled_text.yaml
conf/data/hf_text.yaml
conf/data/lm.yaml
conf/data/text_files.yaml
conf/data/text_table.yaml
conf/data/topics.yaml
conf/experiment/hf_classifier.yaml
conf/experiment/hf_lm.yaml
conf/experiment/lm.yaml
conf/experiment/text_files.yaml
conf/experiment/text_table.yaml
conf/experiment/topics.yaml
conf/model/gpt.yaml
conf/model/hf_causal_lm.yaml
conf/model/hf_classifier.yaml
conf/model/text_classifier.yaml
conf/search/lm.yaml
src/PKG/baselines/bigram.py
src/PKG/baselines/tfidf.py
src/PKG/data/causal_text.py
src/PKG/data/hf_labelled_text.py
src/PKG/data/hf_tables.py
src/PKG/data/hf_text.py
src/PKG/data/labelled_text.py
src/PKG/data/labels.py
src/PKG/data/language_model.py
src/PKG/data/make_tokenizer.py
src/PKG/data/pydoc_text.py
src/PKG/data/sections.py
src/PKG/data/table_reading.py
src/PKG/data/text_files.py
src/PKG/data/text_reading.py
src/PKG/data/text_table.py
src/PKG/data/token_sequences.py
src/PKG/data/tokenizer.py
src/PKG/data/topics.py
src/PKG/models/bag_of_words.py
src/PKG/models/gpt.py
src/PKG/models/hugging_face.py
src/PKG/tasks/causal_language_model.py
src/PKG/tasks/hf_causal_lm.py
src/PKG/tasks/hf_text_classification.py
src/PKG/tasks/language_model.py
src/PKG/tasks/text_classification.py
tests/test_gpt.py
tests/test_hf_models.py
tests/test_hf_text.py
tests/test_text_baselines.py
tests/test_text_data.py
tests/test_text_files.py
tests/test_text_table.py
"""
GITHUB_FILES = ".github/dependabot.yml .github/workflows/ci.yml"
DOCKER_FILES = ".dockerignore Dockerfile"

LICENSE_TITLES = {
    "MIT": "MIT License",
    "Apache-2.0": "Apache License",
    "BSD-3-Clause": "BSD 3-Clause License",
    "Proprietary": "All rights reserved",
}
# GitHub's own expressions are the only braces that belong into a generated file.
LEFTOVER = re.compile(r"(?<!\$)\{\{|\{%|\{#|cookiecutter")


def combinations() -> list[dict[str, str | bool]]:
    """Multiply the options that meet in one file, and cycle the others so that all their pairs occur."""
    answers = []
    for i, (task, precision, logger) in enumerate(
        product(("image", "nlp", "both"), ("bf16", "fp32", "fp16"), ("csv", "tensorboard", "wandb", "mlflow"))
    ):
        ci, docker = CI_AND_DOCKER[i // 4 % 4]
        answers.append(
            {
                "task": task,
                "default_precision": precision,
                "default_logger": logger,
                "ci": ci,
                "docker": docker,
                "license": LICENSES[(i + i // 12) % 4],
                "python_version": PYTHONS[(i + i // 4) % 4],
            }
        )
    return answers


COMBINATIONS = combinations()


def expected_files(answers: dict[str, str | bool]) -> set[str]:
    """Return the paths that a project with these answers consists of."""
    parts = [COMMON_FILES]
    if answers["task"] != "nlp":
        parts.append(IMAGE_FILES)
    if answers["task"] != "image":
        parts.append(NLP_FILES)
    if answers["ci"] == "github":
        parts.append(GITHUB_FILES)
    if answers["docker"]:
        parts.append(DOCKER_FILES)
    return {path.replace("PKG", "my_project") for part in parts for path in part.split()}


def files(project: Path) -> dict[str, str]:
    """Return path and text of every file of a project; all of them are text."""
    return {
        path.relative_to(project).as_posix(): path.read_text(encoding="utf-8")
        for path in project.rglob("*")
        if path.is_file()
    }


def label(answers: dict[str, str | bool]) -> str:
    return "-".join(str(value) for value in answers.values())


@pytest.mark.parametrize("answers", COMBINATIONS, ids=label)
def test_combination(answers, bake):
    project = bake(**answers)
    texts = files(project)
    assert set(texts) == expected_files(answers)
    assert not [folder for folder in project.rglob("*") if folder.is_dir() and not any(folder.iterdir())]

    for path, text in texts.items():
        assert not LEFTOVER.search(text), path
        assert "\r" not in text, path
        assert text == "" or (text.endswith("\n") and not text.endswith("\n\n")), path
        assert not re.search(r"[ \t]+$", text, flags=re.MULTILINE), path
        if path.endswith(".py"):
            ast.parse(text, filename=path)
        elif path.endswith((".yaml", ".yml")):
            yaml.safe_load(text)

    metadata = tomllib.loads(texts["pyproject.toml"])
    check_metadata(metadata["project"], answers)
    check_defaults(yaml.safe_load(texts["conf/train.yaml"])["defaults"], answers)
    assert LICENSE_TITLES[answers["license"]] in texts["LICENSE"].partition("\n\n")[0]
    check_readme(texts, answers)
    if answers["ci"] == "github":
        workflow = yaml.safe_load(texts[".github/workflows/ci.yml"])
        matrix = workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"]
        assert matrix == list(PYTHONS[PYTHONS.index(answers["python_version"]) :])
    if answers["docker"]:
        assert f"FROM python:{answers['python_version']}-slim\n" in texts["Dockerfile"]
    assert ("image:" in texts["Makefile"]) == answers["docker"]

    ruff = [sys.executable, "-m", "ruff"]
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run([*ruff, *command, "--no-cache", "."], cwd=project, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout + result.stderr


def check_metadata(project: dict, answers: dict[str, str | bool]) -> None:
    """Compare the [project] table with the answers."""
    assert project["name"] == "my-project"
    assert project["authors"] == [{"name": "Your Name", "email": "you@example.com"}]
    assert project["requires-python"] == f">={answers['python_version']}"
    is_private = answers["license"] == "Proprietary"
    assert project["license"] == ("LicenseRef-Proprietary" if is_private else answers["license"])
    assert ("Private :: Do Not Upload" in project["classifiers"]) == is_private
    versions = [c.rpartition(" ")[2] for c in project["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert versions == list(PYTHONS[PYTHONS.index(answers["python_version"]) :])
    dependencies = {re.match(r"[\w-]+", requirement).group() for requirement in project["dependencies"]}
    loggers = {answers["default_logger"]} - {"csv"}
    assert dependencies == loggers | {
        *("hydra-core", "lightning", "mp-plugin", "numpy", "pyarrow", "rich", "scikit-learn", "torch"),
        "torchmetrics",
        *(("pillow",) if answers["task"] != "nlp" else ()),
    }
    extras = project["optional-dependencies"]
    groups = [re.fullmatch(r"my-project\[(.+)\]", group)[1].split(",") for group in extras["all"]]
    assert {name for group in groups for name in group} == extras.keys() - {"all", "dev"}


def check_defaults(defaults: list, answers: dict[str, str | bool]) -> None:
    """Compare Hydra's defaults list with the answers."""
    groups = {group: option for entry in defaults if isinstance(entry, dict) for group, option in entry.items()}
    assert groups["precision"] == answers["default_precision"]
    assert groups["logger"] == answers["default_logger"]


def check_readme(texts: dict[str, str], answers: dict[str, str | bool]) -> None:
    """Compare what the README promises with what there is."""
    readme = texts["README.md"]
    assert readme.startswith("# My Project\n")
    recipes = {path.rpartition("/")[2].removesuffix(".yaml") for path in texts if path.startswith("conf/experiment/")}
    assert set(re.findall(r"^\| `(\w+)` \| [a-z]", readme, flags=re.MULTILINE)) == recipes
    assert set(re.findall(r"experiment=(\w+)", readme)) <= recipes
    assert ("## Docker" in readme) == answers["docker"]


def test_combinations_cover_every_choice_and_every_pair_of_ci_and_docker(template):
    questions = json.loads((template / "template" / "cookiecutter.json").read_text(encoding="utf-8"))
    for name, choices in questions.items():
        if isinstance(choices, list) and not name.startswith("_"):
            assert {answers[name] for answers in COMBINATIONS} == set(choices), name
    assert {(answers["ci"], answers["docker"]) for answers in COMBINATIONS} == set(CI_AND_DOCKER)
    assert {(answers["license"], answers["python_version"]) for answers in COMBINATIONS} == set(
        product(LICENSES, PYTHONS)
    )


def test_every_question_has_a_prompt_and_every_choice_a_label(template):
    questions = json.loads((template / "template" / "cookiecutter.json").read_text(encoding="utf-8"))
    prompts = questions["__prompts__"]
    visible = {name: value for name, value in questions.items() if not name.startswith("_")}
    assert list(prompts) == list(visible)
    for name, value in visible.items():
        if isinstance(value, list):
            assert set(prompts[name]) == {"__prompt__", *value}


@pytest.mark.parametrize("package", ["x", "a_package_with_quite_a_long_name_for_imports"])
def test_style_holds_for_short_and_long_package_names(package, bake):
    project = bake(project_slug="demo", package_name=package, task="both")
    for command in (["check"], ["format", "--check"]):
        result = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--no-cache", "."], cwd=project, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stdout + result.stderr
