"""The `mp-plugin` command. Torch is imported by the commands that need it, not by `--help`."""

import sys
from typing import Annotated

import typer

from mp_plugin._version import __version__
from mp_plugin.errors import MpPluginError

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
    run: Annotated[str, typer.Argument(help="The directory of a run that was sampled with histograms.")],
    show_all: Annotated[bool, typer.Option("--all", help="Show every layer, not only the worst.")] = False,
    overflow: Annotated[float, typer.Option(help="Share of a layer's values that may overflow.")] = 0.0,
    flushed: Annotated[float, typer.Option(help="Share that may be flushed to zero.")] = 0.05,
    subnormal: Annotated[float, typer.Option(help="Share that may lose digits as subnormal numbers.")] = 0.1,
    emit: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write a precision map and a Hydra config that uses it there.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace what --emit finds there.")] = False,
) -> None:
    """Say which number format each layer of a run could have, and which loss scales fit."""
    from rich.console import Console

    from mp_plugin.report.advice_files import write_advice
    from mp_plugin.report.advice_table import advice_view
    from mp_plugin.telemetry.advise import advise
    from mp_plugin.telemetry.store import open_run
    from mp_plugin.telemetry.tolerances import Tolerances

    opened = open_run(run)
    advice = advise(opened, Tolerances(overflow=overflow, flushed=flushed, subnormal=subnormal))
    Console().print(advice_view(advice, show_all=show_all))
    if emit is not None:
        map_path, config_path = write_advice(opened, advice, emit, overwrite=force)
        typer.echo(f"\nWrote {map_path} and {config_path}.")
        typer.echo(f"Use: python train.py --config-dir {map_path.parent} precision=advised")


def main() -> None:
    """Run the command; an error of this package is one sentence, not a traceback."""
    try:
        app()
    except MpPluginError as error:
        typer.echo(f"mp-plugin: {error}", err=True)
        sys.exit(1)
