"""``medgen edit``: changes a scan with a diffusion model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medgen.cli.common import Device, Overwrite, one_line_errors, progress_bar, warn

__all__ = ["edit"]


@one_line_errors
def edit(
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="OUT", help="The edited scan: .nii.gz, .nii, or a folder for DICOM."),
    ],
    model: Annotated[
        str,
        typer.Option("-m", "--model", help="Name of a bundled model, or a model folder: what scans look like to it."),
    ],
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="The scan: NIfTI, or a folder with one DICOM series.")
    ] = None,
    input_: Annotated[Path | None, typer.Option("-i", "--input", metavar="IMAGE", help="The scan, instead.")] = None,
    strength: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="Of the sampling steps done again, above 0 (one step at least); 1 keeps nothing."
        ),
    ] = 0.5,
    method: Annotated[
        Literal["sdedit", "inversion"],
        typer.Option(
            help="sdedit: noise is added and taken out again; inversion: the noise behind the scan is sought under "
            "--source-condition and taken out under --condition, so that only their difference changes."
        ),
    ] = "sdedit",
    condition: Annotated[
        list[str] | None,
        typer.Option("--condition", metavar="NAME=VALUE", help="What is asked for. May be repeated."),
    ] = None,
    source_condition: Annotated[
        list[str] | None,
        typer.Option("--source-condition", metavar="NAME=VALUE", help="With inversion: what the scan is."),
    ] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="What is asked for, in words.")] = None,
    inpaint_mask: Annotated[
        Path | None,
        typer.Option(
            "--inpaint-mask", metavar="FILE", help="Region to change, on the scan's grid; outside no bit changes."
        ),
    ] = None,
    label: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Label map on the scan's grid: the anatomy that is wanted.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="The mean of so many edits.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the noise.")] = 0,
    num_inference_steps: Annotated[int | None, typer.Option(min=1, help="Steps of a whole run.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Strength of classifier-free guidance.")] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Change a scan as a model sees fit, or towards what is asked for; a record of it stands beside the output."""
    from medgen.cohort.conditions import requested
    from medgen.restoration.edit import edit_file, editor

    given = input_ or image
    if given is None or (input_ is not None and image is not None):
        raise typer.BadParameter("give the scan: medgen edit IMAGE --model MODEL -o OUT")
    chosen = editor(model, device)
    name, controls = chosen.spec.name, chosen.spec.controls
    options: dict[str, Any] = {
        "conditions": requested(name, controls, condition or [], prompt, command="edit"),
        "source_conditions": requested(name, controls, source_condition or [], command="edit"),
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
    }
    with progress_bar("editing") as progress:
        report = edit_file(
            given, output,
            model=chosen, strength=strength, method=method, inpaint_mask=inpaint_mask, label=label, samples=samples,
            seed=seed, overwrite=overwrite, callback=progress, **options,
        )  # fmt: skip
    share = f"{report.voxels} voxels ({100 * report.fraction:.3g}% of the volume)"
    typer.echo(f"changed by {report.change:.1f}% of its range over {share}: {output}")
    if report.clipped:
        warn(f"{report.clipped} new values were clipped to what the scan's stored type can hold.")
    for finding in report.findings:
        warn(finding)
    typer.echo(f"record: {report.record}")
