"""``medgen inspect``: what is in files and folders, before anything is done with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from medgen.cli.common import Budget, Channels, EachFrame, MaskNonFinite, WithoutGeometry, one_line_errors

if TYPE_CHECKING:
    from medgen.io.survey import FullSurvey

__all__ = ["inspect"]

_SHOWN = 5


@one_line_errors
def inspect(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH...", help="Files and folders with anything in them.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
    load: Annotated[bool, typer.Option("--load", help="Read the voxels too, which may show more.")] = False,
    each_frame: EachFrame = False,
    channels: Channels = False,
    mask_non_finite: MaskNonFinite = False,
    without_geometry: WithoutGeometry = False,
    memory_budget: Budget = 8.0,
) -> None:
    """Show the volumes in files and folders, their geometry and findings, and why other files are none.

    Exit status: 0: nothing was refused; 3: something was; 1: there is no volume; 2: wrong usage.
    """
    for path in paths:
        if not path.exists():
            raise typer.BadParameter(f"PATH '{path}' does not exist")
    from medgen.io.report import exit_status
    from medgen.io.survey import ReadOptions, survey

    found = survey(
        paths, ReadOptions(each_frame, channels, mask_non_finite, without_geometry, int(memory_budget * 2**30))
    )
    content = _content(found, load)
    _print_json(content) if as_json else _print_tables(content)
    readable = sum(row["refused"] is None for row in content["volumes"])
    raise typer.Exit(exit_status(content["files"], readable, len(content["volumes"]) - readable))


def _content(found: FullSurvey, load: bool) -> dict[str, Any]:
    """Everything as plain JSON; volumes go by their names, which may be the same twice."""
    from medgen.io.names import unique_names
    from medgen.io.report import Refusal, file_rows, findings_of, geometry_of, report

    names = unique_names(volume.name for volume in found.volumes)
    refusals: dict[int, Refusal] = {}
    if load:
        refusals = _loaded(found)
    volumes = []
    for position, volume in enumerate(found.volumes):
        refusal = refusals.get(position)
        volumes.append(
            {
                "name": names[position],
                "modality": getattr(volume, "modality", None),
                "file_count": len(volume.files),
                **geometry_of(volume),
                **findings_of(volume.findings),
                "refused": None if refusal is None else {"code": refusal.code, "reason": refusal.reason},
            }
        )
    called = [None if position in refusals else name for position, name in enumerate(names)]
    return report(found, file_rows(found, called, refusals), volumes)


def _loaded(found: FullSurvey) -> dict[int, Any]:
    """Loads each volume, and lets it go again: refusals by position."""
    from medgen.cli.common import progress_bar
    from medgen.io.convert import loaded
    from medgen.io.report import Refusal

    refusals = {}
    with progress_bar("reading") as progress:
        for position, volume in enumerate(found.volumes):
            outcome = loaded(volume)
            if isinstance(outcome, Refusal):
                refusals[position] = outcome
            progress(position + 1, len(found.volumes))
    return refusals


def _print_json(content: dict[str, Any]) -> None:
    import json

    typer.echo(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False))


def _print_tables(content: dict[str, Any]) -> None:
    """Volumes, then refused files by reason, then skipped ones by code."""
    from rich.console import Console
    from rich.table import Table

    from medgen.io.listing import shown

    console = Console(highlight=False, markup=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = 160
    count = len(content["volumes"])
    title = "1 volume" if count == 1 else f"{count} volumes"
    if count:
        table = Table(title=title, title_justify="left")
        for column in ("volume", "kind", "files", "voxels", "spacing (mm)", "axes", "findings"):
            table.add_column(column, overflow="fold", no_wrap=column in ("voxels", "axes"))
        for row in content["volumes"]:
            table.add_row(*_cells(row))
        console.print(table)
    for row in content["volumes"]:
        for text in row["finding_texts"]:
            console.print(shown(f"{row['name']}: {text}"))
    _print_files(console, content["files"], "refused")
    _print_files(console, content["files"], "skipped")
    for link in content["links"]:
        console.print(shown(f"link not followed: {link['path']}: {link['to']}"))
    counts = content["counts"]
    console.print(
        f"{counts['found']} files: {counts['used']} used, {counts['skipped']} skipped, {counts['refused']} refused"
    )


def _cells(row: dict[str, Any]) -> list[str]:
    """One volume as a line of the table."""
    what = ", ".join(row["findings"]) if row["refused"] is None else f"refused: {row['refused']['code']}"
    return [
        row["name"],
        row["modality"] or "",
        str(row["file_count"]),
        " x ".join(map(str, row["shape"])),
        " x ".join(f"{step:.4g}" for step in row["spacing"]),
        row["orientation"],
        what,
    ]


def _print_files(console: Any, files: list[dict[str, Any]], status: str) -> None:
    """Files of one status by code, those of one reason together; of each code the first ones."""
    from medgen.io.listing import shown

    groups: dict[str, dict[str, list[str]]] = {}
    for row in files:
        if row["status"] == status:
            groups.setdefault(row["code"], {}).setdefault(row["reason"], []).append(row["path"])
    for code, reasons in groups.items():
        for reason, paths in list(reasons.items())[:_SHOWN]:
            names = ", ".join(paths[:3]) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
            console.print(shown(f"{status} {code}: {names}: {reason}"))
        rest = [path for paths in list(reasons.values())[_SHOWN:] for path in paths]
        if rest:
            console.print(f"{status} {code}: {len(rest)} more files; --json lists them")
