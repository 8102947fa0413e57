"""The commands of ``medgen`` put together."""

from __future__ import annotations

from typing import Annotated

import typer

from medgen.cli.convert import convert
from medgen.cli.edit import edit
from medgen.cli.generate import generate
from medgen.cli.harmonize import harmonize
from medgen.cli.import_model import import_model
from medgen.cli.inpaint import inpaint
from medgen.cli.inspect import inspect
from medgen.cli.models import models
from medgen.cli.reconstruct import reconstruct
from medgen.cli.restore import restore
from medgen.cli.segment import segment
from medgen.cli.train import train
from medgen.cli.translate import translate

__all__ = ["app"]

app = typer.Typer(
    help="Synthetic, labelled medical volumes, and scans edited, translated or filled, with generative models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    inspect, convert, generate, inpaint, restore, translate, edit, harmonize, segment, reconstruct, train, models,
):  # fmt: skip
    app.command()(command)
app.command("import")(import_model)


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
    """Synthetic, labelled medical volumes, and scans edited, translated or filled, with generative models."""
