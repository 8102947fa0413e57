"""``medgen segment``: plausible label maps of an image, and where they disagree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medgen.cli.common import Device, Overwrite, one_line_errors, progress_bar, warn

__all__ = ["segment"]


@one_line_errors
def segment(
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT", help="What most samples agree on: .nii.gz or .nii.")
    ],
    model: Annotated[str, typer.Option("-m", "--model", help="Folder of a model of task 'segment'.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODALITY=]PATH...", help="Images of one person, aligned: NIfTI or DICOM folders."),
    ] = None,
    input_: Annotated[
        list[str] | None, typer.Option("-i", "--input", metavar="[MODALITY=]PATH", help="The same, as an option.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="How many label maps to draw.")] = 8,
    seed: Annotated[int, typer.Option(min=0, help="Of the first one.")] = 0,
    disagreement: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the share of samples that differ, voxel by voxel.")
    ] = None,
    every_sample: Annotated[
        bool, typer.Option("--every-sample", help="Also write each sample: OUT_sample-1.nii.gz, ...")
    ] = False,
    plane: Annotated[Literal["axial", "coronal", "sagittal"], typer.Option(help="Slices of a 2D model.")] = "axial",
    num_inference_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the sampler.")] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Draw several label maps that fit an image; write what they agree on, volumes and the Dice between them."""
    from medgen.cli.modalities import images_by_modality
    from medgen.restoration.segment import segment_file
    from medgen.restoration.sources import loaded

    chosen = loaded(model, "segment", device)
    given = images_by_modality([*(images or []), *(input_ or [])], chosen.spec.source_modalities, chosen.spec.name)
    options: dict[str, Any] = {} if num_inference_steps is None else {"num_inference_steps": num_inference_steps}
    with progress_bar("segmenting") as progress:
        report = segment_file(
            given, output,
            model=chosen, samples=samples, seed=seed, plane=plane, disagreement=disagreement, every_sample=every_sample,
            overwrite=overwrite, callback=progress, **options,
        )  # fmt: skip
    for name, volume in report.volumes_ml.items():
        agreement = f", Dice between samples {report.dice[name]:.3f}" if name in report.dice else ""
        typer.echo(f"{name}: {volume:.2f} ml +- {report.deviations_ml[name]:.2f}{agreement}")
    missing = [name for name, volume in report.volumes_ml.items() if not volume]
    if missing:
        warn(f"no sample shows {', '.join(missing)}.")
    for finding in report.findings:
        warn(finding)
    typer.echo(f"label map: {output}")
    typer.echo(f"record: {report.record}")
