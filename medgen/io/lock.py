"""One process at a time for an output: a folder, or a file and what lies beside it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from medgen.checks import MedgenError

__all__ = ["LOCK", "Locked", "locked"]

LOCK = ".medgen-lock"


class Locked(MedgenError):
    """Another process writes the output."""


@contextmanager
def locked(output: Path, stem: str | None = None) -> Iterator[None]:
    """Holds an output's lock in the block.

    The system gives the lock back when the process that holds it ends, however it ends: a lock file that a dead process
    left is taken over.

    Args:
        output: a folder that exists, or a file in one.
        stem: of a file: what its name and those of the files that belong to it begin with. None: it is a folder.

    Raises:
        Locked: a process that lives has it.
    """
    path = output / LOCK if stem is None else output.with_name(f"{LOCK}-{stem}")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not _taken(descriptor):
                holder = os.read(descriptor, 200).decode("ascii", "replace").strip() or "another process"
                raise Locked(f"'{output}' is in use by {holder}. Wait until it ends, or choose another output.")
            if _is_file(path, descriptor):
                _sign(descriptor)
                try:
                    yield
                finally:
                    with contextlib.suppress(PermissionError):  # Windows removes no open file; the next run takes it
                        path.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)


def _taken(descriptor: int) -> bool:
    """Whether the lock could be had at once."""
    try:
        import fcntl
    except ImportError:  # Windows
        return _taken_on_windows(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _taken_on_windows(descriptor: int) -> bool:
    import msvcrt

    try:
        os.lseek(descriptor, 1 << 20, os.SEEK_SET)  # beyond the text, which others read
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
    except OSError:
        return False
    finally:
        os.lseek(descriptor, 0, os.SEEK_SET)
    return True


def _is_file(path: Path, descriptor: int) -> bool:
    """Whether the file is still the one of that name: its holder takes it away when it ends."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:
        return False


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.lseek(descriptor, 0, os.SEEK_SET)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode("ascii", "replace"))
