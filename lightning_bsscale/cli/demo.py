"""The command ``demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "train on scikit-learn's digits with a fixed small batch, a fixed large one, and one that grows"
EXAMPLE = "python -m lightning_bsscale demo --epochs 10 --out runs/short"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for the picture and the journal")
    parser.add_argument("--seed", type=int, default=0, help="seed of the weights and of the order of the examples")
    parser.add_argument("--epochs", type=_positive, default=25, help="passes over the data, for each of the three runs")


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, found {text!r}")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    """Train three times; return the exit status."""
    from lightning_bsscale.demo import run as train_three_times

    return train_three_times(out=arguments.out, seed=arguments.seed, epochs=arguments.epochs)
