"""``medgen harmonize``: gives a scan the style of other scans."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from medgen.cli.common import Device, Overwrite, one_line_errors, progress_bar, warn

__all__ = ["harmonize"]


@one_line_errors
def harmonize(
    output: Annotated[
        Path,
        typer.Option(
            "-o", "--output", metavar="OUT", help="The harmonized scan: .nii.gz, .nii, or a folder for DICOM."
        ),
    ],
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="The scan: NIfTI, or a folder with one DICOM series.")
    ] = None,
    input_: Annotated[Path | None, typer.Option("-i", "--input", metavar="IMAGE", help="The scan, instead.")] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option(
            "-r", "--reference", metavar="FILE|DIR", help="A scan of the wanted style, of anybody. Repeatable."
        ),
    ] = None,
    method: Annotated[
        Literal["histogram", "landmarks", "texture", "model"],
        typer.Option(
            help="histogram: all quantiles of the body; landmarks: eleven of them, robust to lesions; texture: "
            "histogram and the strength of detail; model: a style that was learnt (--model)."
        ),
    ] = "histogram",
    strength: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the way to the wanted style.")] = 1.0,
    model: Annotated[
        str | None,
        typer.Option(
            "-m", "--model", help="Folder of a model of task 'translate' from the scan's style to the wanted one."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="With a model that draws.")] = 0,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Give a scan contrast and texture of another scanner; its anatomy and geometry stay."""
    given = input_ or image
    if given is None or (input_ is not None and image is not None):
        raise typer.BadParameter("give the scan: medgen harmonize IMAGE -r REFERENCE -o OUT")
    if (method == "model") != (model is not None):
        raise typer.BadParameter("--model and --method model go together")
    if method != "model" and not reference:
        raise typer.BadParameter("give at least one scan of the wanted style: -r REFERENCE")
    if model is not None:
        _learnt(given, reference or [], output, model, seed, overwrite, device)
        return
    from medgen.restoration.harmonize import harmonize_file

    report = harmonize_file(
        given, reference or [], output, method=method, strength=strength, overwrite=overwrite
    )  # fmt: skip
    typer.echo(f"difference of quantiles {report.before:.4g} -> {report.after:.4g}: {output}")
    if report.clipped:
        warn(f"{report.clipped} new values were clipped to what the scan's stored type can hold.")
    for finding in report.findings:
        warn(finding)
    typer.echo(f"record: {report.record}")


def _learnt(
    image: Path, reference: list[Path], output: Path, model: str, seed: int, overwrite: bool, device: str
) -> None:
    """The style of a translation model."""
    from medgen.checks import MedgenError
    from medgen.restoration.sources import loaded
    from medgen.restoration.translate import translate_file

    chosen = loaded(model, "translate", device)
    if len(chosen.spec.source_modalities) != 1 or len(reference) > 1:
        raise MedgenError("harmonize: a model must take one image, and one reference at most gives the unit.")
    with progress_bar("harmonizing") as progress:
        report = translate_file(
            {chosen.spec.source_modalities[0]: image}, output,
            model=chosen, seed=seed, reference=reference[0] if reference else None, overwrite=overwrite,
            callback=progress,
        )  # fmt: skip
    typer.echo(f"in the style of {chosen.spec.name}: {output}")
    for finding in report.findings:
        warn(finding)
    typer.echo(f"record: {report.record}")
