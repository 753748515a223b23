"""The best trial's settings as an experiment."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from {{cookiecutter.package_name}}.sweep.command import settings_of


def experiment_of(
    train: Sequence[str], params: Mapping[str, Any], is_group: Mapping[str, bool]
) -> tuple[str, list[str]]:
    """Write settings as an experiment file.

    Args:
        train: fixed settings of the sweep.
        params: the best trial's.
        is_group: for each key, whether it is a config group.

    Returns:
        The file's text, and the settings that a file cannot hold, such as deletions, to be given on the command line.
    """
    defaults: list[Any] = []
    values: dict[str, Any] = {}
    left: list[str] = []
    for override in OverridesParser.create().parse_overrides(settings_of(train, params)):
        line = str(override.input_line)
        key, value = override.key_or_group, override.value()
        if override.is_delete() or override.package is not None:
            left.append(line)
        elif key == "experiment":
            defaults.insert(0, value)
        elif is_group.get(key, False):
            # The group is in the defaults list already, unless the override adds it.
            defaults.append({f"{'' if override.is_add() else 'override '}/{key}": value})
        else:
            # A QuotedString keeps its text apart.
            _put(values, key.split("."), getattr(value, "text", value))
    parts = [{"defaults": [*defaults, "_self_"]}] if defaults else []
    text = "".join(OmegaConf.to_yaml(OmegaConf.create(part)) for part in [*parts, values] if part)
    return f"# @package _global_\n{text}", left


def _put(values: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
    values[path[-1]] = value


def write_best(
    folder: Path, train: Sequence[str], params: Mapping[str, Any], is_group: Mapping[str, bool], header: str
) -> str:
    """Write best.yaml, and return the command that trains with it.

    Args:
        folder: the study's.
        train: fixed settings of the sweep.
        params: the best trial's.
        is_group: for each key, whether it is a config group.
        header: a line about where the settings come from.
    """
    text, left = experiment_of(train, params, is_group)
    (folder / "experiment").mkdir(exist_ok=True)
    package, _, rest = text.partition("\n")
    (folder / "experiment" / "best.yaml").write_text(f"{package}\n# {header}\n{rest}", encoding="utf-8")
    return shlex.join(["python", "train.py", f"--config-dir={folder}", "experiment=best", *left])
