"""Files and folders that appear complete or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from medgen.checks import MedgenError

__all__ = ["atomic_directory", "atomic_path", "check_writable", "remove_unfinished", "write_json"]


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its name when the block ends without an error.

    The temporary name keeps the suffixes of ``path`` (a writer that chooses its format by them is not misled). A file
    of the same name is replaced in one step; after an error it stays as it was, and the temporary file is removed.

    Args:
        path: the final file; its folder is made if missing.

    Yields:
        The temporary path to write to.

    Raises:
        MedgenError: ``path`` is a folder, or its folder cannot be made or written.
        OSError: the disk is full, or the like, while writing.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with atomic_path(folder / "a.txt") as temporary:
        ...     _ = temporary.write_text("whole")
        >>> (folder / "a.txt").read_text(), len(list(folder.iterdir()))
        ('whole', 1)
    """
    path = Path(path)
    if path.is_dir():
        raise MedgenError(f"cannot write '{path}': it is a folder. Give the name of a file.")
    _make_folder(path.parent)
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.{path.name}")
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: str | os.PathLike[str], overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its name when the block ends without an error.

    Args:
        path: the final folder.
        overwrite: replace a folder of that name; the old one stays until the new one is complete.

    Yields:
        The temporary folder to fill.

    Raises:
        MedgenError: ``path`` exists and ``overwrite`` is false, or its parent cannot be made or written.
        OSError: the disk is full, or the like, while writing.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise MedgenError(f"'{path}' exists. Choose another output, or allow to overwrite it.")
    if path.exists() and not path.is_dir():
        raise MedgenError(f"cannot write the folder '{path}': a file has that name. Choose another output.")
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}")
    try:
        _make_folder(temporary)
        yield temporary
        for file in sorted(temporary.rglob("*")):
            _sync_folder(file) if file.is_dir() else _sync(file)
        _replace_folder(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes ``content`` as sorted, indented JSON, atomically: the same bytes for the same content.

    Args:
        path: the final file.
        content: anything JSON holds; NaN and infinity are refused.

    Raises:
        ValueError: ``content`` holds NaN or infinity.
        MedgenError: ``path`` cannot be written.
    """
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    with atomic_path(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def remove_unfinished(folder: Path, name: str | None = None) -> None:
    """Takes away what a process that was killed left unfinished in a folder.

    Args:
        folder: where it wrote.
        name: of the file or folder to be; None: any.
    """
    final = ".+" if name is None else re.escape(name)
    pattern = re.compile(rf"\.[0-9a-f]{{12}}\.{final}|\.{final}\.[0-9a-f]{{12}}(\.old)?")
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if pattern.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _replace_folder(temporary: Path, path: Path) -> None:
    """Renames ``temporary`` to ``path``; what was there goes aside first and is put back if that fails."""
    if not path.exists():
        os.rename(temporary, path)
    else:
        aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.old")
        os.rename(path, aside)
        try:
            os.rename(temporary, path)
        except OSError:
            os.rename(aside, path)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    _sync_folder(path.parent)


def _make_folder(folder: Path) -> None:
    """Makes ``folder`` and checks that files can be made in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MedgenError(
            f"cannot make the folder '{folder}': {error.strerror}. Choose an output that can be written."
        ) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise MedgenError(f"cannot write in the folder '{folder}'. Choose an output that can be written.")


def check_writable(path: str | os.PathLike[str]) -> None:
    """Refuses an output that cannot be made, before the work for it is done; nothing is made.

    Args:
        path: a file or folder to be, or that is.

    Raises:
        MedgenError: the nearest folder that exists cannot be written, or is a file.
    """
    path = Path(path).absolute()
    there = next(parent for parent in (path, *path.parents) if parent.exists())
    if there != path and not there.is_dir():
        raise MedgenError(f"cannot write '{path}': '{there}' is a file. Choose another output.")
    if not os.access(there, os.W_OK):
        raise MedgenError(f"cannot write '{path}': no permission in '{there}'. Choose an output that can be written.")


def _sync(file: Path) -> None:
    """Waits until the bytes of ``file`` are on the disk; this is where a full disk shows at the latest."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: Path) -> None:
    """Waits until the names in ``folder`` are on the disk, where the system allows it (Windows does not)."""
    with suppress(OSError):
        _sync(folder)
