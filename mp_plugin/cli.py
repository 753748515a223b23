"""The `mp-plugin` command. Torch is imported by the commands that need it, not by `--help`."""

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mp_plugin._version import __version__
from mp_plugin.errors import ConfigError, MpPluginError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mp_plugin.compare.comparison import Comparison
    from mp_plugin.telemetry.store import Run

LISTED_DAMAGED = 10
NARROWEST = 60
"""Columns that a table needs."""

app = typer.Typer(
    name="mp-plugin",
    help="Mixed precision for PyTorch Lightning that explains overflows instead of hiding them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


@app.command()
def doctor() -> None:
    """Show what this machine can run, how fast, and what each precision would do here."""
    from rich.console import Console

    from mp_plugin.doctor import report

    Console().print(report())


@app.command()
def advise(
    run: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="The directory of a run sampled with histograms.", show_default=False),
    ],
    directory: Annotated[
        Path | None, typer.Argument(metavar="DIR", help="Where --emit writes; advised/ here.", show_default=False)
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Show every layer, not only the worst.")] = False,
    overflow: Annotated[float, typer.Option(help="Share of a layer's values that may overflow.")] = 0.0,
    flushed: Annotated[float, typer.Option(help="Share that may be flushed to zero.")] = 0.05,
    subnormal: Annotated[float, typer.Option(help="Share that may lose digits as subnormal numbers.")] = 0.1,
    emit: Annotated[
        bool, typer.Option("--emit", help="Write a precision map and a Hydra config that uses it to DIR.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what --emit finds there.")] = False,
) -> None:
    """Say which number format each layer of a run could have, and which loss scales fit."""
    if directory is not None and not emit:
        raise ConfigError(f"Nothing is written to {_shown(directory)} without --emit; accepted: --emit with it.")
    from mp_plugin.report.advice_files import how_to_use, how_to_use_in_python, write_advice
    from mp_plugin.report.advice_table import advice_view
    from mp_plugin.telemetry.advise import advise
    from mp_plugin.telemetry.store import open_run
    from mp_plugin.telemetry.tolerances import Tolerances

    recorded = open_run(run)
    advice = advise(recorded, Tolerances(overflow=overflow, flushed=flushed, subnormal=subnormal))
    _tell_damaged(recorded)
    _print(advice_view(advice, show_all=show_all))
    if emit:
        map_path, config_path = write_advice(recorded, advice, directory or Path("advised"), overwrite=force)
        typer.echo(f"\nWrote {_shown(map_path)} and {_shown(config_path)}.")
        typer.echo(f"With Hydra: {how_to_use(map_path.parent)}")
        typer.echo(f"In Python: {_printable(how_to_use_in_python(advice, map_path))}")


@app.command()
def report(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The run's directory, or one above it.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
    force: Annotated[bool, typer.Option("--force", help="Replace the page if it exists.")] = False,
    terminal: Annotated[bool, typer.Option("--terminal", help="Show the run here and write no page.")] = False,
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> None:
    """Turn what a run has recorded into a page, while it goes on or after its end, however that came."""
    if not terminal:
        _check_free(output, force=force)

    from mp_plugin.telemetry.store import open_run

    recorded = open_run(run)
    if terminal:
        from mp_plugin.report.terminal import terminal_report

        _print(terminal_report(recorded))
        return
    from mp_plugin.report.page import build_page
    from mp_plugin.report.verdict import verdict

    page = build_page(recorded)
    _check_free(output, force=force)  # once more: a page of many samples takes seconds
    _write(output, page)
    _tell_damaged(recorded)
    typer.echo(f"{_shown(output)}\n{verdict(recorded).sentence}")
    if open_:
        import webbrowser

        if not webbrowser.open(output.absolute().as_uri()):
            typer.echo(f"mp-plugin: there is no browser here to open {_shown(output)}.", err=True)


@app.command()
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN...", help="Directories of runs, or above them: a sweep's.", show_default=False),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A page to write besides.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the page, or the JSON file, if it exists.")] = False,
    margin: Annotated[
        float | None,
        typer.Option(
            help="Largest difference that is taken for none, in the metric's unit: 0.005 is half a point of accuracy.",
            show_default="0.005; 1% of the reference's mean if the metric is no share",
        ),
    ] = None,
    fail_if_worse: Annotated[
        float | None,
        typer.Option(
            help="Exit with 3 if a precision is worse than the reference by more than this, in the metric's "
            "unit (0.005 is half a point of accuracy); with 4 if it is not shown to be no worse.",
            show_default=False,
        ),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="The metric to judge by.", show_default="accuracy before loss, of the test split")
    ] = None,
    higher_is_better: Annotated[
        bool | None,
        typer.Option("--higher-is-better/--lower-is-better", help="Of the metric.", show_default="as its name tells"),
    ] = None,
    reference: Annotated[str | None, typer.Option(help="The precision to compare with.", show_default="fp32")] = None,
    price_per_hour: Annotated[
        float | None, typer.Option(help="Of one device, to tell what a run costs.", show_default=False)
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="A JSON file to write besides.", show_default=False)
    ] = None,
) -> None:
    """Tell what lower precision cost in accuracy and what it saved, from runs of several precisions and seeds."""
    written = [each for each in (output, json_file) if each is not None]
    for path in written:
        _check_free(path, force=force)
    from mp_plugin.compare import compare_runs
    from mp_plugin.compare.as_json import comparison_json
    from mp_plugin.compare.terminal import comparison_view

    comparison = compare_runs(
        runs,
        metric=metric,
        higher_is_better=higher_is_better,
        margin=margin,
        reference=reference,
        fail_if_worse=fail_if_worse,
        price_per_hour=price_per_hour,
    )
    _tell_damaged(comparison)
    _print(comparison_view(comparison))
    if output is not None:
        from mp_plugin.compare.page import build_comparison_page

        _write(output, build_comparison_page(comparison))
    if json_file is not None:
        _write(json_file, comparison_json(comparison))
    for path in written:
        typer.echo(_shown(path))
    if comparison.exit_status:
        raise typer.Exit(comparison.exit_status)


def _print(view: "RenderableType") -> None:
    from rich.console import Console

    console = Console()
    # In a narrower one names would be the first to go. Better that its lines break.
    console.width = max(console.width, NARROWEST)
    console.print(view)


def _write(output: Path, text: str) -> None:
    from mp_plugin.whole_file import write_whole

    try:
        write_whole(output, text)
    except OSError as error:
        raise ConfigError(
            f"{output} cannot be written ({error.strerror or error}); accepted: --output with another place."
        ) from error


def _check_free(output: Path, *, force: bool) -> None:
    if os.path.isdir(output):
        raise ConfigError(f"{output} is a directory; accepted: --output with the name of a file.")
    if not force and os.path.lexists(output):
        raise ConfigError(f"{output} exists already; accepted: --force to replace it, or --output with another name.")


def _tell_damaged(run: "Run | Comparison") -> None:
    if not run.damaged:
        return
    from mp_plugin.report.words import counted, shown_name

    parts = [f"  {_shown(path)}: {shown_name(why, 200)}" for path, why in run.damaged[:LISTED_DAMAGED]]
    if len(run.damaged) > LISTED_DAMAGED:
        parts.append(f"  and {len(run.damaged) - LISTED_DAMAGED:,} more")
    head = f"mp-plugin: {counted(len(run.damaged), 'part')} of the record could not be read:"
    typer.echo("\n".join([head, *parts]), err=True)


def _shown(path: Path) -> str:
    from mp_plugin.report.words import shown_name

    return shown_name(str(path), 4096)


def main() -> None:
    """Run the command; an error of this package or of the system is one sentence, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of layers and files may be anything
    try:
        app()
    except (MpPluginError, OSError) as error:
        typer.echo(f"mp-plugin: {_printable(str(error))}", err=True)
        sys.exit(1)


def _printable(message: str) -> str:
    from mp_plugin.report.words import printable

    return "\n".join(printable(line) for line in message.split("\n"))
