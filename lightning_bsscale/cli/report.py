"""The command ``report``."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_bsscale.cli.files import unwritable, write_whole
from lightning_bsscale.cli.summary import verdict_as_json
from lightning_bsscale.cli.terminal import JOURNAL, Working, complain, problem_with, write, write_json

HELP = "write one page about a run, or about several: what happened, why, and what to do next"
ABOUT = """
Writes one self-contained HTML page about a run, or about up to eight runs compared: the verdict first, then pictures
against examples, optimizer steps or seconds, the decisions with their numbers, what the batch bought, where the time
went, and the settings. It reads journals, also of runs that are still training or were killed, and needs neither
torch nor matplotlib nor a network.
"""
EXAMPLES = ("runs/demo/bsscale.jsonl -o report.html", "runs/fixed.jsonl runs/grown.jsonl -o comparison.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument(
        "journal",
        type=Path,
        nargs="+",
        metavar="JOURNAL",
        help=f"{JOURNAL}; several are compared",
    )
    parser.add_argument(
        "-o", "--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page, which is replaced"
    )
    parser.add_argument(
        "--json", action="store_true", help='print one JSON object instead, {"report": FILE, "bytes": N, "runs": [...]}'
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the page; return the exit status."""
    from lightning_bsscale.report.page import make_page
    from lightning_bsscale.report.read_run import read_run

    out: Path = arguments.out
    runs = []
    for path in arguments.journal:
        try:
            with Working(f"reading {path}"):
                runs.append(read_run(path))
        except (OSError, ValueError) as error:
            return complain(problem_with(path, error))
        if out.exists() and out.samefile(path):
            return complain(f"{out} is the journal itself: give the page another name with -o")
    try:
        page = make_page(runs).encode()
    except ValueError as error:
        return complain(str(error))
    try:
        write_whole(out, page)
    except OSError as error:
        return complain(unwritable(out, error))
    if arguments.json:
        told = [verdict_as_json(path, run.verdict) for path, run in zip(arguments.journal, runs, strict=True)]
        write_json({"report": str(out), "bytes": len(page), "runs": told})
        return 0
    write(f"report: {out} ({len(page) / 1000:.0f} kB, opens in a browser)")
    return 0
