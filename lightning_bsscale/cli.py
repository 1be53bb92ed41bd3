"""The command line: ``python -m lightning_bsscale``. It starts without torch; each command imports what it runs."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_bsscale import __version__

_LONGEST = 1000
_SHOWN = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; by default those of the process.

    Returns:
        The exit status: 0 when all is well, 1 when a replay disagrees with its journal or a file cannot be read.
    """
    arguments = _parser().parse_args(argv)
    status: int = arguments.run(arguments)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lightning_bsscale", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")

    demo = commands.add_parser(
        "demo",
        help="train on scikit-learn's digits with a fixed small batch, a fixed large one, and one that grows",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for the picture and the journal")
    demo.add_argument("--seed", type=int, default=0, help="seed of the weights and of the order of the examples")
    demo.add_argument("--epochs", type=_positive, default=25, help="passes over the data, for each of the three runs")
    demo.set_defaults(run=_demo)

    replay = commands.add_parser("replay", help="compute a run again from its journal and compare")
    replay.add_argument("journal", type=Path, help="a journal (.jsonl) written by BatchSizeScaler(record=...)")
    replay.set_defaults(run=_replay)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, found {text!r}")
    return int(text)


def _demo(arguments: argparse.Namespace) -> int:
    from lightning_bsscale.demo import run

    return run(out=arguments.out, seed=arguments.seed, epochs=arguments.epochs)


def _replay(arguments: argparse.Namespace) -> int:
    from lightning_bsscale.replay import KINDS, replay

    total, wrong = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    try:
        for one in replay(arguments.journal):
            total[one.kind] += 1
            if not one.agrees:
                wrong[one.kind] += 1
                if sum(wrong.values()) <= _SHOWN:
                    recorded, replayed = _in_one_line(one.recorded), _in_one_line(one.replayed)
                    _print(f"line {one.line}, {one.kind}: recorded {recorded}, replayed {replayed}")
    except FileNotFoundError:
        _print(f"no such journal: {arguments.journal}")
        return 1
    except OSError as error:
        _print(f"{arguments.journal} cannot be read: {error.strerror or error}")
        return 1
    except ValueError as error:
        sentence, path = str(error), str(arguments.journal)
        _print(sentence if path in sentence else f"{path}: {sentence}")
        return 1
    if sum(wrong.values()) > _SHOWN:
        _print(f"... and {sum(wrong.values()) - _SHOWN} more that disagree")
    _print("; ".join(f"{total[kind] - wrong[kind]} of {total[kind]} {KINDS[kind]}" for kind in KINDS) + " agree")
    return 1 if any(wrong.values()) else 0


def _in_one_line(recorded: object) -> str:
    # The reason of a decision is whatever a policy, or whoever wrote the file, made it.
    text = repr(recorded)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."


def _print(text: str) -> None:
    # A path may hold what the terminal's encoding cannot show.
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
