# SPDX-License-Identifier: Apache-2.0
# Copyright (c) 2026 the reidfast authors
"""The command `reidfast`: one file a subcommand, each with `add(subparsers)` and `run(args)`.

What a user can get wrong ends in one line on stderr that says what to do, and exit status 2; `--debug` shows where it
was raised. Results go to stdout, everything else to stderr.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from reidfast.version import __version__

__all__ = ["main"]

COMMANDS = (  # one a line, as the help lists them
    "info",
    "data",
    "train",
    "extract",
    "evaluate",
    "table",
    "search",
    "report",
    "frames",
    "demo",
    "bench",
    "patches",
    "export",
)
USER_ERRORS = (ValueError, TypeError, OSError, ImportError, NotImplementedError, RuntimeError, MemoryError)


class Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def build_parser() -> Parser:
    """The parser of the whole command."""
    parser = Parser(prog="reidfast", description="Person re-identification: data, features, evaluation, search.")
    parser.add_argument("--version", action="version", version=f"reidfast {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name in COMMANDS:
        importlib.import_module(f"reidfast.cli.{name}").add(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's); returns the exit status."""
    parser = build_parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:
        return int(stop.code or 0)
    with warnings.catch_warnings():
        warnings.showwarning = _note
        # Labels are kept read-only; nothing here writes into them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        try:
            status = args.run(args)
            sys.stdout.flush()
            return int(status or 0)
        except KeyboardInterrupt:
            print(f"reidfast {args.command}: interrupted", file=sys.stderr)
            return 130
        except BrokenPipeError:  # the reader of our output went away: nothing is wrong here
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except USER_ERRORS as error:
            if args.debug:
                raise
            print(f"reidfast {args.command}: error: {_one_line(error)}", file=sys.stderr)
            return 2


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.strerror}: {error.filename}"
    text = " ".join(str(error).split())
    return text or type(error).__name__


def _note(
    message: Any, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    print(f"note: {' '.join(str(message).split())}", file=sys.stderr)
