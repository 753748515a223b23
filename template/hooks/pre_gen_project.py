"""Refuse answers that would make a broken project, before a single file is written."""

import json
import keyword
import re
import sys
from collections.abc import Callable

ANSWERS = json.loads(r"""{{ cookiecutter | jsonify }}""")

CHOICES = {
    "license": ("MIT", "Apache-2.0", "BSD-3-Clause", "Proprietary"),
    "python_version": ("3.10", "3.11", "3.12", "3.13"),
    "task": ("image", "nlp", "both"),
    "default_precision": ("bf16", "fp32", "fp16"),
    "default_logger": ("csv", "tensorboard", "wandb", "mlflow"),
    "ci": ("github", "none"),
    "docker": (True, False),
}
# A package of one of these names would hide, or be hidden by, a module that the project imports.
IMPORTED = {
    *("torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics", "hydra", "hydra_plugins"),
    *("omegaconf", "mp_plugin", "numpy", "rich", "scipy", "sklearn", "tensorboard", "wandb", "yaml", "pytest"),
    *("mlflow", "timm", "torchvision", "pil", "transformers", "datasets", "tokenizers", "pandas", "pyarrow"),
    *("optuna", "submitit", "plotly"),
    *("conf", "src", "tests", "train", "eval", "predict"),
}
# pip takes a project of one of these names for the dependency itself.
DISTRIBUTIONS = {
    *("torch", "lightning", "hydra-core", "omegaconf", "torchmetrics", "rich", "scikit-learn", "numpy"),
    *("mp-plugin", "tensorboard", "wandb", "pytest", "pytest-xdist", "ruff", "mypy", "pre-commit"),
    *("mlflow", "mlflow-skinny", "timm", "torchvision", "pillow", "transformers", "datasets", "tokenizers", "pandas"),
    *("pyarrow", "scipy", "optuna", "hydra-submitit-launcher", "submitit", "plotly"),
}
# Windows refuses files and folders of these names.
DEVICES = {"con", "prn", "aux", "nul", *(f"com{n}" for n in range(1, 10)), *(f"lpt{n}" for n in range(1, 10))}


def text_problem(value: str) -> str | None:
    """Say what is wrong with a free text that is copied into TOML, Markdown and Python."""
    if not value.strip() or re.search(r"[\"\\{}\x00-\x1f\x7f]", value):
        return "one line of text without double quotes, backslashes or braces"
    return None


def email_problem(value: str) -> str | None:
    """Say what is wrong with an e-mail address."""
    if not re.fullmatch(r"[^@\s\"\\<>{}]+@[^@\s\"\\<>{}]+", value):
        return "an address such as you@example.com"
    return None


def slug_problem(value: str) -> str | None:
    """Say what is wrong with a name for a folder that is also the name of a distribution."""
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", value):
        return "ASCII letters, digits, '.', '-' and '_', with a letter or digit at both ends"
    if re.sub(r"[-_.]+", "-", value).lower() in DISTRIBUTIONS:
        return "a name that is not that of a package the project depends on"
    if value.split(".")[0].lower() in DEVICES:
        return "a name that Windows does not reserve for a device"
    return None


def package_problem(value: str) -> str | None:
    """Say what is wrong with a name for an importable package."""
    if not (value.isascii() and value.isidentifier()) or keyword.iskeyword(value):
        return "a Python identifier in ASCII that is no keyword, such as my_project"
    if value.lower() in sys.stdlib_module_names:
        return "a name that is not that of a standard library module"
    if value.lower() in IMPORTED:
        return "a name that no dependency, file or folder of the project bears"
    return None


CHECKS: dict[str, Callable[[str], str | None]] = {
    "project_name": text_problem,
    "project_slug": slug_problem,
    "package_name": package_problem,
    "author_name": text_problem,
    "author_email": email_problem,
}


def first_problem(answers: dict[str, str | bool]) -> str | None:
    """Return one sentence on the first answer that cannot be used, or None."""
    for name, check in CHECKS.items():
        accepted = check(str(answers[name]))
        if accepted:
            return f"{name} is {answers[name]!r}, but must be {accepted}."
    for name, choices in CHOICES.items():
        if answers[name] not in choices:
            return f"{name} is {answers[name]!r}, but must be one of {', '.join(map(str, choices))}."
    return None


if __name__ == "__main__":
    problem = first_problem(ANSWERS)
    if problem:
        sys.exit(f"ERROR: {problem}")
