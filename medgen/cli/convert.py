"""``medgen convert``: volume files to NIfTI, or to a DICOM series."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from medgen.cli.common import (
    Budget,
    Channels,
    EachFrame,
    MaskNonFinite,
    Overwrite,
    WithoutGeometry,
    one_line_errors,
    progress_bar,
    warn,
)

if TYPE_CHECKING:
    from medgen.io.convert import ConvertSummary

__all__ = ["convert"]


@one_line_errors
def convert(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A folder with anything in it, or one file.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="The output, a folder.")],
    to: Annotated[Literal["nifti", "dicom"], typer.Option("--to", help="What to write.")] = "nifti",
    reference: Annotated[
        Path | None,
        typer.Option(metavar="SERIES_DIR", help="With --to dicom: the series of the patient and study to belong to."),
    ] = None,
    modality: Annotated[
        Literal["MR", "CT"] | None, typer.Option(help="With --to dicom: by default that of the reference, or MR.")
    ] = None,
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, metavar="N", help="Processes to convert with.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a conversion: keep what is finished.")] = False,
    overwrite: Overwrite = False,
    each_frame: EachFrame = False,
    channels: Channels = False,
    mask_non_finite: MaskNonFinite = False,
    without_geometry: WithoutGeometry = False,
    memory_budget: Budget = 8.0,
) -> None:
    """Convert DICOM series and other volumes to DST/NAME.nii.gz, or one volume to a DICOM series in DST.

    DST/report.json accounts for every file of SRC. Exit status: 0: nothing was refused; 3: something was, and the rest
    is converted; 1: nothing was readable; 2: wrong usage, or a DST that exists without --overwrite or --resume.
    """
    if to == "nifti" and (reference is not None or modality is not None):
        raise typer.BadParameter("--reference and --modality go with --to dicom")
    if not source.exists():
        raise typer.BadParameter(f"SRC '{source}' does not exist")
    from medgen.io.convert import OutputExists
    from medgen.io.survey import ReadOptions

    options = ReadOptions(each_frame, channels, mask_non_finite, without_geometry, int(memory_budget * 2**30))
    try:
        with progress_bar("converting") as progress:
            if to == "dicom":
                from medgen.io.convert_dicom import convert_to_dicom

                summary = convert_to_dicom(
                    source, destination, options,
                    reference=reference, modality=modality, resume=resume, overwrite=overwrite,
                )  # fmt: skip
            else:
                from medgen.io.convert import convert as run

                summary = run(
                    source, destination, options, jobs=jobs, resume=resume, overwrite=overwrite, progress=progress
                )
    except OutputExists as error:
        raise typer.BadParameter(str(error)) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted: what is finished stays; continue with --resume") from None
    _tell(summary, destination)
    raise typer.Exit(summary.status)


def _tell(summary: ConvertSummary, destination: Path) -> None:
    """A line for the volumes, one for the files, one for each kind of refusal."""
    from medgen.io.listing import shown

    counts = summary.report["counts"]
    kept = f", {summary.kept} kept" if summary.kept else ""
    typer.echo(f"{summary.made} volume{'' if summary.made == 1 else 's'} written{kept}: {shown(destination)}")
    typer.echo(
        f"{counts['found']} files: {counts['used']} used, {counts['skipped']} skipped, {counts['refused']} refused"
    )
    refused: dict[str, list[str]] = {}
    for row in summary.report["files"]:
        if row["status"] == "refused":
            refused.setdefault(row["code"], []).append(shown(f"{row['path']}: {row['reason']}"))
    for code, texts in refused.items():
        warn(f"{code}: {texts[0]}" + (f" ({len(texts) - 1} more with this code)" if len(texts) > 1 else ""))
    typer.echo(f"report: {shown(destination / 'report.json')}")
