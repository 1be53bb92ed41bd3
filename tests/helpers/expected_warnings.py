"""Warnings that are right in a test and not what it is about: `pytestmark = [CANNOT_MEASURE, MID_EPOCH]`."""

import re
import warnings
from contextlib import contextmanager

import pytest


def ignored(*beginnings):
    return pytest.mark.filterwarnings(*(f"ignore:{text}" for text in beginnings))


def said_of(pattern, caught):
    """The texts of those warnings in which the pattern is found."""
    return [text for text in (str(warning.message) for warning in caught) if re.search(pattern, text)]


@contextmanager
def hearing(pattern):
    """A list of the texts of those warnings, complete at the end."""
    said = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield said
    said += said_of(pattern, caught)


# Ours, by their key words.
NOT_MEASURED = ".*noise scale cannot be measured"
HARDLY_RESOLVED = "noise scale .*resolved"
DROPPED = r"last \d+ loader batches"
OTHER_START = "bsscale. resuming with"
NOT_THE_MEAN = ".*is not the mean"
CANNOT_MEASURE = ignored(NOT_MEASURED)
WITHIN_A_WINDOW = ignored("bsscale. the checkpoint was saved")
# Lightning's.
CKPT_PATH = ignored(".*ckpt_path")
FOLDER_NOT_EMPTY = ignored(".* directory .* exists and is not empty")
MID_EPOCH = ignored("You're resuming from a checkpoint that ended before the epoch ended")
NONE_BATCH = ignored("train_dataloader yielded None")
WITHOUT_VALIDATION = ignored("You defined a .validation_step. but have no")
