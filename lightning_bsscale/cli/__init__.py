"""The command line: ``bsscale``, or ``python -m lightning_bsscale``. It starts without torch.

Each command is a module of this folder with ``HELP`` (a line), ``ABOUT`` (a paragraph), ``EXAMPLES`` (command lines
without the program's name), ``add_arguments(parser)`` and ``run(arguments)``, which imports what it needs and returns
the exit status.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from lightning_bsscale import __version__
from lightning_bsscale.cli import demo, plan, plot, probe, replay, report, simulate, summary
from lightning_bsscale.cli.terminal import CANNOT, INTERRUPTED, WRONG_WORDS, short_warnings

__all__ = ["COMMANDS", "main"]

COMMANDS = {
    "demo": demo,
    "summary": summary,
    "report": report,
    "plot": plot,
    "replay": replay,
    "plan": plan,
    "probe": probe,
    "simulate": simulate,
}
"""Commands by name, in the order of the help: what a beginner needs first."""

ABOUT = """\
Measure the gradient noise scale, and choose the batch size by it.

A JOURNAL is the file bsscale.jsonl that a training with BatchSizeScaler(record=True) writes into its log folder, such
as lightning_logs/version_0. Begin with the demo, then look at a training of your own with summary, report and plot.
`{prog} COMMAND --help` explains a command, with its units and examples."""
STATUSES = """\
exit status:
  0    answered
  1    it cannot be done; one sentence on stderr says why
  2    wrong words on the command line
  3    a replay that does not agree with its journal
  130  interrupted by Ctrl-C; files are whole, as they were before or as they should be"""
WIDTH = 100


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; by default those of the process.

    Returns:
        The exit status: 0 when all is well, 1 when the command cannot do it (one sentence on stderr says why), 3 when a
        replay disagrees, 130 when it was interrupted.

    Raises:
        SystemExit: 0 after help, 2 after wrong words, or what the command exits with.
    """
    parser, words = _parser(), sys.argv[1:] if argv is None else argv
    if not words:
        parser.print_help(sys.stderr)
        return WRONG_WORDS
    arguments = parser.parse_args(words)
    try:
        with short_warnings():
            status: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough, `head` for example
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's last flush fails again
        return CANNOT
    except SystemExit as end:
        # A Trainer that is interrupted cleans up, and exits with 1.
        if isinstance(end.__context__, KeyboardInterrupt):
            return INTERRUPTED
        raise
    return status


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, where argparse would print the whole usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(WRONG_WORDS, f"{self.prog}: error: {message}\n`{self.prog} --help` shows what is understood.\n")


class _Help(argparse.RawDescriptionHelpFormatter):
    """Shows description and examples as they are, and each default that is none of the obvious."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text = action.help or ""
        is_obvious = any(action.default is one for one in (None, False, argparse.SUPPRESS)) or action.default == []
        return text if is_obvious or "default" in text else f"{text} (default: %(default)s)"


def _parser() -> _Parser:
    is_script = Path(sys.argv[0]).stem == "bsscale"
    prog = "bsscale" if is_script else "python -m lightning_bsscale"
    parser = _Parser(prog=prog, description=_filled(ABOUT.format(prog=prog)), epilog=STATUSES, formatter_class=_Help)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        examples = "\n".join(f"  {prog} {name} {example}".rstrip() for example in command.EXAMPLES)
        one = commands.add_parser(
            name,
            help=command.HELP,
            description=_filled(command.ABOUT),
            epilog=f"example{'s' if len(command.EXAMPLES) > 1 else ''}:\n{examples}",
            formatter_class=_Help,
        )
        command.add_arguments(one)
        one.set_defaults(run=command.run)
    return parser


def _filled(text: str) -> str:
    width = min(WIDTH, shutil.get_terminal_size().columns - 2)
    parts = [" ".join(part.split()) for part in text.split("\n\n")]
    return "\n\n".join(textwrap.fill(part, width, break_on_hyphens=False, break_long_words=False) for part in parts)
