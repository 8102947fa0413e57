"""``medgen import``: a model folder from another program's files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medgen.cli.common import Overwrite, one_line_errors

__all__ = ["import_model"]


@one_line_errors
def import_model(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A MONAI bundle, a diffusers folder, or a file of weights.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The model folder to make.")],
    config: Annotated[
        Path, typer.Option("--config", metavar="YAML", help="What the source does not say: name, grid, scheduler, ...")
    ],
    overwrite: Overwrite = False,
) -> None:
    """Make a medgen model of another program's. Files are read as data: nothing in them runs."""
    from medgen.models.interop.importer import import_model as run

    digest = run(source, output, config, overwrite=overwrite)
    typer.echo(f"model: {output}")
    typer.echo(f"sha256: {digest}")
