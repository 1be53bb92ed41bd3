"""The command ``summary``: what a run found, why, what to change next, and its decisions."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_bsscale.cli.terminal import JOURNAL, Working, complain, problem_with, write, write_json

if TYPE_CHECKING:
    from lightning_bsscale.verdict import RunFacts, Verdict

HELP = "say what a run found, why, and what to change next, with a table of its decisions"
ABOUT = """
Reads one journal or several, also of a run that is still training or was killed, and prints the verdict (what the
batch did, why, and what to change next) and a table: a line for each change of the batch, and one for all holds
between two changes. Batch sizes and noise scales are in examples, or in the unit that the run counts, over all
devices together.
"""
EXAMPLES = ("runs/demo/bsscale.jsonl", "runs/*/bsscale.jsonl --json")
WIDTH = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument("journal", type=Path, nargs="+", metavar="JOURNAL", help=JOURNAL)
    parser.add_argument("--json", action="store_true", help='print one JSON object instead, {"runs": [...]}')


def run(arguments: argparse.Namespace) -> int:
    """Print what each run found; return the exit status."""
    from lightning_bsscale.verdict import read_facts, verdict_of

    status, found = 0, []
    for path in arguments.journal:
        try:
            with Working(f"reading {path}"):
                facts = read_facts(path)
            found.append((path, facts, verdict_of(facts)))
        except (OSError, ValueError) as error:
            status = complain(problem_with(path, error))
        except (ArithmeticError, AssertionError, LookupError, TypeError) as error:
            status = complain(f"{path} does not allow a verdict, as its numbers do not belong together: {error}.")
    if arguments.json:
        if found:
            write_json({"runs": [as_json(*one) for one in found]})
        return status
    for number, (path, facts, verdict) in enumerate(found):
        heading = f"{path}\n\n" if len(arguments.journal) > 1 else ""
        write(f"{chr(10) * 2 if number else ''}{heading}{as_text(facts, verdict)}")
    return status


def as_text(facts: RunFacts, verdict: Verdict) -> str:
    """Return the verdict, a paragraph for each of its parts, and the table of decisions."""
    from lightning_bsscale.summary import summary_table

    parts = [verdict.headline]
    if _is_open(facts):
        parts.append("The journal has no end: the run was interrupted, or is still training.")
    if verdict.reasons:
        parts.append(" ".join(verdict.reasons))
    if verdict.next_steps:
        parts.append(f"Next: {' '.join(verdict.next_steps)}")
    text = "\n\n".join(textwrap.fill(part, WIDTH, break_on_hyphens=False) for part in parts)
    log = facts.decisions
    if not log.records:
        return text if facts.numbers.decides else f"{text}\n\nA monitor decides nothing: there is no table."
    return f"{text}\n\n{summary_table(log.records, changes=log.changes, holds=log.holds, unit=facts.profile.unit)}"


def _is_open(facts: RunFacts) -> bool:
    # Where there is no end, the plan's steps are computed from the examples.
    return not facts.is_planned_exactly


def as_json(path: Path, facts: RunFacts, verdict: Verdict) -> dict[str, Any]:
    """Return the same as numbers and sentences; what is unknown or infinite is null."""
    from lightning_bsscale.record_lists import decision_row

    noise = facts.noise
    return {
        **verdict_as_json(path, verdict),
        "has_end": not _is_open(facts),
        "unit": facts.profile.unit,
        "start_batch_size": facts.start_batch_size,
        "batch_size": facts.batch_size,
        "examples_seen": facts.examples_seen,
        "optimizer_steps": facts.optimizer_steps,
        "planned_steps": facts.planned_steps,
        "noise_scale": None
        if noise is None
        else {"value": noise.noise_scale, "low": noise.low, "high": noise.high, "resolved": noise.resolved},
        "measured_windows": facts.measured_windows,
        "changes": facts.decisions.changes,
        "holds": facts.decisions.holds,
        "decisions": [decision_row(record) for record in facts.decisions.records],
    }


def verdict_as_json(path: Path, verdict: Verdict) -> dict[str, Any]:
    """Return what each command with runs says of each of them: its journal and its verdict."""
    return {
        "journal": str(path),
        "headline": verdict.headline,
        "reasons": list(verdict.reasons),
        "next_steps": list(verdict.next_steps),
    }
