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


def main() -> None:
    """Run the command; an error of this package is one sentence, not a traceback."""
    try:
        app()
    except MpPluginError as error:
        typer.echo(f"mp-plugin: {error}", err=True)
        sys.exit(1)
