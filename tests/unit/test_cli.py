import subprocess
import sys
from importlib.metadata import version

import pytest

from mp_plugin import cli
from mp_plugin.errors import ConfigError


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from mp_plugin.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_help_names_the_commands_and_does_not_import_torch() -> None:
    probe = "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules)); "
    result = subprocess.run(
        [sys.executable, "-c", probe + "from mp_plugin.cli import main; main()", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "doctor" in result.stdout
    assert result.stdout.rstrip().endswith("False")


def test_version() -> None:
    assert command("--version").stdout.strip() == version("mp-plugin")


def test_doctor() -> None:
    result = command("doctor")
    assert result.returncode == 0
    assert "Precisions on cpu" in result.stdout


def test_an_unknown_command_is_refused() -> None:
    result = command("cure")
    assert result.returncode != 0
    assert "No such command 'cure'" in result.stderr
    assert "Traceback" not in result.stderr


def test_our_errors_are_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ConfigError("x=1 is not accepted; accepted: 2.")

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 1
    assert capsys.readouterr().err == "mp-plugin: x=1 is not accepted; accepted: 2.\n"
