"""The command ``plot``: the pictures of runs, from their journals."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_bsscale.cli.files import picture_of, unwritable, write_whole
from lightning_bsscale.cli.summary import verdict_as_json
from lightning_bsscale.cli.terminal import JOURNAL, Working, complain, one_line, problem_with, write, write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_bsscale.theory.records import Measurement

HELP = "draw the picture of a run, or of several compared by their losses"
ABOUT = """
Draws what scaler.plot() draws, from a journal, also of a run that is still training or was killed: the noise scale
with its 90 % interval and the batch, the learning rate with and without the factor for the batch, and the losses that
were logged, against the examples seen. Of a monitor, without the learning rate. Several journals are compared in one
picture: their losses against optimizer steps, examples and seconds, and the last losses against steps (the front).
The suffix of FILE decides the format: .png, .svg or .pdf. It needs matplotlib: pip install 'lightning-bsscale[plot]'.
"""
EXAMPLES = (
    "runs/demo/bsscale.jsonl -o run.png",
    "runs/fixed.jsonl runs/grown.jsonl -o compared.png --loss val_loss",
    "runs/fixed.jsonl runs/grown.jsonl -o runs.svg --each",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument("journal", type=Path, nargs="+", metavar="JOURNAL", help=f"{JOURNAL}; several are compared")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        default=Path("bsscale.png"),
        metavar="FILE",
        help="the picture, which is replaced; with --each FILE-1, FILE-2 and so on",
    )
    parser.add_argument("--each", action="store_true", help="of several journals one picture each")
    parser.add_argument(
        "--loss",
        metavar="NAME",
        help="the loss to compare (default: one that most runs logged, of a validation if any)",
    )
    parser.add_argument(
        "--json", action="store_true", help='print one JSON object instead, {"pictures": [...], "runs": [...]}'
    )


def run(arguments: argparse.Namespace) -> int:
    """Draw; return the exit status."""
    paths: list[Path] = arguments.journal
    groups = [paths] if len(paths) > 1 and not arguments.each else [[path] for path in paths]
    outs = [arguments.out] if len(groups) == 1 else _numbered(arguments.out, len(groups))
    for out in outs:
        if any(_is_same(out, path) for path in paths):
            return complain(f"{out} is the journal itself: give the picture another name with -o")
    histories, told = {}, []
    for path in paths:
        try:
            with Working(f"reading {path}"):
                histories[path] = _measurements(path)
                if arguments.json:
                    told.append(_verdict(path))
        except (OSError, ValueError) as error:
            return complain(problem_with(path, error))
    pictures = []
    for group, out in zip(groups, outs, strict=True):
        try:
            with Working(f"drawing {', '.join(map(str, group[:3]))}"):
                figure = _comparison(group, arguments.loss) if len(group) > 1 else _picture(group[0], histories)
                pictures.append(picture_of(figure, out))
        except (ValueError, ModuleNotFoundError) as error:
            return complain(one_line(error))
    status, written = 0, list[dict[str, Any]]()
    for group, out, picture in zip(groups, outs, pictures, strict=True):
        try:
            write_whole(out, picture)
        except OSError as error:
            status = complain(unwritable(out, error))
            break
        written.append({"picture": str(out), "bytes": len(picture), "journals": list(map(str, group))})
        if not arguments.json:
            write(f"picture: {out}" + (f" ({group[0]})" if len(groups) > 1 else ""))
    if arguments.json and written:
        write_json({"pictures": written, "runs": told})
    return status


def _numbered(out: Path, many: int) -> list[Path]:
    return [out.with_name(f"{out.stem}-{number}{out.suffix}") for number in range(1, many + 1)]


def _is_same(out: Path, path: Path) -> bool:
    try:
        return os.path.samefile(out, path)
    except OSError:
        return False


def _verdict(path: Path) -> dict[str, Any]:
    from lightning_bsscale.report.read_run import read_run

    return verdict_as_json(path, read_run(path).verdict)


def _comparison(paths: Sequence[Path], loss: str | None) -> Figure:
    from lightning_bsscale.figures import plot_comparison

    figure, _ = plot_comparison({str(path): path for path in paths}, loss=loss, is_shown=False)
    return figure


def _picture(path: Path, histories: Mapping[Path, list[Measurement]]) -> Figure:
    from lightning_bsscale.figures import DrawnRun, plot_noise_scale, plot_run
    from lightning_bsscale.figures.compared import read_runs
    from lightning_bsscale.verdict import read_facts, verdict_of

    drawn = DrawnRun(history=histories[path])
    try:
        facts = read_facts(path)
    except ValueError as error:  # a run that has only begun
        figure, _ = plot_noise_scale(replace(drawn, why=str(error)), is_shown=False)
        return figure
    verdict = verdict_of(facts)
    drawn = replace(
        drawn,
        decisions=facts.decisions.records,
        losses=read_runs([path])[0].losses,
        unit=facts.profile.unit,
        examples_seen=float(facts.examples_seen),
        warmup_examples=facts.numbers.warmup_examples,
        batch_size=facts.batch_size,
        granularity=facts.numbers.now.granularity,
        is_dry_run=facts.numbers.decides and not facts.numbers.acts,
        min_steps=facts.profile.min_steps,
        total_examples=facts.numbers.total_examples,
        why=" ".join((verdict.headline, *verdict.reasons)),
    )
    draw = plot_run if facts.numbers.decides else plot_noise_scale
    figure, _ = draw(drawn, is_shown=False)
    return figure


def _measurements(path: Path) -> list[Measurement]:
    """Read a bounded number of measured windows, spread over the run."""
    from lightning_bsscale.journal import read_lines
    from lightning_bsscale.report.run_record import Thinned
    from lightning_bsscale.theory.records import Measurement

    history = Thinned[Measurement]()
    for _, line in read_lines(path):
        if isinstance(line, Measurement):
            history.add(line)
    return history.items
