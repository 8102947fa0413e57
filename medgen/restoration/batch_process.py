"""Scans restored one after the other here, or each in a process of its own, which may be stopped.

A process that takes too long or too much memory is killed, and so is every one when the parent is interrupted or dies.
That is safe at any moment: outputs appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from medgen.checks import check_positive
from medgen.io.convert import no_interruption
from medgen.restoration.batch_case import Case, DiskFault, Row, case_row, clear_case, run_case

__all__ = ["Limits", "outcomes"]

_POLL_SECONDS = 0.1
_KIB = 1024


@dataclass(frozen=True)
class Limits:
    """What a scan may take.

    Args:
        seconds: of time; None: any.
        memory_bytes: resident at once, checked ten times a second; None: any.

    Raises:
        MedgenError: one that is not above 0.
    """

    seconds: float | None = None
    memory_bytes: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("timeout", self.seconds), ("max_memory", self.memory_bytes)):
            if value is not None:
                check_positive("restore", name, value)

    def __bool__(self) -> bool:
        return self.seconds is not None or self.memory_bytes is not None


def outcomes(cases: Sequence[Case], jobs: int, limits: Limits) -> Generator[tuple[int, Row, float], None, None]:
    """Position, row and seconds of each case, in any order.

    Args:
        cases: to be run.
        jobs: at once; with more than one, or with limits, each runs in a process of its own.
        limits: of each case.

    Raises:
        DiskFault: the output cannot be written.
    """
    if jobs == 1 and not limits:
        for position, case in enumerate(cases):
            start = time.monotonic()
            yield position, run_case(case), time.monotonic() - start
        return
    yield from _Pool(cases, jobs, limits).run()


@dataclass
class _Running:
    position: int
    process: Any
    results: Connection
    start: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start


class _Pool:
    """Cases in processes of their own, at most ``jobs`` at once."""

    def __init__(self, cases: Sequence[Case], jobs: int, limits: Limits) -> None:
        self.cases, self.jobs, self.limits = cases, jobs, limits
        self.waiting = list(range(len(cases)))[::-1]
        self.running: list[_Running] = []
        self.context = _context()
        self.threads = max(1, torch.get_num_threads() // jobs)

    def run(self) -> Generator[tuple[int, Row, float], None, None]:
        try:
            while self.waiting or self.running:
                while self.waiting and len(self.running) < self.jobs:
                    self._start(self.waiting.pop())
                ends = [end for one in self.running for end in (one.results, one.process.sentinel)]
                wait(ends, _POLL_SECONDS)
                for one in list(self.running):
                    row = self._ended(one)
                    if row is not None:
                        self.running.remove(one)
                        yield one.position, row, one.seconds
        finally:
            for one in self.running:
                self._stop(one)

    def _start(self, position: int) -> None:
        ours, theirs = self.context.Pipe(duplex=False)
        arguments = (self.cases[position], theirs, self.threads)
        process = self.context.Process(target=_child, args=arguments, daemon=True)
        with no_interruption():  # it starts here, and must not take Ctrl-C for its own
            process.start()
        theirs.close()
        self.running.append(_Running(position, process, ours))

    def _ended(self, one: _Running) -> Row | None:
        """The row of a process that ended or had to be ended; None while it may run on."""
        case, seconds, memory = self.cases[one.position], self.limits.seconds, self.limits.memory_bytes
        dead = not one.process.is_alive()
        if one.results.poll():
            with contextlib.suppress(EOFError):
                row = one.results.recv()
                one.process.join()
                one.results.close()
                if isinstance(row, str):
                    raise DiskFault(row)
                return dict(row)
        if dead:
            self._stop(one)
            return case_row(case, "failed", "CRASHED", f"its process died ({_end(one.process.exitcode)})")
        if seconds is not None and one.seconds > seconds:
            self._stop(one)
            return case_row(case, "failed", "TIMEOUT", f"it took more than the {seconds:g} s that are allowed")
        if memory is not None and _resident_bytes(one.process.pid) > memory:
            self._stop(one)
            text = f"it took more than the {memory / 2**30:g} GB of memory that are allowed"
            return case_row(case, "failed", "OUT_OF_MEMORY", text)
        return None

    def _stop(self, one: _Running) -> None:
        """Kills a process and takes away what it left."""
        one.process.kill()
        one.process.join()
        one.results.close()
        clear_case(self.cases[one.position])


def _context() -> Any:
    """Processes that start fast where the system allows: copies of one that has loaded what they need."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["medgen.restoration.batch_preload"])
    return context


def _child(case: Case, results: Connection, threads: int) -> None:
    """One case; the process ends with the parent, and leaves Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    import torch

    torch.set_num_threads(threads)
    try:
        results.send(run_case(case))
    except DiskFault as fault:
        results.send(str(fault))
    results.close()


def _die_with_parent() -> None:
    """The kernel kills this process when the one that started it dies, however it does (Linux)."""
    if sys.platform != "linux":
        return
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _resident_bytes(pid: int) -> int:
    """Resident memory of a process; 0 of one that has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError, ValueError):
        pass
    if sys.platform == "linux":
        return 0
    try:
        told = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=False)
        return int(told.stdout.strip() or 0) * _KIB
    except (OSError, ValueError):
        return 0


def _end(code: int | None) -> str:
    if code is not None and code < 0:
        why = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
        return f"signal {-code}{why}"
    return f"exit status {code}"
