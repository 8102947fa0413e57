"""``medgen train``: a model from a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medgen.cli.common import Device, Overwrite, one_line_errors

__all__ = ["train"]


@one_line_errors
def train(
    config: Annotated[
        str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped configuration.")
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the run; model in DIR/model.")
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Changes to the configuration, data=PATH first."),
    ] = None,
    data: Annotated[
        str | None, typer.Option("-i", "--input", metavar="PATH", help="Your data: the same as data=PATH.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run exactly.")] = False,
    fast_dev_run: Annotated[bool, typer.Option("--fast-dev-run", help="Everything once, as a check.")] = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Train a model. Data: a MONAI datalist JSON, a BIDS tree, or folders of images and labels."""
    from medgen.io.configs import find_config

    path = find_config(config)
    changes = [*(overrides or []), *([f"data={data}"] if data is not None else [])]
    from medgen.trainers import train as run

    run(path, output, overrides=changes, resume=resume, overwrite=overwrite, fast_dev_run=fast_dev_run, device=device)
    typer.echo(f"model: {output / 'model'}")
