import io
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from mp_plugin.report.terminal import terminal_report
from mp_plugin.telemetry.events import Action
from mp_plugin.telemetry.store import Run, open_run
from tests.helpers.planted_runs import info, overflow, planted_run, sample
from tests.helpers.recorded_runs import HOSTILE_NAMES, record_run


def shown(run: Run, *, width: int = 80, colours: bool = False) -> str:
    file = io.StringIO()
    Console(width=width, file=file, force_terminal=colours, color_system="standard" if colours else None).print(
        terminal_report(run)
    )
    return file.getvalue()


def rows(text: str) -> list[str]:
    """Its lines, with blanks in a row as one."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_layers_of_a_run() -> None:
    run = planted_run(
        [
            sample("net.1", step=1200, amax=65504 / 4),
            sample("net.1", kind="activation_gradient", subnormal=31, amax=65504 / 1024 / 2**8, loss_scale=1024.0),
            sample("net.2", infs=3, nans=1),
            sample("net.3", amax=1e9, dtype="fp32", saturated=9),
        ],
        info=info(),
    )
    found = rows(shown(run, width=100))
    assert found[0].startswith(
        "fp16 has not overflowed: 1,900 steps, none skipped; but 31% of net.1's gradient values underflow."
    )
    start = found.index("Layers closest to the ends of the number format")
    assert found[start + 3 : start + 7] == [
        "net.2 output 16.0 bits 0 0% 1 NaN, 3 Inf",
        "net.1 gradient 8.0 bits 0 31%",
        "net.1 output 2.0 bits 1,200 0%",
        "net.3 output in fp32 - -",
    ]


def test_ten_layers_at_most() -> None:
    run = planted_run([sample(f"net.{layer}", amax=2.0**layer) for layer in range(15)])
    text = shown(run)
    assert "net.5 " in text
    assert "net.4 " not in text


def test_incidents_by_origin() -> None:
    incidents = (
        *(overflow(step) for step in range(1000, 1012)),
        overflow(1012, action=Action.fallback, cured=True, culprits=("net.head", "net.3")),
        overflow(7, operator=None, traced=False, action=Action.retry, cured=True, kind="nan"),
    )
    found = rows(shown(planted_run(incidents=incidents, info=info()), width=140))
    start = found.index("Incidents by origin")
    assert found[start + 3 : start + 8] == [
        "13 1,000 to forward: aten.addmm made inf in net.head 12 skipped",
        "1,012 model.py:57 in forward 1 cured by net.head, net.3 in FP32",
        "overflow: 70,000 is beyond the largest fp16 number, 65,504",
        "1 7 forward: nan gradients in net.head.weight 1 cured by a lower loss scale",
        "origin not traced",
    ]


def test_many_origins_are_summed_up() -> None:
    incidents = tuple(overflow(step, layer=f"net.{step // 2}") for step in range(25))
    assert "5 of 3 origins more" in rows(shown(planted_run(incidents=incidents)))


def test_what_the_run_was_like() -> None:
    summary = {
        "loss_scale": {"now": 2048.0, "min": 1024.0, "max": 65536.0},
        "scale_window": {"lowest": 64.0, "highest": 131072.0},
        "fp32_layers": {f"net.{number}": "proved" for number in range(7)},
        "telemetry": {"share": 0.0042, "seconds": 12.34, "left_out": 3},
    }
    found = rows(shown(planted_run([sample("a"), sample("b", step=1)], info=info(skipped=2, **summary))))
    for line in (
        "directory runs/7",
        "precision 16-mixed",
        "status finished, as of 2026-02-03 05:00 UTC",
        "steps 1,900, 2 skipped",
        "loss scale 2,048 (min 1,024, max 65,536)",
        "64 to 131,072 fit the gradients of all layers in the newest sample",
        "7 in FP32 net.0: proved",
        "net.4: proved",
        "and 2 more",
        "samples 2 steps of 2 layers",
        "cost 0.4% of the training time, 12.3 s",
        "3 samples left out to keep within Telemetry.max_overhead",
    ):
        assert line in found
    assert "net.5: proved" not in found


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        ({"share": 0.2, "seconds": 0.0512, "training_seconds": 0.25}, "took 0.051 s"),
        ({"share": 0.0005, "seconds": 0.512, "training_seconds": 1024.0}, "cost <0.1% of the training time, 0.51 s"),
        ({"share": 0.2, "seconds": 1204.0}, "cost 20% of the training time, 1,204.0 s"),
        ({"share": 0.0, "seconds": 0.0, "training_seconds": 90.0}, None),
    ],
)
def test_what_samples_cost_is_a_share_of_a_training_that_is_long_enough(
    cost: dict[str, float], expected: str | None
) -> None:
    found = rows(shown(planted_run([sample("a")], info=info(telemetry=cost))))
    lines = [line for line in found if line.startswith(("cost", "took"))]
    assert lines == ([] if expected is None else [expected])


@pytest.mark.parametrize("damage", [None, 7, "x", {}, {"now": "high"}, {"share": None}, [1]])
def test_a_summary_of_anybodys_making_is_no_obstacle(damage: object) -> None:
    summary = dict.fromkeys(("loss_scale", "scale_window", "fp32_layers", "telemetry", "steps"), damage)
    run = planted_run([sample("a")], info=replace(info(), summary=summary))
    assert "samples" in shown(run)


def test_an_empty_window_is_said_to_be_empty() -> None:
    scale = {"now": 1.0, "min": 1.0, "max": 1.0}
    run = planted_run(info=info(loss_scale=scale, scale_window={"lowest": 512.0, "highest": 32.0}))
    assert "none fits the gradients of all layers in the newest sample" in shown(run)


def test_damaged_files_are_named() -> None:
    damaged = tuple((Path(f"part-{number:05d}.parquet"), "it is \x1b[31mempty") for number in range(12))
    found = shown(planted_run(damaged=damaged), width=120)
    assert "12 parts of the record could not be read" in found
    assert "part-00009.parquet: it is \\x1b[31mempty" in found
    assert "part-00010" not in found
    assert "and 2 more" in found


def test_names_are_text_and_not_markup(tmp_path: Path) -> None:
    record_run(tmp_path, hostile=True, num_layers=8)
    text = shown(open_run(tmp_path), width=140)
    assert "[bold red]markup[/bold red]" in text
    assert HOSTILE_NAMES[0] in text
    assert "\u202e" not in text


@pytest.mark.parametrize("width", [40, 80, 140])
@pytest.mark.parametrize("hostile", [False, True])
def test_it_keeps_within_the_terminal(tmp_path: Path, width: int, hostile: bool) -> None:
    record_run(tmp_path, hostile=hostile, num_layers=8, incidents=6)
    lines = shown(open_run(tmp_path), width=width).splitlines()
    assert max(len(line) for line in lines) <= width


def test_no_colour_codes_in_a_pipe(tmp_path: Path) -> None:
    record_run(tmp_path)
    assert "\x1b" not in shown(open_run(tmp_path))
    assert "\x1b" in shown(open_run(tmp_path), colours=True)


def test_a_run_of_which_nothing_is_left() -> None:
    text = shown(planted_run())
    assert "Nothing is known yet" in text
    assert "Incidents" not in text
    assert "Layers" not in text
