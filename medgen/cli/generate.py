"""``medgen generate``: a labelled cohort from a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medgen.cli.common import Device, Overwrite, one_line_errors, progress_bar

__all__ = ["generate"]


@one_line_errors
def generate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name of a bundled model (see 'medgen models'), or a model folder.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the cohort, a new one.")],
    n: Annotated[int, typer.Option("-n", "--number", min=1, help="How many subjects.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Of the first subject; the next ones use seed + 1, + 2, ...")] = 0,
    num_inference_steps: Annotated[
        int | None, typer.Option(min=1, help="Steps of the sampler; by default the model's.")
    ] = None,
    sampler: Annotated[str | None, typer.Option(help="Name of the sampler; by default the model's.")] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(help="Strength of classifier-free guidance; by default the model's.")
    ] = None,
    label: Annotated[
        Path | None,
        typer.Option("--label", "-i", "--input", metavar="FILE", help="Label map to make all images for (NIfTI)."),
    ] = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the complete subjects, make the missing ones.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Generate labelled volumes: image, label map and provenance of each subject, and a contact sheet."""
    from medgen.checks import check_choice
    from medgen.cohort.generate import generate_cohort
    from medgen.diffusion.samplers import SAMPLERS
    from medgen.io.nifti import read_nifti
    from medgen.models.bundled import load_model

    if sampler is not None:
        check_choice("generate", "sampler", sampler, SAMPLERS)
    given = None if label is None else read_nifti(label, role="label")
    loaded = load_model(model, device=device)
    with progress_bar("generating") as progress:
        summary = generate_cohort(
            loaded, n, output, seed,
            sampler=sampler, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            label=given, overwrite=overwrite, resume=resume, progress=progress,
        )  # fmt: skip
    kept = len(summary.subjects) - summary.made
    made = f"{summary.made} subject{'' if summary.made == 1 else 's'} made"
    typer.echo(f"{made}{f', {kept} kept' if kept else ''}: {summary.folder}")
    typer.echo(f"contact sheet: {summary.contact_sheet}")
