"""``medgen reconstruct``: a scan through an autoencoder and back."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from medgen.cli.common import Device, Overwrite, one_line_errors

__all__ = ["reconstruct"]


@one_line_errors
def reconstruct(
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="OUT", help="The result: .nii.gz, .nii; .png, .tif; or a folder for DICOM."
        ),
    ],
    model: Annotated[str, typer.Option("-m", "--model", help="Folder of an autoencoder.")],
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="The scan: NIfTI, picture, or folder of a DICOM series.")
    ] = None,
    input_: Annotated[Path | None, typer.Option("-i", "--input", metavar="IMAGE", help="The scan, instead.")] = None,
    label: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Its label map, where the model encodes one.")
    ] = None,
    latent: Annotated[Path | None, typer.Option(metavar="FILE.npy", help="Also write the standardised latent.")] = None,
    plane: Annotated[Literal["axial", "coronal", "sagittal"], typer.Option(help="Slices of a 2D model.")] = "axial",
    memory_budget: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="GB", help="Work slab by slab within this memory; the result is the same."),
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Encode and decode a scan; the result lies on the scan's own grid."""
    given = [file for file in (input_, image) if file is not None]
    if len(given) != 1:
        raise typer.BadParameter("give one scan: medgen reconstruct IMAGE -m MODEL -o OUT")
    from medgen.restoration.reconstruct import reconstruct_file

    shape = reconstruct_file(
        given[0], output,
        model=model, label=label, latent=latent, plane=plane, memory_budget_gb=memory_budget, overwrite=overwrite,
        device=device,
    )  # fmt: skip
    typer.echo(f"reconstruction: {output}")
    typer.echo(f"latent of {' x '.join(map(str, shape))}{f': {latent}' if latent is not None else ''}")
