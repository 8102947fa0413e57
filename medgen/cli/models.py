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
        typer.Argument(
            metavar="MODEL|FOLDER",
            help="A model (folder, training run or bundled name), or a folder of models and runs; by default the "
            "bundled models.",
        ),
    ] = None,
    input_: Annotated[Path | None, typer.Option("-i", "--input", metavar="FOLDER", help="The same, instead.")] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write the list as JSON.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
    show_details: Annotated[
        bool, typer.Option("--details", help="Say what each takes and can be asked for, as is done of a single model.")
    ] = False,
    device: Annotated[
        str | None, typer.Option("--device", metavar="auto|cpu|cuda[:N]|mps", help="Also try to load each one there.")
    ] = None,
) -> None:
    """List the bundled models, or those in a folder, each verified; of a single one, what it can be asked for."""
    from medgen.models.bundled import describe_models

    if folder is not None and input_ is not None:
        raise typer.BadParameter("give the folder once, as FOLDER or with -i")
    place = folder or input_
    summaries = describe_models(place)
    if device is not None:
        _load_each(summaries, device)
    if output is not None:
        from medgen.io.atomic import write_json

        write_json(output, [_row(summary) for summary in summaries])
    if as_json:
        _print_json([_row(summary) for summary in summaries])
    else:
        single = place is not None and len(summaries) == 1
        _print_table(summaries, places=place is not None, with_details=show_details or single)
    if any(summary.problem for summary in summaries):
        raise typer.Exit(1)


def _load_each(summaries: Sequence[ModelSummary], device: str) -> None:
    """Loads every sound model, so that a device that cannot hold one is found out."""
    from medgen.models.bundled import load_model

    for summary in summaries:
        if summary.problem is None:
            load_model(summary.path, device=device)


def _row(summary: ModelSummary) -> dict[str, Any]:
    """All there is to say of a model, in plain JSON types."""
    from dataclasses import asdict

    from medgen.cli.model_details import details
    from medgen.models.folder import read_spec

    row = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(summary).items()}
    return row if summary.problem else row | details(read_spec(summary.path))


def _print_json(rows: list[dict[str, Any]]) -> None:
    import json

    typer.echo(json.dumps(rows, indent=2, sort_keys=True))


def _print_table(summaries: Sequence[ModelSummary], *, places: bool, with_details: bool) -> None:
    """One block a model: what it makes, how large, and what is wrong with it; where it lies and what it takes."""
    from medgen.cli.model_details import details_text
    from medgen.models.folder import read_spec

    if not summaries:
        typer.echo("no models")
    for summary in summaries:
        if summary.problem is not None:
            typer.echo(f"{summary.path if places else summary.name}: cannot be loaded: {summary.problem}")
            continue
        size = " x ".join(map(str, summary.size))
        spacing = " x ".join(f"{step:g}" for step in summary.spacing)
        lines = [
            summary.description,
            f"{summary.parameters / 1e6:.2f} M parameters, {summary.bytes / 1e6:.1f} MB, "
            f"licence {summary.licence}, hash {summary.hash[:12]}",
        ]
        typer.echo(
            f"{summary.name} {summary.version}  {summary.family}, {summary.task}, {summary.modality}, "
            f"{size} voxels of {spacing} mm"
        )
        lines += [f"folder: {summary.path}"] if places else []
        lines += details_text(read_spec(summary.path)) if with_details else []
        for line in lines:
            typer.echo(f"    {line}")
    if not with_details and summaries:
        typer.echo("conditions, labels and options: add --details, or name one model")
