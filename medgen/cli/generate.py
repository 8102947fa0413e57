"""``medgen generate``: a labelled cohort from a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from medgen.cli.common import Device, Overwrite, note, one_line_errors, progress_bar

__all__ = ["generate"]

RESERVED = (
    "n", "seed", "label", "conditions", "callback", "sampler", "num_inference_steps", "guidance_scale",
)  # fmt: skip


@one_line_errors
def generate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Name of a bundled model (see 'medgen models'), or a model folder.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the cohort, a new one.")],
    n: Annotated[
        int | None,
        typer.Option("-n", "--number", min=1, help="How many subjects; by default one, or one for each label map."),
    ] = None,
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
        typer.Option(
            "--label",
            "-i",
            "--input",
            metavar="FILE|DIR",
            help="Label map to make all images for, or a folder of them, one for each subject in turn; brought to the "
            "model's grid.",
        ),
    ] = None,
    condition: Annotated[
        list[str] | None,
        typer.Option(
            "--condition",
            metavar="NAME=VALUE",
            help="What is asked for, such as size=large; volume_ml=2.5:4.0 spreads a number over the subjects. May be "
            "repeated. What is not asked for is drawn as in the training data.",
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What is asked for, in words, of a model that listens to text.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="Another setting of the model's family. May be repeated."),
    ] = None,
    format: Annotated[
        Literal["nifti", "png", "tiff"] | None,
        typer.Option(help="Of the files: nifti for volumes, png (default) or tiff for slices."),
    ] = None,
    overwrite: Overwrite = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the complete subjects, make the missing ones.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Generate labelled volumes: image, label map and provenance of each subject, and a contact sheet."""
    from medgen.checks import check_choice
    from medgen.cohort.conditions import requested
    from medgen.cohort.generate import generate_cohort
    from medgen.cohort.labels import LabelFolder, read_label
    from medgen.diffusion.samplers import SAMPLERS
    from medgen.models.bundled import load_model

    if sampler is not None:
        check_choice("generate", "sampler", sampler, SAMPLERS)
    settings = _settings(option or [])
    given = None if label is None else LabelFolder(label) if label.is_dir() else read_label(label)
    count = n if n is not None else len(given) if isinstance(given, LabelFolder) else 1
    loaded = load_model(model, device=device)
    asked = requested(loaded.spec.name, loaded.spec.controls, condition or [], prompt)
    with progress_bar("generating") as progress:
        summary = generate_cohort(
            loaded, count, output, seed,
            sampler=sampler, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale,
            options=settings, label=given, conditions=asked, format=format, overwrite=overwrite, resume=resume,
            progress=progress, notify=note,
        )  # fmt: skip
    kept = len(summary.subjects) - summary.made
    made = f"{summary.made} subject{'' if summary.made == 1 else 's'} made"
    typer.echo(f"{made}{f', {kept} kept' if kept else ''}: {summary.folder}")
    typer.echo(f"contact sheet: {summary.contact_sheet}")


def _settings(options: list[str]) -> dict[str, Any]:
    """``["truncation=0.7"]`` as settings; values are read as YAML."""
    import yaml

    from medgen.checks import MedgenError

    found = {}
    for option in options:
        name, sign, value = option.partition("=")
        if name in RESERVED or name in found:
            raise MedgenError(f"--option {name} is given twice, or has an option of its own (--help). Give it once.")
        if not sign or not name.isidentifier():
            raise MedgenError(f"--option must be NAME=VALUE, such as truncation=0.7. Got '{option}'.")
        try:
            found[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise MedgenError(f"--option {name}: '{value}' cannot be read. Give a number or a word.") from None
    return found
