"""The command ``replay``."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_bsscale.cli.terminal import complain, problem_with, write

HELP = "compute a run again from its journal, and compare"
EXAMPLE = "python -m lightning_bsscale replay runs/demo/bsscale.jsonl"

_LONGEST = 1000
_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument("journal", type=Path, help="a journal (.jsonl) written by BatchSizeScaler(record=...)")


def run(arguments: argparse.Namespace) -> int:
    """Replay a journal; return 0 if all of it agrees, else 1."""
    from lightning_bsscale.replay import KINDS, replay

    total, wrong = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    try:
        for one in replay(arguments.journal):
            total[one.kind] += 1
            if not one.agrees:
                wrong[one.kind] += 1
                if sum(wrong.values()) <= _SHOWN:
                    recorded, replayed = _in_one_line(one.recorded), _in_one_line(one.replayed)
                    write(f"line {one.line}, {one.kind}: recorded {recorded}, replayed {replayed}")
    except (OSError, ValueError) as error:
        return complain(problem_with(arguments.journal, error))
    if sum(wrong.values()) > _SHOWN:
        write(f"... and {sum(wrong.values()) - _SHOWN} more that disagree")
    write("; ".join(f"{total[kind] - wrong[kind]} of {total[kind]} {KINDS[kind]}" for kind in KINDS) + " agree")
    return 1 if any(wrong.values()) else 0


def _in_one_line(recorded: object) -> str:
    # The reason of a decision is whatever a policy, or whoever wrote the file, made it.
    text = repr(recorded)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."
