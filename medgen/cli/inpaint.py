"""``medgen inpaint``: fills a hole in a scan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from medgen.cli.common import Device, Overwrite, one_line_errors, progress_bar, warn

__all__ = ["inpaint"]


@one_line_errors
def inpaint(
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="OUT", help="The filled scan: .nii.gz, .nii, or a folder for DICOM."),
    ],
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="The scan: NIfTI, or a folder with one DICOM series.")
    ] = None,
    inpaint_mask: Annotated[
        Path | None,
        typer.Argument(
            metavar="INPAINT_MASK", help="On the scan's grid: 0 = keep, otherwise regenerate. NIfTI or DICOM SEG."
        ),
    ] = None,
    input_: Annotated[Path | None, typer.Option("-i", "--input", metavar="IMAGE", help="The scan, instead.")] = None,
    model: Annotated[str, typer.Option(help="Name of a bundled model, or a model folder.")] = "brain-t1-inpaint",
    mode: Annotated[
        Literal["mean", "sample"],
        typer.Option(help="mean: the expected image, smooth, the smallest error; sample: a plausible, textured one."),
    ] = "mean",
    samples: Annotated[int, typer.Option(min=1, help="With --mode sample: the mean of so many samples.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 0,
    picture: Annotated[Path | None, typer.Option(metavar="PNG", help="Also draw scan, hole and result.")] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Fill a hole in a scan. Every voxel outside INPAINT_MASK keeps its stored value, bit for bit.

    A JSON file beside the output says that and how it was made. A DICOM series comes out as a derived series of the
    same study where OUT is a folder.
    """
    files = [file for file in (input_, image, inpaint_mask) if file is not None]
    if len(files) != 2:
        raise typer.BadParameter("give the scan and the inpaint mask: medgen inpaint IMAGE INPAINT_MASK -o OUT")
    from medgen.restoration.inpaint import inpaint_file

    with progress_bar("filling") as progress:
        report = inpaint_file(
            files[0], files[1], output,
            model=model, mode=mode, samples=samples, seed=seed, picture=picture, overwrite=overwrite, device=device,
            callback=lambda sample, step: progress(sample, samples),
        )  # fmt: skip
    typer.echo(f"regenerated {100 * report.fraction:.2f}% of the volume: {output}")
    if report.fraction > 0.5:
        warn("more than half of the volume was regenerated: little of the scan is left to go by.")
    if report.clipped:
        warn(f"{report.clipped} new values were clipped to what the scan's stored type can hold.")
    for finding in report.findings:
        warn(finding)
    typer.echo(f"record: {report.record}")
    if picture is not None:
        typer.echo(f"picture: {picture}")
