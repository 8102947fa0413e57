"""``medgen translate``: makes an image of one contrast from images of others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medgen.cli.common import Device, Overwrite, one_line_errors, progress_bar, warn

__all__ = ["translate"]


@one_line_errors
def translate(
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="OUT", help="The new image: .nii.gz, .nii, or a folder for DICOM."),
    ],
    model: Annotated[str, typer.Option("-m", "--model", help="Folder of a model of task 'translate'.")],
    images: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODALITY=PATH...",
            help="Images of one person, aligned: NIfTI or DICOM folders; any may be missing.",
        ),
    ] = None,
    input_: Annotated[
        list[str] | None, typer.Option("-i", "--input", metavar="MODALITY=PATH", help="The same, as an option.")
    ] = None,
    mode: Annotated[
        Literal["mean", "sample"],
        typer.Option(help="mean: the expected image, the smallest error; sample: a plausible, textured one."),
    ] = "mean",
    samples: Annotated[int, typer.Option(min=1, help="With --mode sample: the mean of so many samples.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the samples.")] = 0,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR", help="A scan of the wanted modality, of anybody: gives the unit of the result."
        ),
    ] = None,
    uncertainty: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the standard deviation of the samples.")
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option("--condition", metavar="NAME=VALUE", help="What is asked for. May be repeated."),
    ] = None,
    plane: Annotated[
        Literal["axial", "coronal", "sagittal", "all"],
        typer.Option(help="Slices of a 2D model; all: the mean of three planes, for models trained on any."),
    ] = "axial",
    mirror: Annotated[
        bool, typer.Option("--mirror", help="Average with what is made of the mirror image: twice the time.")
    ] = False,
    num_inference_steps: Annotated[int | None, typer.Option(min=1, help="Steps of the sampler.")] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Make an image of a model's modality from others of the same person, on the first one's grid."""
    from medgen.cli.modalities import images_by_modality
    from medgen.cohort.conditions import requested
    from medgen.restoration.sources import loaded
    from medgen.restoration.translate import translate_file

    chosen = loaded(model, "translate", device)
    given = images_by_modality([*(images or []), *(input_ or [])], chosen.spec.source_modalities, chosen.spec.name)
    asked = requested(chosen.spec.name, chosen.spec.controls, condition or [], command="translate")
    options: dict[str, Any] = {} if num_inference_steps is None else {"num_inference_steps": num_inference_steps}
    with progress_bar("translating") as progress:
        report = translate_file(
            given, output,
            model=chosen, mode=mode, samples=samples, seed=seed, reference=reference, uncertainty=uncertainty,
            conditions=asked, plane=plane, mirror=mirror, overwrite=overwrite,
            callback=progress, **options,
        )  # fmt: skip
    typer.echo(f"{chosen.spec.modality} from {', '.join(report.sources)}: {output}")
    if report.missing:
        warn(f"{', '.join(report.missing)} not given: the result goes by the rest.")
    if reference is None:
        unit = chosen.spec.intensity.unit
        warn(f"values are in the model's unit ({unit}); --reference FILE takes that of a scan.")
    for finding in report.findings:
        warn(finding)
    typer.echo(f"record: {report.record}")
