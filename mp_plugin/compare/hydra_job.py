"""What Hydra writes down of a job before it begins: all that tells of one that was refused, or of a foreign project."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # its types are a package of their own

from mp_plugin.compare.find_runs import HYDRA
from mp_plugin.telemetry.store import Damage

# The one in C is several times as fast, and not on every machine.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_hydra_job(directory: Path, damaged: list[Damage]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings of a job, interpolations as they stand, and the options chosen for its config groups.

    Args:
        directory: the job's.
        damaged: gets the files that cannot be read.
    """
    settings = _read_yaml(directory / HYDRA, damaged)
    found: Any = _read_yaml((directory / HYDRA).with_name("hydra.yaml"), damaged)
    for name in ("hydra", "runtime", "choices"):
        found = found.get(name) if isinstance(found, Mapping) else None
    choices = found if isinstance(found, Mapping) else {}
    return settings, {str(group): option for group, option in choices.items() if not str(group).startswith("hydra/")}


def _read_yaml(path: Path, damaged: list[Damage]) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=LOADER)
    except FileNotFoundError:
        return {}
    except OSError as error:
        damaged.append((path, f"cannot be read ({error.strerror or error})"))
        return {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        damaged.append((path, f"is not YAML ({type(error).__name__})"))
        return {}
    return values if isinstance(values, dict) else {}
