import io
import re

import pytest
import torch
from rich.console import Console

from mp_plugin.report.advice_table import LISTED, advice_view
from mp_plugin.telemetry.advise import advise
from mp_plugin.telemetry.layer_sample import TensorKind
from tests.helpers.samples import sample, table

ACTIVATION, GRADIENT, WEIGHTS = TensorKind
FITS, TOO_LARGE = torch.ones(10), torch.full((10,), 1e6)


def printed(rows: list[object], *, width: int = 80, **options: bool) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(advice_view(advise(table(rows)), **options))  # type: ignore[arg-type]
    return console.export_text()


def test_the_worst_come_first_and_the_rest_is_counted() -> None:
    rows = [sample(f"layer.{place}", ACTIVATION, FITS) for place in range(30)]
    rows.append(sample("large", ACTIVATION, TOO_LARGE))
    text = printed(rows)
    assert "(30 of 31 layers; large needs fp32)" in " ".join(text.split())
    lines = text.splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("layer "))
    assert lines[header].split() == ["layer", "largest", "e4m3", "e5m2", "fp16", "bf16", "use"]
    assert lines[header + 1].split() == ["large", "fwd", "1.0e+06", "over→ok", "over→ok", "over→ok", "ok", "e4m3"]
    assert lines[header + 2].split()[0] == "layer.0"
    assert f"and {31 - LISTED} more rows: --all" in text
    everything = printed(rows, show_all=True)
    assert [line.split()[0] for line in everything.splitlines() if " fwd " in line] == [
        *(f"layer.{place}" for place in range(30)),
        "large",
    ]
    assert "--all" not in everything


def test_nothing_is_said_of_rows_that_were_never_finite() -> None:
    bad = torch.tensor([torch.nan])
    text = printed([sample("a", ACTIVATION, FITS)])
    assert "inf:" not in text
    spoiled = [sample(name, kind, bad) for name in "ab" for kind in (ACTIVATION, GRADIENT)]
    text = printed([*spoiled, sample("c", ACTIVATION, FITS)])
    rows = [line.split() for line in text.splitlines() if " fwd " in line or " bwd " in line]
    assert rows[0] == ["a", "fwd", "-", "inf", "inf", "inf", "inf", "fp32"]
    assert rows[1:-1] == [[*each.split(), "-", "?", "?", "?", "?", "unknown"] for each in ("a bwd", "b fwd", "b bwd")]
    assert "inf: NaN or Inf came from there" in " ".join(text.split())


def test_backward_in_fp16_is_shown_at_the_loss_scale_it_would_have() -> None:
    small, large = torch.full((9,), 2.0**-30), torch.full((9,), 2.0**8)
    rows = [sample("a", GRADIENT, small), sample("b", GRADIENT, small), sample("c", GRADIENT, large)]
    lines = {line.split()[0]: line.split() for line in printed(rows).splitlines() if " bwd " in line}
    assert lines["a"][3:] == ["100%→ok", "100%→ok", "100%→ok", "ok", "e4m3"]
    assert lines["c"][3:] == ["ok", "ok", "ok→over", "ok", "e4m3"]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_it_fits_the_terminal_and_no_name_can_draw_on_it(width: int) -> None:
    names = ["x" * 300, "[bold red]a[/]", "\x1b[31mred", "new\nline", "encoder.layers.11.self_attention.out_proj.dense"]
    rows = [sample(name, kind, TOO_LARGE) for name in [*names, ""] for kind in (ACTIVATION, GRADIENT)]
    text = printed([*rows, sample("ok", ACTIVATION, FITS)], width=width, show_all=True)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert "[bold red]a[/]" in text
    assert "(root)" in text
    for line in text.splitlines():
        assert not re.match(r"line\b", line)


def test_a_step_that_would_be_spoiled_is_named() -> None:
    rows = [sample("head", ACTIVATION, torch.ones(1000), step=step) for step in range(20)]
    rows.append(sample("head", ACTIVATION, torch.tensor([1.0] + 9 * [1e-9]), step=77))
    text = " ".join(printed(rows).split())
    assert "In step 77 e4m3 would flush 90% of head forward." in text


def test_what_the_run_cannot_tell_is_printed() -> None:
    text = " ".join(printed([sample("head", WEIGHTS, FITS, dtype="fp16")]).split())
    assert "This run computed in fp16" in text
    assert "Activations were not sampled" in text
