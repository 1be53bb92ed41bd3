"""Callbacks as LightningCLI makes them."""

import sys
from unittest import mock

from lightning.pytorch.cli import LightningCLI

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from tests.helpers.training import QUIET, Regression


def callbacks_from(config=None, *flags):
    """The Trainer's callbacks as LightningCLI makes them, with the door's names as class paths."""
    args = {"trainer": {**QUIET, "callbacks": config}} if config is not None else list(flags)
    with mock.patch.object(sys, "argv", ["main.py"]):  # else LightningCLI warns of pytest's own arguments
        cli = LightningCLI(Regression, run=False, args=args, save_config_callback=None, seed_everything_default=False)
    return [c for c in cli.trainer.callbacks if isinstance(c, BatchSizeScaler | GradientNoiseScaleMonitor)]
