"""Packages that only some settings need."""

import importlib
from types import ModuleType


def import_extra(module: str, extra: str) -> ModuleType:
    """Import a module that comes with one of the project's extras.

    Args:
        module: its name.
        extra: the extra of pyproject.toml that installs it.

    Raises:
        ImportError: says how to install it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise  # it is there, but something that it needs is not
        raise ImportError(f'{module} is not installed: pip install -e ".[{extra}]"') from error
