"""The commands of ``medgen`` put together."""

from __future__ import annotations

from typing import Annotated

import typer

from medgen.cli.convert import convert
from medgen.cli.generate import generate
from medgen.cli.inpaint import inpaint
from medgen.cli.inspect import inspect
from medgen.cli.models import models
from medgen.cli.train import train

__all__ = ["app"]

app = typer.Typer(
    help="Synthetic, labelled medical volumes and inpainted scans with diffusion models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (inspect, convert, generate, inpaint, train, models):
    app.command()(command)


def _version(wanted: bool) -> None:
    if wanted:
        from medgen import __version__

        typer.echo(f"medgen {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Synthetic, labelled medical volumes and inpainted scans with diffusion models."""
