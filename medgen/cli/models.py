"""``medgen models``: what there is to generate with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medgen.cli.common import one_line_errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from medgen.models.bundled import ModelSummary

__all__ = ["models"]


@one_line_errors
def models(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="FOLDER", help="A model folder, or a folder of them; by default the bundled models."),
    ] = None,
    input_: Annotated[Path | None, typer.Option("-i", "--input", metavar="FOLDER", help="FOLDER, instead.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the list as JSON.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
    device: Annotated[
        str | None, typer.Option("--device", metavar="auto|cpu|cuda[:N]|mps", help="Also try to load each one there.")
    ] = None,
) -> None:
    """List the bundled models, or those in a folder, each verified."""
    from medgen.models.bundled import describe_models

    if folder is not None and input_ is not None:
        raise typer.BadParameter("give the folder once, as FOLDER or with -i")
    summaries = describe_models(folder or input_)
    if device is not None:
        _load_each(summaries, device)
    rows = [_row(summary) for summary in summaries]
    if output is not None:
        from medgen.io.atomic import write_json

        write_json(output, rows)
    _print_json(rows) if as_json else _print_table(summaries)
    if any(summary.problem for summary in summaries):
        raise typer.Exit(1)


def _load_each(summaries: Sequence[ModelSummary], device: str) -> None:
    """Loads every sound model, so that a device that cannot hold one is found out."""
    from medgen.models.bundled import load_model

    for summary in summaries:
        if summary.problem is None:
            load_model(summary.path, device=device)


def _row(summary: ModelSummary) -> dict[str, Any]:
    from dataclasses import asdict

    return {key: str(value) if isinstance(value, Path) else value for key, value in asdict(summary).items()}


def _print_json(rows: list[dict[str, Any]]) -> None:
    import json

    typer.echo(json.dumps(rows, indent=2, sort_keys=True))


def _print_table(summaries: Sequence[ModelSummary]) -> None:
    """One block a model: what it makes, how large, and what is wrong with it."""
    if not summaries:
        typer.echo("no models")
    for summary in summaries:
        if summary.problem is not None:
            typer.echo(f"{summary.name}: cannot be loaded: {summary.problem}")
            continue
        size = " x ".join(map(str, summary.size))
        spacing = " x ".join(f"{step:g}" for step in summary.spacing)
        typer.echo(
            f"{summary.name} {summary.version}  {summary.family}, {summary.task}, {summary.modality}, "
            f"{size} voxels of {spacing} mm"
        )
        typer.echo(f"    {summary.description}")
        typer.echo(
            f"    {summary.parameters / 1e6:.2f} M parameters, {summary.bytes / 1e6:.1f} MB, "
            f"licence {summary.licence}, hash {summary.hash[:12]}"
        )
