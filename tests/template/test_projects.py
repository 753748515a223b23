"""A generated project installs as a wheel and passes its own tests, whatever its task and precision."""

import os
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

TASKS = ("image", "nlp", "both")
PRECISIONS = ("bf16", "fp32", "fp16")
LOGGERS = ("csv", "tensorboard", "wandb", "mlflow")
LICENSES = ("MIT", "Apache-2.0", "BSD-3-Clause", "Proprietary")
# timm, and the torchvision that it needs; apart, as every import of torchmetrics would take a torchvision that it finds.
TIMM = Path(sys.prefix) / "timm"
STAND_INS = Path(__file__).resolve().parents[1] / "helpers" / "stand_ins"
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def combinations() -> list[dict[str, str | bool]]:
    """Multiply task and precision, and cycle the rest."""
    return [
        {
            "task": task,
            "default_precision": precision,
            "default_logger": LOGGERS[(i + i // 4) % 4],
            "ci": ("github", "none")[i % 2],
            "docker": i % 4 < 2,
            "license": LICENSES[i % 4],
            "python_version": PYTHONS[(i + 1) % 4],
        }
        for i, (task, precision) in enumerate(product(TASKS, PRECISIONS))
    ]


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Run a command with one thread, and return what it printed; fail with that if the command fails."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "offline"} | variables
    # The settings of the session that runs this test are not those of a user who runs the project's tests.
    environment = {name: value for name, value in environment.items() if not name.startswith(("PYTEST_", "HYDRA_"))}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout


@pytest.mark.parametrize(
    "answers", combinations(), ids=lambda answers: f"{answers['task']}-{answers['default_precision']}"
)
def test_project_installs_and_passes_its_own_tests(answers, bake, tmp_path):
    project = bake(**answers)
    site = tmp_path / "site-packages"
    # Offline, with what is installed here; the interpreter may be older than the one that the project asks for.
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-index")
    options = ("--no-deps", "--no-build-isolation", "--ignore-requires-python", "--target", site)
    run(*pip, *options, project, cwd=tmp_path)
    assert (site / "my_project" / "__init__.py").is_file()
    assert (site / "my_project-0.1.0.dist-info" / "licenses" / "LICENSE").is_file()

    where = run(
        sys.executable, "-c", "import my_project; print(my_project.__file__)", cwd=tmp_path, PYTHONPATH=str(site)
    )
    assert Path(where.strip()).is_relative_to(site)
    paths = os.pathsep.join(map(str, (site, STAND_INS, TIMM)))
    report = run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", cwd=project, PYTHONPATH=paths)
    assert " passed" in report
    assert " skipped" not in report


COMPOSE_COMMANDS = r"""
import re, shlex
from itertools import product
from pathlib import Path
from hydra import compose, initialize_config_dir

texts = [path.read_text(encoding="utf-8").replace("\\\n", " ") for path in (Path("README.md"), *Path("docs").glob("*.md"))]
# On a line of its own, or in the text, between backticks.
found = [re.findall(r"(?:^|`)python (\w+)\.py([^`\n]*)", text, flags=re.MULTILINE) for text in texts]
# A folder of configs is the result of an earlier command.
commands = [command for each in found for command in each if "--config-dir" not in command[1]]
with initialize_config_dir(str(Path("conf").resolve()), version_base="1.3"):
    for script, line in commands:
        words = shlex.split(line, comments=True)
        settings = [word.partition("=") for word in words if "=" in word]
        separator = "," if "-m" in words else None
        choices = [[f"{key}={choice}" for choice in value.split(separator)] for key, _, value in settings]
        for overrides in product(*choices):
            compose(script, overrides=list(overrides), return_hydra_config=True)
            print(script, *overrides)
"""


@pytest.mark.parametrize("task", TASKS)
def test_every_command_of_readme_and_docs_composes(task, bake):
    project = bake(task=task)
    composed = run(sys.executable, "-c", COMPOSE_COMMANDS, cwd=project, PYTHONPATH=str(project / "src"))
    lines = composed.splitlines()
    assert {line.split()[0] for line in lines} == {"train", "eval", "predict", "sweep"}
    assert {words[1] for words in map(str.split, lines) if len(words) > 1} >= {f"precision={each}" for each in PRECISIONS}


def test_types_hold(bake):
    project = bake(task="both")
    run(sys.executable, "-m", "mypy", "--cache-dir", project / ".mypy_cache", cwd=project)
