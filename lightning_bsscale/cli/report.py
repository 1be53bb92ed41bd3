"""The command ``report``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from lightning_bsscale.cli.terminal import complain, problem_with, write

HELP = "write one page about a run, or about several: what happened, why, and what to do next"
EXAMPLE = "python -m lightning_bsscale report runs/demo/bsscale.jsonl -o report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument(
        "journal", type=Path, nargs="+", help="a journal (.jsonl) written by record=...; several are compared"
    )
    parser.add_argument("-o", "--out", type=Path, default=Path("report.html"), help="the page, which is replaced")


def run(arguments: argparse.Namespace) -> int:
    """Write the page; return the exit status."""
    from lightning_bsscale.report.page import make_page
    from lightning_bsscale.report.read_run import read_run

    out: Path = arguments.out
    runs = []
    for path in arguments.journal:
        try:
            runs.append(read_run(path))
        except (OSError, ValueError) as error:
            return complain(problem_with(path, error))
        if out.exists() and out.samefile(path):
            return complain(f"{out} is the journal itself: give the page another name with -o")
    try:
        page = make_page(runs).encode()
    except ValueError as error:
        return complain(str(error))
    beside = out.with_name(f"{out.name}.{os.getpid()}.part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            beside.write_bytes(page)
            beside.replace(out)  # whoever interrupts this leaves the old page or the new one
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        return complain(f"{out} cannot be written: {error.strerror or error}")
    write(f"report: {out} ({len(page) / 1000:.0f} kB, opens in a browser)")
    return 0
