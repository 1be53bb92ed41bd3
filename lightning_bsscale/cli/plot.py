"""The command ``plot``: the pictures of runs, from their journals."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_bsscale.cli.files import picture_of, unwritable, write_whole
from lightning_bsscale.cli.terminal import JOURNAL, Working, complain, problem_with, write

if TYPE_CHECKING:
    from lightning_bsscale.figures import DrawnRun

HELP = "draw the picture of a run: noise scale with its band, batch, and learning rate"
ABOUT = """
Draws what scaler.plot() draws, from a journal, also of a run that is still training or was killed: above, the noise
scale with its 90 % interval and the batch, below, the learning rate with and without the factor for the batch, both
against the examples seen. Of a monitor, the noise scale alone. Several journals give one picture each, numbered. The
suffix of FILE decides the format: .png, .svg or .pdf. It needs matplotlib: pip install 'lightning-bsscale[plot]'.
"""
EXAMPLES = ("runs/demo/bsscale.jsonl -o run.png", "runs/a.jsonl runs/b.jsonl -o runs.svg")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument("journal", type=Path, nargs="+", metavar="JOURNAL", help=JOURNAL)
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("bsscale.png"),
        metavar="FILE",
        help="the picture, which is replaced; of several journals FILE-1, FILE-2 and so on",
    )


def run(arguments: argparse.Namespace) -> int:
    """Draw each run; return the exit status."""
    paths: list[Path] = arguments.journal
    outs = [arguments.out] if len(paths) == 1 else _numbered(arguments.out, len(paths))
    for out in outs:
        if any(_is_same(out, path) for path in paths):
            return complain(f"{out} is the journal itself: give the picture another name with -o")
    pictures = []
    for path, out in zip(paths, outs, strict=True):
        try:
            with Working(f"drawing {path}"):
                pictures.append(_picture(path, out))
        except (OSError, ValueError) as error:
            return complain(problem_with(path, error))
        except ModuleNotFoundError as error:
            return complain(str(error))
    for path, out, picture in zip(paths, outs, pictures, strict=True):
        try:
            write_whole(out, picture)
        except OSError as error:
            return complain(unwritable(out, error))
        write(f"picture: {out}" + (f" ({path})" if len(paths) > 1 else ""))
    return 0


def _numbered(out: Path, many: int) -> list[Path]:
    return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, many + 1)]


def _is_same(out: Path, path: Path) -> bool:
    try:
        return os.path.samefile(out, path)
    except OSError:
        return False


def _picture(path: Path, out: Path) -> bytes:
    from lightning_bsscale.figures import plot_noise_scale, plot_run

    drawn, decides = _read(path)
    figure, _ = plot_run(drawn, is_shown=False) if decides else plot_noise_scale(drawn, is_shown=False)
    return picture_of(figure, out)


def _read(path: Path) -> tuple[DrawnRun, bool]:
    """Read what is drawn, a bounded number of measurements and decisions, and whether the run decides."""
    from lightning_bsscale.figures import DrawnRun
    from lightning_bsscale.figures.compared import read_runs
    from lightning_bsscale.journal import Header, read_lines
    from lightning_bsscale.report.run_record import Thinned
    from lightning_bsscale.theory.records import DecisionLog, DecisionRecord, Measurement

    history, log = Thinned[Measurement](), DecisionLog()
    settings: dict[str, Any] = {}
    profile: dict[str, Any] = {}
    for _, line in read_lines(path):
        if isinstance(line, Header):
            settings, profile = (_mapping(line.fields.get(name)) for name in ("settings", "profile"))
        elif isinstance(line, Measurement):
            history.add(line)
        elif isinstance(line, DecisionRecord):
            log = log.added(line)
    warmup = settings.get("warmup_examples")
    drawn = DrawnRun(
        history=history.items,
        decisions=log.records,
        losses=read_runs([path])[0].losses,
        unit=str(profile.get("unit", "examples")),
        warmup_examples=float(warmup) if isinstance(warmup, (int, float)) else 0.0,
    )
    return drawn, settings.get("decides") is True


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
