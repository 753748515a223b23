import json
import math
from dataclasses import replace
from enum import Enum
from pathlib import Path

import pytest

from mp_plugin.errors import TelemetryError
from mp_plugin.telemetry.run_info import RunInfo, path_of

INFO = RunInfo(
    run="2026-02-03T04:05:06.789+00:00",
    status="running",
    updated="2026-02-03T04:06:06.789+00:00",
    precision="16-mixed",
    compute_dtype="fp16",
    environment={"device": "cpu <&> \N{FIRE}"},
    telemetry={"every_n_steps": 100, "directory": None},
    summary={"steps": 7, "loss_scale": {"now": 1024.0}, "telemetry": {"share": 0.004}},
)


def test_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    INFO.save(tmp_path)
    assert RunInfo.load(tmp_path) == INFO
    assert json.loads(path_of(tmp_path).read_text())["version"] == 1
    newer = replace(INFO, status="finished")
    newer.save(tmp_path)
    assert RunInfo.load(tmp_path) == newer
    assert [path.name for path in path_of(tmp_path).parent.iterdir()] == ["run.json"]


def test_is_json_for_every_tool(tmp_path: Path) -> None:
    class Color(Enum):
        red = "red"

    odd = {"nan": math.nan, "window": (1.0, math.inf), 3: Color.red, "path": Path("a"), "set": {1}}
    replace(INFO, summary=odd).save(tmp_path)
    values = json.loads(path_of(tmp_path).read_text(), parse_constant=pytest.fail)["summary"]
    assert values == {"nan": "nan", "window": [1.0, "inf"], "3": "red", "path": repr(Path("a")), "set": "{1}"}


def test_a_reader_never_sees_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    INFO.save(tmp_path)
    seen = []
    write_text = Path.write_text

    def watched(path: Path, text: str, **options: str) -> int:
        write_text(path, text[: len(text) // 2], **options)
        seen.append(RunInfo.load(tmp_path))
        return write_text(path, text, **options)

    monkeypatch.setattr(Path, "write_text", watched)
    replace(INFO, status="finished").save(tmp_path)
    assert seen == [INFO]
    assert RunInfo.load(tmp_path).status == "finished"


def test_unknown_keys_are_ignored_and_tables_may_be_missing(tmp_path: Path) -> None:
    INFO.save(tmp_path)
    values = json.loads(path_of(tmp_path).read_text())
    del values["summary"]
    path_of(tmp_path).write_text(json.dumps({**values, "of a later release": 1}))
    assert RunInfo.load(tmp_path) == replace(INFO, summary={})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, r"run.json has version=2; accepted: 1\."),
        ({"version": None}, r"run.json has version=None; accepted: 1\."),
        ({"status": None}, r"run.json has status=None; accepted: a text\."),
        ({"compute_dtype": 16}, r"run.json has compute_dtype=16; accepted: a text\."),
        ({"summary": [1]}, r"run.json has summary=\[1\]; accepted: a table\."),
    ],
    ids=str,
)
def test_what_it_does_not_understand_is_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    INFO.save(tmp_path)
    path = path_of(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(TelemetryError, match=message):
        RunInfo.load(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b'"text"', b"[" * 100_000, b"\xff\xfe\x00", b"PAR1"])
def test_garbage_is_told_in_one_line(tmp_path: Path, content: bytes) -> None:
    path_of(tmp_path).parent.mkdir()
    path_of(tmp_path).write_bytes(content)
    with pytest.raises(TelemetryError, match=r"run\.json (is not JSON|has version=None)") as told:
        RunInfo.load(tmp_path)
    assert "\n" not in str(told.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TelemetryError, match=r"run\.json cannot be read \(No such file or directory\)"):
        RunInfo.load(tmp_path)
