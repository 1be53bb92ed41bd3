"""The command ``demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from lightning_bsscale.cli.amounts import count, whole
from lightning_bsscale.cli.files import unwritable
from lightning_bsscale.cli.terminal import complain

HELP = "train on scikit-learn's digits with a fixed small batch, a fixed large one, and one that grows"
ABOUT = """
Trains three times on 1,347 small images that scikit-learn brings, which takes about half a minute on a CPU, and
prints optimizer steps, seconds and validation loss of each, the changes of the batch (in examples) and the verdict.
It writes a picture and a journal under unused names, for summary, report, plot and replay to be tried on. No network,
no GPU. It needs scikit-learn and matplotlib: pip install 'lightning-bsscale[examples]'.
"""
EXAMPLES = ("", "--epochs 10 --out runs/short")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), metavar="FOLDER", help="folder of the picture and the journal"
    )
    parser.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="seed of the weights and of the order of the examples"
    )
    parser.add_argument(
        "--epochs", type=count, default=25, metavar="N", help="passes over the data, for each of the three runs"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(arguments: argparse.Namespace) -> int:
    """Train three times; return the exit status."""
    from lightning_bsscale.demo import run as train_three_times

    try:
        return train_three_times(
            out=arguments.out, seed=arguments.seed, epochs=arguments.epochs, as_json=arguments.json
        )
    except OSError as error:
        if not error.filename:
            raise
        return complain(unwritable(Path(str(error.filename)), error))
