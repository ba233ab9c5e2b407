"""The application that commands are registered on, and its entry point."""

import sys
from typing import Annotated

import typer
from rich.markup import escape

from smgrid import __version__
from smgrid.cli.console import ERR, OUT
from smgrid.errors import SmgridError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Field-scale soil moisture from open data: build a cube, train, map, inspect.",
)


def main() -> None:
    """Run the command line and turn errors that smgrid foresees into one line and an exit code."""
    try:
        app()
    except SmgridError as error:
        text = f"[bold red]error:[/] {escape(str(error))}"
        ERR.print(text, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)


def _version(show: bool) -> None:
    if show:
        OUT.print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None: ...
