"""Answers that cannot make a working project are refused in one sentence, and leave nothing behind."""

import json
from pathlib import Path

import pytest

LIKELY_ANSWERS = {
    "project_name": ["Räum & Zeit", "100% O'Brien's <best> project"],
    "project_slug": ["x", "Deep.Net-2_0", "3d-nets"],
    "package_name": ["x", "_private", "DeepNet2"],
    "author_name": ["Zoë O'Hara, PhD"],
    "author_email": ["zoë+ml@mail.example.org"],
}
BAD_ANSWERS = [
    ("project_name", "   ", "one line of text"),
    ("project_name", 'the "best"', "one line of text"),
    ("project_name", "back\\slash", "one line of text"),
    ("project_name", "two\nlines", "one line of text"),
    ("author_name", 'Robert "Bob" Tables', "one line of text"),
    ("author_email", "nobody", "an address such as"),
    ("author_email", "a b@example.com", "an address such as"),
    ("project_slug", "-dash", "ASCII letters"),
    ("project_slug", "my project", "ASCII letters"),
    ("project_slug", "größe", "ASCII letters"),
    ("project_slug", "torch", "depends on"),
    ("project_slug", "MP_Plugin", "depends on"),
    ("project_slug", "nul", "Windows"),
    ("package_name", "my-project", "a Python identifier"),
    ("package_name", "3d_nets", "a Python identifier"),
    ("package_name", "größe", "a Python identifier"),
    ("package_name", "class", "a Python identifier"),
    ("package_name", "json", "standard library"),
    ("package_name", "Types", "standard library"),
    ("package_name", "torch", "no dependency"),
    ("package_name", "lightning", "no dependency"),
    ("package_name", "hydra", "no dependency"),
    ("package_name", "mp_plugin", "no dependency"),
    ("package_name", "tests", "no dependency"),
    ("package_name", "conf", "no dependency"),
    ("package_name", "train", "no dependency"),
]
CHOICES = {
    "license": "MIT, Apache-2.0, BSD-3-Clause, Proprietary",
    "python_version": "3.10, 3.11, 3.12, 3.13",
    "task": "image, nlp, both",
    "default_precision": "bf16, fp32, fp16",
    "default_logger": "csv, tensorboard, wandb, mlflow",
    "ci": "github, none",
    "docker": "True, False",
}


@pytest.mark.parametrize(("name", "value", "accepted"), BAD_ANSWERS)
def test_bad_name_is_refused_in_one_sentence(name, value, accepted, template, run_cookiecutter, tmp_path):
    names = {"project_slug": "demo", "package_name": "demo"} | {name: value}
    answers = [f"{key}={text}" for key, text in names.items()]
    result = run_cookiecutter(template, "--no-input", "--output-dir", tmp_path / "out", *answers, cwd=tmp_path)
    assert result.returncode != 0
    sentences = [line for line in result.stdout.splitlines() if line.startswith("ERROR: ") and name in line]
    assert len(sentences) == 1, result.stdout
    assert f"{name} is {value!r}, but must be " in sentences[0]
    assert accepted in sentences[0]
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in LIKELY_ANSWERS.items() for value in values]
)
def test_unusual_but_valid_name_is_accepted(name, value, bake):
    project = bake(**({"project_slug": "demo", "package_name": "demo"} | {name: value}))
    assert (project / "pyproject.toml").is_file()


@pytest.mark.parametrize("name", CHOICES)
def test_choice_off_the_list_is_refused_on_the_command_line(name, template, run_cookiecutter, tmp_path):
    result = run_cookiecutter(template, "--no-input", "--output-dir", tmp_path / "out", f"{name}=vision", cwd=tmp_path)
    assert result.returncode != 0
    last_line = result.stdout.splitlines()[-1]
    assert "vision" in last_line
    assert name in last_line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "choices"), CHOICES.items())
def test_choice_off_the_list_is_refused_from_a_replay_file(
    name, choices, template, run_cookiecutter, cookiecutter_config, tmp_path
):
    run_cookiecutter(template, "--no-input", "--output-dir", tmp_path / "first", cwd=tmp_path)
    dump = json.loads((cookiecutter_config.parent / "replay" / "template.json").read_text(encoding="utf-8"))
    dump["cookiecutter"][name] = "vision"
    replay = tmp_path / "replay.json"
    replay.write_text(json.dumps(dump), encoding="utf-8")
    result = run_cookiecutter(
        template, "--directory", "template", "--replay-file", replay, "--output-dir", tmp_path / "out", cwd=tmp_path
    )
    assert result.returncode != 0
    assert f"ERROR: {name} is 'vision', but must be one of {choices}.\n" in result.stdout
    assert not list((tmp_path / "out").iterdir())


def test_existing_folder_is_refused_and_untouched(template, run_cookiecutter, tmp_path):
    precious = tmp_path / "my-project" / "notes.txt"
    precious.parent.mkdir()
    precious.write_text("mine", encoding="utf-8")
    result = run_cookiecutter(template, "--no-input", cwd=tmp_path)
    assert result.returncode != 0
    assert "already exists" in result.stdout
    assert [path.name for path in precious.parent.iterdir()] == ["notes.txt"]
    assert precious.read_text(encoding="utf-8") == "mine"


def test_defaults_make_a_project_without_questions(template, run_cookiecutter, tmp_path):
    result = run_cookiecutter(template, "--no-input", cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert "My Project is ready." in result.stdout
    assert f"cd {Path(tmp_path / 'my-project')}" in result.stdout
    assert (tmp_path / "my-project" / "src" / "my_project" / "__init__.py").is_file()


def test_names_are_derived_from_the_project_name(bake):
    project = bake(project_name="Deep Räum 2")
    assert project.name == "deep-raum-2"
    assert (project / "src" / "deep_raum_2").is_dir()
