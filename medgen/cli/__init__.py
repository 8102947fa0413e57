"""The command line: parse, call, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Runs ``medgen`` with the arguments of this process and leaves with its exit status."""
    try:
        from medgen.cli.app import app

        app(prog_name="medgen")
    except KeyboardInterrupt:
        sys.exit(130)
