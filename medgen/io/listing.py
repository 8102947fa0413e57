"""Every file below a folder, once, and which of them are not worth opening.

Links to folders are followed once: a folder that was listed already, by its own name or another one, is not entered
again, so that loops end. Devices, pipes and sockets are never opened.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medgen.checks import MedgenError
from medgen.io.findings import FileRecord

__all__ = ["Listing", "as_text", "list_files", "shown"]

_PART_10 = 132


@dataclass
class Listing:
    """What lies below some paths.

    Args:
        readable: ordinary files, in the order of their paths.
        records: what is skipped or refused without a look inside; ``readable`` and these are all there is.
        names: of each path, how a report calls it: relative to the folder that was given, with ``/``.
        links: folders that were reached a second time, and were not entered: name and what it leads to.
        roots: the paths that were given.
    """

    readable: list[Path] = field(default_factory=list)
    records: list[FileRecord] = field(default_factory=list)
    names: dict[Path, str] = field(default_factory=dict)
    links: list[tuple[str, str]] = field(default_factory=list)
    roots: tuple[Path, ...] = ()


def list_files(paths: Sequence[Path], exclude: Path | None = None) -> Listing:
    """All files at and below ``paths``.

    Args:
        paths: files and folders that exist.
        exclude: a folder that is left out with all that is in it (an output inside the input).

    Returns:
        Every file once. Hidden files (a name, below a given folder, that begins with a dot) are skipped as
        ``HIDDEN_FILE``, what is no ordinary file as ``SPECIAL_FILE``, files of no bytes as ``EMPTY_FILE``, a link to a
        file that is listed anyway as ``SAME_FILE``; a link to nothing is refused as ``BROKEN_LINK``, what cannot be
        opened as ``UNREADABLE``.

    Raises:
        MedgenError: a path does not exist.
    """
    listing = Listing(roots=tuple(paths))
    walk = _Walk(listing, _identity(exclude) if exclude is not None else None)
    for path in paths:
        if not os.path.lexists(path):
            raise MedgenError(f"'{shown(path)}' does not exist. Check the path.")
        if path.is_dir():
            walk.folder(path, "" if len(paths) == 1 else f"{path.as_posix()}/")
        else:
            walk.file(path, path.name if len(paths) == 1 else path.as_posix(), hidden=False)
    walk.finish()
    return listing


def as_text(text: str) -> str:
    """A path as text that JSON files take: bytes of a name that are not Unicode become ``\\xff``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def shown(path: object) -> str:
    """A path or text that any terminal can take: what is not Unicode or not printable is escaped.

    Example:
        >>> print(shown("a\\x1b[31m\\n.txt"))
        a\\x1b[31m\\n.txt
    """
    text = as_text(os.fspath(path) if isinstance(path, os.PathLike) else str(path))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class _Walk:
    """One pass over folders: real ones first, then those that only links lead to."""

    def __init__(self, listing: Listing, excluded: tuple[int, int] | None) -> None:
        self.listing = listing
        self.entered: set[tuple[int, int]] = set() if excluded is None else {excluded}
        self.excluded = excluded
        self.linked_folders: list[tuple[Path, str, bool]] = []
        self.linked_files: list[tuple[Path, str]] = []
        self.real_files: set[tuple[int, int]] = set()

    def folder(self, path: Path, prefix: str, hidden: bool = False) -> None:
        """Lists a folder and the folders in it; links wait until the end."""
        waiting = [(path, prefix, hidden)]
        while waiting:
            path, prefix, hidden = waiting.pop()
            identity = _identity(path)
            if identity is None or identity in self.entered:
                if identity is not None and identity != self.excluded:
                    self.listing.links.append((prefix.rstrip("/") or ".", os.path.realpath(path)))
                continue
            self.entered.add(identity)
            waiting += reversed(list(self._entries(path, prefix, hidden)))

    def _entries(self, folder: Path, prefix: str, hidden: bool) -> Iterator[tuple[Path, str, bool]]:
        """Files of a folder are noted; its folders are given back."""
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            self._note(folder, prefix.rstrip("/") or ".", "refused", "UNREADABLE", _why(error))
            return
        for entry in entries:
            path, name, dotted = Path(entry.path), prefix + entry.name, hidden or entry.name.startswith(".")
            if entry.is_dir(follow_symlinks=False):
                yield path, f"{name}/", dotted
            elif entry.is_symlink() and path.is_dir():
                self.linked_folders.append((path, f"{name}/", dotted))
            else:
                self.file(path, name, dotted)

    def file(self, path: Path, name: str, hidden: bool) -> None:
        """Notes what is not a folder."""
        try:
            status = path.stat()
        except OSError as error:
            link = path.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP, errno.ENOTDIR)
            why = "a link that leads to nothing" if link else _why(error)
            self._note(path, name, "refused", "BROKEN_LINK" if link else "UNREADABLE", why)
            return
        if hidden:
            held = " (it looks like a DICOM file: rename it to have it read)" if _is_part_10(path, status) else ""
            self._note(path, name, "skipped", "HIDDEN_FILE", f"its name, or its folder's, begins with a dot{held}")
        elif not stat.S_ISREG(status.st_mode):
            self._note(path, name, "skipped", "SPECIAL_FILE", "a pipe, socket or device")
        elif status.st_size == 0:
            self._note(path, name, "skipped", "EMPTY_FILE", "it holds no bytes")
        elif not os.access(path, os.R_OK):
            self._note(path, name, "refused", "UNREADABLE", "no permission to read it")
        elif path.is_symlink():
            self.linked_files.append((path, name))
        else:
            self.real_files.add((status.st_dev, status.st_ino))
            self._keep(path, name)

    def finish(self) -> None:
        """Enters the folders that links lead to, judges links to files, and puts all in order."""
        while self.linked_folders:
            waiting, self.linked_folders = self.linked_folders, []
            for path, prefix, hidden in waiting:
                self.folder(path, prefix, hidden)
        for path, name in self.linked_files:
            identity = _identity(path)
            if identity in self.real_files:
                self._note(path, name, "skipped", "SAME_FILE", f"a link to '{shown(os.path.realpath(path))}', read too")
            elif identity is not None:
                self.real_files.add(identity)
                self._keep(path, name)
        self.listing.readable.sort(key=self.listing.names.__getitem__)

    def _keep(self, path: Path, name: str) -> None:
        if path not in self.listing.names:
            self.listing.names[path] = name
            self.listing.readable.append(path)

    def _note(self, path: Path, name: str, status: str, code: str, reason: str) -> None:
        if path not in self.listing.names:
            self.listing.names[path] = name
            record = FileRecord(path, "refused" if status == "refused" else "skipped", code, reason)
            self.listing.records.append(record)


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells two folders or files apart, whatever they are called; None where there is nothing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _is_part_10(path: Path, status: os.stat_result) -> bool:
    """Whether an ordinary file has the four letters of a DICOM file."""
    if not stat.S_ISREG(status.st_mode) or status.st_size < _PART_10:
        return False
    try:
        with open(path, "rb") as file:
            return file.read(_PART_10)[128:] == b"DICM"
    except OSError:
        return False


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
