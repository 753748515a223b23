"""Keep the files that the answers ask for, record where the template came from, and say what to do next."""

import json
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

ANSWERS = json.loads(r"""{{ cookiecutter | jsonify }}""")

PACKAGE = f"src/{ANSWERS['package_name']}"
IMAGE_FILES = (
    "conf/data/cifar10.yaml",
    "conf/data/digits.yaml",
    "conf/data/hf_images.yaml",
    "conf/data/image_folder.yaml",
    "conf/experiment/cifar10.yaml",
    "conf/experiment/digits.yaml",
    "conf/experiment/hf_images.yaml",
    "conf/experiment/image_folder.yaml",
    "conf/model/mlp.yaml",
    "conf/model/small_cnn.yaml",
    "conf/model/timm.yaml",
    "conf/search/digits.yaml",
    f"{PACKAGE}/data/cifar10.py",
    f"{PACKAGE}/data/digits.py",
    f"{PACKAGE}/data/hf_images.py",
    f"{PACKAGE}/data/image_check.py",
    f"{PACKAGE}/data/image_folder.py",
    f"{PACKAGE}/data/image_transform.py",
    f"{PACKAGE}/data/images.py",
    f"{PACKAGE}/models/mlp.py",
    f"{PACKAGE}/models/small_cnn.py",
    f"{PACKAGE}/models/timm_model.py",
    f"{PACKAGE}/tasks/image_classification.py",
    "tests/test_cifar10.py",
    "tests/test_digits.py",
    "tests/test_hf_images.py",
    "tests/test_image_folder.py",
    "tests/test_image_runs.py",
    "tests/test_image_transform.py",
    "tests/test_timm.py",
)
NLP_FILES = (
    "conf/data/hf_labelled_text.yaml",
    "conf/data/hf_text.yaml",
    "conf/data/lm.yaml",
    "conf/data/text_files.yaml",
    "conf/data/text_table.yaml",
    "conf/data/topics.yaml",
    "conf/experiment/hf_classifier.yaml",
    "conf/experiment/hf_lm.yaml",
    "conf/experiment/lm.yaml",
    "conf/experiment/text_files.yaml",
    "conf/experiment/text_table.yaml",
    "conf/experiment/topics.yaml",
    "conf/model/gpt.yaml",
    "conf/model/hf_causal_lm.yaml",
    "conf/model/hf_classifier.yaml",
    "conf/model/text_classifier.yaml",
    "conf/search/lm.yaml",
    f"{PACKAGE}/baselines/bigram.py",
    f"{PACKAGE}/baselines/tfidf.py",
    f"{PACKAGE}/data/causal_text.py",
    f"{PACKAGE}/data/hf_labelled_text.py",
    f"{PACKAGE}/data/hf_tables.py",
    f"{PACKAGE}/data/hf_text.py",
    f"{PACKAGE}/data/labelled_text.py",
    f"{PACKAGE}/data/labels.py",
    f"{PACKAGE}/data/language_model.py",
    f"{PACKAGE}/data/make_tokenizer.py",
    f"{PACKAGE}/data/pydoc_text.py",
    f"{PACKAGE}/data/sections.py",
    f"{PACKAGE}/data/table_reading.py",
    f"{PACKAGE}/data/text_files.py",
    f"{PACKAGE}/data/text_reading.py",
    f"{PACKAGE}/data/text_table.py",
    f"{PACKAGE}/data/token_sequences.py",
    f"{PACKAGE}/data/tokenizer.py",
    f"{PACKAGE}/data/topics.py",
    f"{PACKAGE}/models/bag_of_words.py",
    f"{PACKAGE}/models/gpt.py",
    f"{PACKAGE}/models/hugging_face.py",
    f"{PACKAGE}/tasks/causal_language_model.py",
    f"{PACKAGE}/tasks/hf_causal_lm.py",
    f"{PACKAGE}/tasks/hf_text_classification.py",
    f"{PACKAGE}/tasks/language_model.py",
    f"{PACKAGE}/tasks/text_classification.py",
    "tests/test_gpt.py",
    "tests/test_hf_models.py",
    "tests/test_hf_text.py",
    "tests/test_text_baselines.py",
    "tests/test_text_data.py",
    "tests/test_text_files.py",
    "tests/test_text_table.py",
)
GITHUB_FILES = (".github/dependabot.yml", ".github/workflows/ci.yml")
DOCKER_FILES = (".dockerignore", "Dockerfile")


@dataclass(frozen=True)
class Source:
    """Where the template came from.

    Args:
        template: A git URL or a folder on this machine; None if neither is known, as with a zip file.
        commit: The full hash of the template's commit; None outside git.
        directory: Where in the repository the template lies.
    """

    template: str | None
    commit: str | None
    directory: str


def unwanted_files() -> list[str]:
    """List what was rendered although the answers exclude it."""
    unwanted: list[str] = []
    if ANSWERS["task"] == "image":
        unwanted += NLP_FILES
    if ANSWERS["task"] == "nlp":
        unwanted += IMAGE_FILES
    if ANSWERS["ci"] != "github":
        unwanted += GITHUB_FILES
    if not ANSWERS["docker"]:
        unwanted += DOCKER_FILES
    return unwanted


def remove(path: Path) -> None:
    """Remove a file, and the folders that it leaves empty."""
    path.unlink()
    for folder in path.parents[:-1]:
        if any(folder.iterdir()):
            return
        folder.rmdir()


def git(folder: Path, *arguments: str) -> str | None:
    """Return what git answers in ``folder``; None where there is no git, no repository or no such thing."""
    if shutil.which("git") is None:
        return None
    run = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else None


def find_source() -> Source:
    """Find out where the template came from."""
    if "_commit" in ANSWERS:  # cruft is at work: it knows, and writes its own record
        return Source(ANSWERS["_template"], ANSWERS["_commit"], directory="")
    folder = Path(ANSWERS["_repo_dir"]).resolve()
    if git(folder, "rev-parse", "HEAD:./cookiecutter.json") is None:
        unpacked = folder.is_relative_to(Path(tempfile.gettempdir()).resolve())  # a zip file, gone in a moment
        return Source(None if unpacked else str(folder.parent), None, folder.name)
    top, commit = git(folder, "rev-parse", "--show-toplevel"), git(folder, "rev-parse", "HEAD")
    directory = (git(folder, "rev-parse", "--show-prefix") or "").rstrip("/")
    origin = git(folder, "remote", "get-url", "origin")
    is_clone = folder.is_relative_to(clones_folder())
    return Source(without_password(origin) if is_clone and origin else top, commit, directory)


def clones_folder() -> Path:
    """Return the folder into which cookiecutter clones a template that it was given as a URL."""
    from cookiecutter.config import get_user_config

    return Path(get_user_config()["cookiecutters_dir"]).resolve()


def without_password(url: str) -> str:
    """Drop the user and password of an http(s) URL, which must not end up in a project's files."""
    return re.sub(r"^(https?://)[^/@]+@", r"\1", url)


def plugin_requirement(source: Source) -> str:
    """Return what pip is to install for mp-plugin: the very source of the template, as the two belong together."""
    if source.template is None:
        return "mp-plugin"
    if Path(source.template).is_dir():
        return source.template
    url = re.sub(r"^([\w.-]+@[\w.-]+):", r"ssh://\1/", source.template)  # pip does not know git@host:path
    return f"mp-plugin @ git+{url}@{source.commit}"


def set_plugin_requirement(makefile: Path, requirement: str) -> None:
    """Make ``requirement`` the default of the Makefile's MP_PLUGIN."""
    text = makefile.read_text(encoding="utf-8")
    makefile.write_text(text.replace("MP_PLUGIN ?= mp-plugin\n", f"MP_PLUGIN ?= {requirement}\n"), encoding="utf-8")


def write_cruft_record(source: Source) -> None:
    """Write the file from which ``cruft update`` brings later changes of the template into the project."""
    record = {
        "template": source.template,
        "commit": source.commit,
        "checkout": ANSWERS.get("_checkout"),
        "context": {"cookiecutter": {name: value for name, value in ANSWERS.items() if not name.startswith("_")}},
        "directory": source.directory,
    }
    Path(".cruft.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def next_steps(source: Source) -> str:
    """Say what to type next, and what the user should know about the plugin's origin."""
    lines = [
        "",
        f"{ANSWERS['project_name']} is ready. Next:",
        "",
        f"  cd {Path.cwd()}",
        "  python -m venv .venv && . .venv/bin/activate",
        "  make install",
        "  make train",
        "",
    ]
    if source.template is None:
        lines.append("Where mp-plugin can be installed from is not known here: set MP_PLUGIN in the Makefile.")
    elif Path(source.template).is_dir():
        lines.append(f"mp-plugin will be installed from {source.template}.")
        lines.append("Set MP_PLUGIN in the Makefile to a git URL before you share the project.")
    if source.commit is None:
        lines.append("The template is not in a git repository, so `cruft update` will not work in this project.")
    return "\n".join(lines)


if __name__ == "__main__":
    for name in unwanted_files():
        remove(Path(name))
    template_source = find_source()
    set_plugin_requirement(Path("Makefile"), plugin_requirement(template_source))
    if "_commit" not in ANSWERS:
        if template_source.commit is not None:
            write_cruft_record(template_source)
        print(next_steps(template_source))
