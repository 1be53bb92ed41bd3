"""The command line: ``bsscale``, or ``python -m lightning_bsscale``. It starts without torch.

Each command is a module of this folder with ``HELP`` (one line), ``EXAMPLE`` (one command line),
``add_arguments(parser)`` and ``run(arguments)``, which imports what it needs and returns the exit status.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_bsscale import __version__
from lightning_bsscale.cli import demo, plan, probe, replay, report, simulate
from lightning_bsscale.cli.terminal import CANNOT

__all__ = ["COMMANDS", "main"]

COMMANDS = {"demo": demo, "probe": probe, "plan": plan, "simulate": simulate, "report": report, "replay": replay}
"""Commands by name, in the order of the help."""

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; by default those of the process.

    Returns:
        The exit status: 0 when all is well, 1 when the command cannot do it (one sentence on stderr says why), 130
        when it was interrupted.

    Raises:
        SystemExit: 0 after help, 2 after wrong words, or what the command exits with.
    """
    arguments = _parser().parse_args(argv)
    try:
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


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults where there are any, and the example as it is."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default is not None and action.default is not False
        return super()._get_help_string(action) if has_default else action.help


def _parser() -> argparse.ArgumentParser:
    is_script = Path(sys.argv[0]).stem == "bsscale"
    parser = argparse.ArgumentParser(
        prog="bsscale" if is_script else "python -m lightning_bsscale",
        description="Measure the gradient noise scale, and choose the batch size by it.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name,
            help=command.HELP,
            description=f"{command.HELP[0].upper()}{command.HELP[1:]}.",
            epilog=f"example:\n  {command.EXAMPLE}",
            formatter_class=_Help,
        )
        command.add_arguments(one)
        one.set_defaults(run=command.run)
    return parser
