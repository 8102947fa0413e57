"""What all commands share: options, errors in one line, progress on a terminal."""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any, ParamSpec, TypeVar

import typer

from medgen.checks import MedgenError

__all__ = [
    "Budget", "Channels", "Device", "EachFrame", "MaskNonFinite", "Overwrite", "WithoutGeometry", "note",
    "one_line_errors", "progress_bar", "warn",
]  # fmt: skip

P = ParamSpec("P")
R = TypeVar("R")

Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda[:N]|mps", help="Where to compute.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an output that exists.")]
EachFrame = Annotated[bool, typer.Option("--each-frame", help="Take the volumes of a 4D file one by one.")]
MaskNonFinite = Annotated[
    bool, typer.Option("--mask-non-finite", help="Replace NaN and infinity by 0; otherwise they are refused.")
]
Channels = Annotated[bool, typer.Option("--channels", help="Take colours and complex numbers as channels.")]
WithoutGeometry = Annotated[
    bool, typer.Option("--without-geometry", help="Take files without a place in space, voxels as mm (no DICOM).")
]
Budget = Annotated[
    float, typer.Option("--memory-budget", min=0.001, metavar="GB", help="Refuse a volume that needs more memory.")
]


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Makes a command end on the user's faults with one line on stderr and status 1, on Ctrl-C with status 130.

    What the library warns of is one line too.
    """

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with _warnings_in_one_line():
                return command(*args, **kwargs)
        except BrokenPipeError:  # the reader of our output left: nothing to say to anyone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except (MedgenError, OSError, MemoryError) as error:
            typer.echo(f"medgen: error: {_one_line(error)}", err=True)
            raise typer.Exit(1) from None
        except KeyboardInterrupt as stopped:
            typer.echo(f"medgen: {' '.join(str(stopped).split()) or 'interrupted'}", err=True)
            raise typer.Exit(130) from None

    return wrapped


def warn(text: str) -> None:
    """One line on stderr: something that may be wrong."""
    typer.echo(f"medgen: warning: {text}", err=True)


def note(text: str) -> None:
    """One line on stderr: something that was done and is to be known."""
    typer.echo(f"medgen: note: {text}", err=True)


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Within the block a ``UserWarning`` is shown by :func:`warn`, without the place in the code."""
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, UserWarning):
                warn(" ".join(str(message).split()))
            else:
                usual(message, category, *place, **more)

        warnings.showwarning = show
        yield


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A function of (done, total) that moves a bar on stderr, if that is a terminal; otherwise it does nothing."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _one_line(error: BaseException) -> str:
    """What an error says, without class name and line breaks."""
    if isinstance(error, MemoryError):
        return "not enough memory. Close other programs, or use a smaller volume."
    if isinstance(error, OSError) and error.strerror:
        where = f": '{error.filename}'" if error.filename else ""
        return f"{error.strerror}{where}. Check free space and permissions of the output."
    return " ".join(str(error).split()) or type(error).__name__
