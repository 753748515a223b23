import json
import os
import subprocess
import sys
import webbrowser
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest

from mp_plugin import cli
from mp_plugin.errors import ConfigError
from mp_plugin.report.verdict import verdict
from mp_plugin.telemetry.store import open_run
from tests.helpers.compared_runs import FP32, WORSE, write_run, write_sweep
from tests.helpers.recorded_runs import record_run


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
    assert "report" in result.stdout
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


class Outcome(NamedTuple):
    code: object
    out: str
    err: str


class Here:
    """The command in this process, in an empty directory beside a recorded run."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.run = record_run(directory / "run", num_samples=2)
        self.directory = directory / "here"
        self.directory.mkdir()
        monkeypatch.chdir(self.directory)
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *arguments: object) -> Outcome:
        self._monkeypatch.setattr(sys, "argv", ["mp-plugin", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        out, err = self._capsys.readouterr()
        return Outcome(caught.value.code, out, err)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    return Here(tmp_path, monkeypatch, capsys)


def test_report_writes_a_page_and_tells_the_verdict(here: Here) -> None:
    result = here("report", here.run)
    assert result == (0, f"report.html\n{verdict(open_run(here.run)).sentence}\n", "")
    assert os.listdir() == ["report.html"]
    assert Path("report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_report_finds_the_run_below_a_directory(here: Here) -> None:
    assert here("report", here.run.parent, "--output", "pages/it.html").out.startswith("pages/it.html\n")
    assert Path("pages/it.html").exists()


@pytest.mark.parametrize("is_dangling_link", [False, True])
def test_report_overwrites_nothing_unless_it_is_told_to(here: Here, is_dangling_link: bool) -> None:
    page = Path("report.html")
    page.symlink_to("elsewhere") if is_dangling_link else page.write_text("precious")
    result = here("report", here.run)
    sentence = "report.html exists already; accepted: --force to replace it, or --output with another name."
    assert result == (1, "", f"mp-plugin: {sentence}\n")
    assert is_dangling_link or page.read_text() == "precious"
    assert os.listdir() == ["report.html"]
    assert here("report", here.run, "--force").code == 0
    assert "precious" not in page.read_text(encoding="utf-8")


def test_report_overwrites_no_page_that_appeared_meanwhile(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def build_page(run: object) -> str:
        Path("report.html").write_text("precious")
        return "page"

    monkeypatch.setattr("mp_plugin.report.page.build_page", build_page)
    assert here("report", here.run).code == 1
    assert Path("report.html").read_text() == "precious"


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (
            "file/report.html",
            "file/report.html cannot be written (File exists); accepted: --output with another place.",
        ),
        (f"{'x' * 300}", f"{'x' * 300} cannot be written (File name too long); accepted: --output with another place."),
        ("directory", "directory is a directory; accepted: --output with the name of a file."),
        ("", ". is a directory; accepted: --output with the name of a file."),
    ],
    ids=["below a file", "long", "directory", "empty"],
)
def test_a_page_that_cannot_be_written_is_one_sentence(here: Here, output: str, sentence: str) -> None:
    Path("file").touch()
    Path("directory").mkdir()
    assert here("report", here.run, "--force", "--output", output) == (1, "", f"mp-plugin: {sentence}\n")
    assert sorted(os.listdir()) == ["directory", "file"]


def test_what_is_no_run_is_one_sentence(here: Here) -> None:
    Path("empty").mkdir()
    for path in ("nowhere", "empty", here.run / "telemetry" / "run.json"):
        result = here("report", path)
        assert (result.code, result.out) == (1, "")
        assert str(path) in result.err
        assert len(result.err.splitlines()) == 1
    assert os.listdir() == ["empty"]


def test_damaged_parts_are_named_and_the_page_is_built(here: Here) -> None:
    for number in range(12):
        (here.run / "telemetry" / "stats" / f"part-{70 + number:05d}.parquet").write_bytes(b"PAR1 and no more")
    result = here("report", here.run)
    assert result.code == 0
    lines = result.err.splitlines()
    assert lines[0] == "mp-plugin: 12 parts of the record could not be read:"
    assert "part-00070.parquet: " in lines[1]
    assert lines[-1] == "  and 2 more"
    assert len(lines) == 12
    assert Path("report.html").exists()


def test_report_in_the_terminal_writes_nothing(here: Here) -> None:
    result = here("report", here.run, "--terminal")
    assert (result.code, result.err) == (0, "")
    assert "Incidents by origin" in result.out
    assert "\x1b" not in result.out
    assert os.listdir() == []


@pytest.mark.parametrize("arguments", [("report", "--terminal"), ("advise",)])
def test_no_terminal_is_too_narrow_for_names(
    arguments: tuple[str, ...], here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["stem", "block", "head"]
    run = record_run(here.directory / "run", num_samples=2, names=names)
    monkeypatch.setenv("COLUMNS", "30")
    lines = here(*arguments, run).out.splitlines()
    assert {line.split()[0] for line in lines if line.split()} >= set(names)
    assert max(map(len, lines)) <= cli.NARROWEST


def test_report_opens_the_page(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def browser(url: str) -> bool:
        opened.append(url)
        return len(opened) == 1

    monkeypatch.setattr(webbrowser, "open", browser)
    name = "a [red]#1%20<b> \N{FIRE}.html"
    assert here("report", here.run, "--open", "--output", name).err == ""
    assert unquote(opened[0].removeprefix("file://")) == str(here.directory / name)
    result = here("report", here.run, "--open")
    assert (result.code, result.err) == (0, "mp-plugin: there is no browser here to open report.html.\n")


def test_names_that_are_no_text_are_escaped(here: Here) -> None:
    name = os.fsdecode(b"\xff\x1b[31m.html")
    result = here("report", here.run, "--output", name)
    assert result.code == 0
    assert result.out.startswith("\\udcff\\x1b[31m.html\n")
    again = here("report", here.run, "--output", name)
    assert again.err.startswith("mp-plugin: \\udcff\\x1b[31m.html exists already; ")


def test_a_terminal_that_knows_ascii_only_is_enough(tmp_path: Path) -> None:
    record_run(tmp_path, hostile=True, num_samples=2)
    result = subprocess.run(
        [sys.executable, "-c", "from mp_plugin.cli import main; main()", "report", tmp_path, "--terminal"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        check=True,
    )
    assert b"Layers closest" in result.stdout
    assert b"Traceback" not in result.stderr


def test_advice_is_written_where_it_is_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record_run(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    nowhere = command("advise", "run", "there")
    assert nowhere.returncode == 1
    assert nowhere.stderr == "mp-plugin: Nothing is written to there without --emit; accepted: --emit with it.\n"
    assert command("advise", "run", "--emit", "there").returncode == 0
    assert command("advise", "run", "--emit").returncode == 0
    for directory in ("there", "advised"):
        assert (tmp_path / directory / "precision_map.yaml").exists()
        assert (tmp_path / directory / "precision" / "advised.yaml").exists()
    told = command("advise", "run", "--emit", "told").stdout
    assert f"\nWith Hydra: python train.py --config-dir {tmp_path}/told precision=advised\n" in told
    assert (
        f"\nIn Python: AdaptivePrecision(\"fp16\", fallback=Fallback(map='{tmp_path}/told/precision_map.yaml', " in told
    )


def test_compare_writes_its_files_and_ends_with_the_status_of_the_line(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "sweep", {"fp32": FP32, "bf16": WORSE})
    page, values = tmp_path / "compare.html", tmp_path / "compare.json"
    arguments = ["compare", str(sweep), "-o", str(page), "--json", str(values), "--fail-if-worse", "0.01"]
    result = command(*arguments)
    assert result.returncode == 3
    assert "bf16: worse than fp32 by 2 points" in " ".join(result.stdout.split())
    assert "bf16: worse than fp32 by 2 points" in page.read_text(encoding="utf-8")
    assert json.loads(values.read_text(encoding="utf-8"))["exit_status"] == 3
    again = command(*arguments)
    assert (again.returncode, again.stdout) == (1, "")
    assert "compare.html exists already; accepted: --force" in again.stderr


def test_compare_names_runs_of_different_tasks(tmp_path: Path) -> None:
    write_run(tmp_path / "0")
    write_run(tmp_path / "1", "bf16", task="LanguageModel")
    result = command("compare", str(tmp_path))
    assert result.returncode == 1
    assert "1 of LanguageModel; accepted: runs of one task on the same data." in result.stderr
    assert "Traceback" not in result.stderr
