import subprocess
import sys
from pathlib import Path

import pytest
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra.plugins.config_source import ConfigSource

from mp_plugin import hydra_search_path
from mp_plugin.hydra_search_path import MpPluginSearchPath, config_root

CONF = Path(__file__).parents[2] / "conf"


def test_checkout_serves_the_conf_folder_beside_the_package():
    assert config_root() == f"file://{CONF}"


def test_wheel_serves_the_conf_package_inside_it(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "__init__.py").touch()
    monkeypatch.setattr(hydra_search_path, "_PACKAGE", tmp_path)
    assert config_root() == "pkg://mp_plugin.conf"


def test_comes_after_the_app_so_that_the_apps_files_win():
    search_path = ConfigSearchPathImpl()
    search_path.append(provider="main", path="file:///app/conf")
    MpPluginSearchPath().manipulate_search_path(search_path)
    assert [entry.provider for entry in search_path.get_path()] == ["main", "mp_plugin"]


def test_every_hydra_app_can_afford_the_import():
    """Hydra imports the plugin in every app of the environment, trained or not."""
    code = (
        "import sys, mp_plugin.hydra_search_path; "
        "print(sorted({'torch', 'lightning', 'lightning_utilities', 'rich', 'typer'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: str(path.relative_to(CONF)))
def test_hydra_and_editors_both_find_their_header(path):
    """Hydra stops looking for `@package` at the first other comment, so the editor's line comes second."""
    text = path.read_text()
    is_option = path.parent.name == "precision"
    assert ConfigSource._get_header_dict(text)["package"] == ("_global_" if is_option else None)
    prefix = "# yaml-language-server: $schema="
    (modeline,) = (line for line in text.splitlines() if line.startswith(prefix))
    assert (path.parent / modeline.removeprefix(prefix)).resolve().is_file()
