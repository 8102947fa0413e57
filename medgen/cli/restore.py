"""``medgen restore``: scans denoised, super-resolved, filled or corrected."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from medgen.cli.common import Device, Overwrite, one_line_errors, progress_bar, warn

if TYPE_CHECKING:
    from medgen.restoration.batch import BatchSummary
    from medgen.restoration.batch_process import Limits
    from medgen.restoration.settings import RestoreSettings

__all__ = ["restore"]

_LONGEST_TABLE = 40
_LOG_SECONDS = 30.0
_WIDEST_NAME = 48


@one_line_errors
def restore(
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="A NIfTI file, a folder with a DICOM series, or a tree of them.")
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="OUT", help="A .nii.gz or .nii file for one scan, else a folder."),
    ],
    task: Annotated[
        Literal["denoise", "superres", "inpaint", "motion", "bias"], typer.Option(help="What is to be undone.")
    ],
    method: Annotated[
        Literal["model", "classical"],
        typer.Option(help="classical, without a model: non-local means, N4, cubic spline, biharmonic continuation."),
    ] = "model",
    model: Annotated[
        str | None,
        typer.Option("-m", "--model", help="Bundled restorer, or a model folder. By default the one for the task."),
    ] = None,
    uncertainty: Annotated[
        bool, typer.Option("--uncertainty", help="Write maps of the expected error and of the 90% interval, too.")
    ] = False,
    samples: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="K",
            help="For denoise, superres, inpaint: draw K images that the scan allows, NAME_sample-1.nii.gz ...; OUT is "
            "their mean (0 samples give a better estimate), the maps of --uncertainty are theirs. Those of inpaint are "
            "made of the rest of the scan.",
        ),
    ] = 0,
    seed: Annotated[
        int, typer.Option(min=0, help="With --samples: of the first; of inpaint, 0 begins with the best.")
    ] = 0,
    prior: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="With --samples of superres: the denoising restorer drawn with."),
    ] = None,
    mask: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="For inpaint, on the scan's grid: 0 = keep, one other value = fill. NIfTI or DICOM SEG.",
        ),
    ] = None,
    noise_level: Annotated[
        float | None,
        typer.Option(metavar="L", help="For denoise: its deviation over the scan's 99.9th percentile, 0.05 is 5%."),
    ] = None,
    target_spacing: Annotated[
        float | None,
        typer.Option(metavar="Z", help="For superres: mm between slices. By default as in the slices' plane."),
    ] = None,
    slice_profile: Annotated[
        str | None, typer.Option(metavar="NAME", help="For superres: box, gaussian (by default), sinc or slr.")
    ] = None,
    select: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITIONS",
            help="Only DICOM series for which all hold: 'Modality=MR SeriesDescription~T1' (= equal, ~ contains).",
        ),
    ] = None,
    include: Annotated[
        list[str] | None,
        typer.Option(metavar="CODE", help="Restore OWN_OUTPUT, DERIVED or DIFFUSION too. Repeatable."),
    ] = None,
    settle: Annotated[
        float, typer.Option(min=0.0, metavar="MIN", help="Leave series alone whose newest file is younger.")
    ] = 0.0,
    nifti: Annotated[bool, typer.Option("--nifti", help="Write NIfTI, not DICOM, for DICOM input.")] = False,
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, metavar="N", help="Scans at once.")] = 1,
    timeout: Annotated[float | None, typer.Option(metavar="S", help="Give a scan up that takes more seconds.")] = None,
    max_memory: Annotated[
        float | None, typer.Option(metavar="GB", help="Give a scan up whose process takes more memory.")
    ] = None,
    guard: Annotated[
        Literal["refuse", "warn", "off"],
        typer.Option(help="Scans that the model's card excludes: refuse them, go on with a remark, or do not look."),
    ] = "refuse",
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run: keep what is finished.")] = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
) -> None:
    """Restore scans in their own intensities and geometry, one or a whole tree, unattended.

    A DICOM series comes out as a derived series of the same study, anything else as NIfTI, each with a JSON file that
    says how it was made; OUT/report.json accounts for every file of INPUT. In a tree, what medgen made, derived and
    diffusion series and localizers are skipped. Without a terminal, stderr has a JSON line for each scan; the README,
    "Unattended runs", has its fields and those of the report.

    Exit status: 0: all is restored; 3: something was refused or failed, and the rest is restored; 1: nothing is
    restored; 2: wrong usage, or an OUT that exists without --overwrite or --resume; 130: interrupted.
    """
    if not source.exists():
        raise typer.BadParameter(f"INPUT '{source}' does not exist")
    from medgen.restoration.settings import RestoreSettings

    with _usage_errors():
        settings = RestoreSettings(
            task, method, model, uncertainty, mask, noise_level, target_spacing, slice_profile, device, nifti, guard,
            samples, seed, prior,
        )  # fmt: skip
    from medgen.io.convert import OutputExists  # what takes seconds to import comes after what is told without it
    from medgen.restoration.batch_process import Limits
    from medgen.restoration.batch_select import check_include, parsed_selection
    from medgen.restoration.restore_file import is_file_output

    with _usage_errors():
        if select is not None:
            parsed_selection(select)
        check_include(include or ())
        limits = Limits(timeout, None if max_memory is None else int(max_memory * 2**30))
    try:
        with _quiet():
            if is_file_output(output):
                if select is not None or include or settle or jobs > 1:
                    raise typer.BadParameter("--select, --include, --settle and --jobs go with a folder as OUT")
                _one(source, output, settings, limits, resume=resume, overwrite=overwrite)
                return
            summary = _batch(
                source, output, settings,
                jobs=jobs, resume=resume, overwrite=overwrite, select=select, settle_minutes=settle,
                include=include or (), limits=limits,
            )  # fmt: skip
    except OutputExists as error:
        raise typer.BadParameter(str(error)) from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt("interrupted: what is finished stays; continue with --resume") from None
    _tell(summary, output)
    raise typer.Exit(summary.status)


def _one(source: Path, output: Path, settings: RestoreSettings, limits: Limits, **how: bool) -> None:
    from medgen.restoration.restore_file import restore_file

    log = _log()
    with progress_bar("restoring") if log is None else _progress_logged(log) as progress:
        row = restore_file(source, output, settings, limits=limits, progress=progress, **how)
    typer.echo(f"{'kept' if row['kept'] else 'restored'}: {output}")
    for key, value in row["figures"].items():
        typer.echo(f"{key}: {value:.4g}")
    if row["outdated"]:
        warn(f"what '{output}' held was of another input or other settings, and was replaced.")
    for remark in row["remarks"]:
        warn(remark)
    if row["clipped"]:
        warn(f"{row['clipped']} values were clipped to what the scan's stored type can hold.")


def _batch(source: Path, output: Path, settings: RestoreSettings, **how: Any) -> BatchSummary:
    from medgen.restoration.batch import restore_batch

    with progress_bar("restoring") as progress, _errors_logged():
        return restore_batch(source, output, settings, progress=progress, log=_log(), **how)


def _log() -> Callable[[Mapping[str, Any]], None] | None:
    """A function that writes an event as a JSON line on stderr; None on a terminal, which has a bar instead."""
    if sys.stderr.isatty():
        return None

    def write(event: Mapping[str, Any]) -> None:
        typer.echo(json.dumps(event, sort_keys=True), err=True)

    return write


@contextmanager
def _progress_logged(log: Callable[[Mapping[str, Any]], None]) -> Iterator[Callable[[int, int], None]]:
    """A function of (done, total) that writes an event, ``_LOG_SECONDS`` apart at least."""
    last = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= _LOG_SECONDS:
            last = time.monotonic()
            log({"event": "progress", "done": done, "total": total})

    yield tell


@contextmanager
def _errors_logged() -> Iterator[None]:
    """What ends a run is an event, too, where there is a log."""
    from medgen.checks import MedgenError
    from medgen.io.convert import OutputExists

    log = _log()
    try:
        yield
    except OutputExists:
        raise
    except (MedgenError, OSError) as error:
        if log is not None:
            log({"event": "error", "reason": error.strerror if isinstance(error, OSError) else str(error)})
        raise


@contextmanager
def _usage_errors() -> Iterator[None]:
    """Wrong options, told as such."""
    from medgen.checks import MedgenError

    try:
        yield
    except MedgenError as error:
        raise typer.BadParameter(str(error)) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """No warning of a library reaches the terminal or the log: it may quote a patient's header."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _tell(summary: BatchSummary, output: Path) -> None:
    """A table of the scans, a line for the files, a line for each code of what is no scan."""
    from medgen.io.listing import shown

    cases = summary.report["cases"]
    chosen = cases if len(cases) <= _LONGEST_TABLE else [row for row in cases if row["status"] != "restored"]
    names = [shown(row["name"]) + (f" ({row['files']} files)" if row.get("files", 1) > 1 else "") for row in chosen]
    width = min(_WIDEST_NAME, max(map(len, names), default=0))
    for name, row in list(zip(names, chosen, strict=True))[:_LONGEST_TABLE]:
        what = row["path"] if row["status"] == "restored" else f"{row['code']}: {row['reason']}"
        typer.echo(f"{name:<{width}}  {row['status']:<8}  {shown(what)}")
    if len(chosen) > _LONGEST_TABLE:
        typer.echo(f"... and {len(chosen) - _LONGEST_TABLE} more: see the report")
    counts, kept = summary.report["counts"], f", {summary.kept} of them before" if summary.kept else ""
    for what, numbers in (("scans", counts["cases"]), ("files", counts)):
        states = ", ".join(f"{numbers[state]} {state}" for state in ("restored", "skipped", "refused", "failed"))
        typer.echo(f"{numbers['found']} {what}: {states}{kept if what == 'scans' else ''}")
    codes: dict[str, list[str]] = {}
    for row in summary.report["files"]:
        if row["case"] is None and row["code"]:
            codes.setdefault(row["code"], []).append(f"{row['path']}: {row['reason']}")
    for code, texts in sorted(codes.items()):
        typer.echo(f"{code}: {shown(texts[0])}" + (f" ({len(texts) - 1} more)" if len(texts) > 1 else ""))
    typer.echo(f"report: {shown(output / 'report.json')}")
    for text in summary.warnings if _log() is None else ():  # which has them already
        warn(text)
