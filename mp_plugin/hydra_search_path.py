"""Make the precision config groups visible to every Hydra app in this environment.

Hydra imports this module at the start of every app, so it imports no torch, here or in the guard that it registers.
"""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin

from mp_plugin.hydra_guard import register

_PACKAGE = Path(__file__).parent

register()


class MpPluginSearchPath(SearchPathPlugin):
    """Append the shipped `conf` to the search path: last, so that a file of the app at the same path wins."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Append the shipped groups; Hydra calls this for every app."""
        search_path.append(provider="mp_plugin", path=config_root())


def config_root() -> str:
    """The shipped config groups as a Hydra search path: inside the wheel, or beside the package in a checkout."""
    if (_PACKAGE / "conf" / "__init__.py").is_file():
        return "pkg://mp_plugin.conf"
    return f"file://{_PACKAGE.parent / 'conf'}"
