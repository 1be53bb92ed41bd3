"""The command `probe`: what is the critical batch of this training, and what should `target_ratio` be?"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_bsscale.cli.amounts import amount, count, whole
from lightning_bsscale.cli.files import picture_of, unwritable, write_whole
from lightning_bsscale.cli.own_code import add_traceback, explain, load
from lightning_bsscale.cli.terminal import complain, one_line, tell, write
from lightning_bsscale.theory.checks import show

if TYPE_CHECKING:
    from lightning_bsscale.critical_batch import Probe

HELP = "measure the critical batch by short branches from a checkpoint, and its ratio to the noise scale"
ABOUT = """
Answers which batch your training can use well, from a checkpoint (or the start of training): short branches
train with 1/2, 1, 2, 4 and 8 times the batch on the same examples, and are compared by their validation loss, on
several parts of the data. Nothing of yours is trained: each branch has a copy. Batches are in examples. It runs on one
device and takes the minutes that you allow. An interrupted probe resumes if the same command is given again.

The training is either a LightningCLI config with class_path for model and data, or a function of yours that returns
(module, training loader, validation loader). The validation step must log a loss. Modules are found in the current
folder and in installed packages.
"""
EXAMPLES = (
    "--config config.yaml --ckpt last.ckpt --minutes 10",
    "--task my_package.my_module:task --ckpt last.ckpt --json",
)

# What of a config's Trainer changes the gradients; everything else is the branches' own.
_KEPT = ("accelerator", "precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    training = parser.add_argument_group("the training")
    source = training.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--config", type=Path, metavar="FILE", help="a LightningCLI config with class_path for model and data"
    )
    source.add_argument(
        "--task",
        metavar="MODULE:FUNCTION",
        help="a function without arguments that returns (module, training loader, validation loader)",
    )
    training.add_argument(
        "--ckpt", type=Path, metavar="FILE", help="checkpoint to branch from (default: the start of training)"
    )
    training.add_argument(
        "--accumulate",
        type=count,
        metavar="N",
        help="accumulate_grad_batches of the training (default: the config's, or 1); where the checkpoint holds a "
        "scaler's or a monitor's state, its batch is used",
    )
    training.add_argument(
        "--monitor", metavar="NAME", help="validation loss to compare (default: val_loss, or the only one logged so)"
    )
    training.add_argument(
        "--lr-rule",
        default="auto",
        metavar="NAME",
        help="learning rate against batch: linear, sqrt, power, saturating, surge, none, or auto (saturating for SGD, "
        "sqrt for Adam and its relatives)",
    )
    measured = parser.add_argument_group("the measurement")
    measured.add_argument("--minutes", type=amount, default=10.0, metavar="M", help="minutes for the whole measurement")
    measured.add_argument(
        "--multiples",
        type=amount,
        nargs="+",
        default=[0.5, 1, 2, 4, 8],
        metavar="X",
        help="batches to try, as multiples of the current one (default: 0.5 1 2 4 8)",
    )
    measured.add_argument(
        "--examples", type=count, metavar="N", help="examples of each branch (default: 8 steps of the largest batch)"
    )
    measured.add_argument(
        "--offsets", type=count, metavar="N", help="repetitions on other data (default: what the minutes allow)"
    )
    measured.add_argument("--seed", type=whole, default=0, metavar="N", help="order of the examples")
    answer = parser.add_argument_group("the answer")
    answer.add_argument(
        "--out",
        type=Path,
        default=Path("probe.json"),
        metavar="FILE",
        help="the answer as JSON, for NoiseScalePolicy(target_ratio=FILE) and `plan --probe FILE`; its picture (.png) "
        "and the finished branches (.jsonl) lie beside it",
    )
    answer.add_argument("--json", action="store_true", help="print the answer as one JSON object alone")
    add_traceback(parser)


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the answer, and write it with its picture.

    Args:
        arguments: The parsed arguments.

    Returns:
        The exit status: 0, or 1 if it cannot be measured.
    """
    try:
        found = _measured(arguments)
    except Exception as error:  # the user's own model may raise anything
        own = None if arguments.traceback else explain(error)
        if own is not None:
            return complain(f"{own}. --traceback shows all of it.")
        if arguments.traceback or not _is_answer(error):
            raise
        if isinstance(error, OSError) and error.filename:
            return complain(f"{error.filename} cannot be read or written: {error.strerror}")
        return complain(one_line(error))
    return _write(found, arguments)


def _is_answer(error: Exception) -> bool:
    if isinstance(error, (OSError, TypeError, ValueError)):
        return True
    from lightning_bsscale.critical_batch import ProbeError

    return isinstance(error, ProbeError)


def _measured(arguments: argparse.Namespace) -> Probe:
    # First, so that a wrong name is found before torch is loaded.
    given = _from_config(arguments.config) if arguments.config else _from_task(arguments.task)
    from lightning_bsscale.critical_batch import measure_critical_batch

    if arguments.accumulate is not None:
        given["trainer_options"]["accumulate_grad_batches"] = arguments.accumulate
    return measure_critical_batch(
        **given,
        record=arguments.out.with_suffix(".jsonl"),
        ckpt_path=arguments.ckpt,
        multiples=arguments.multiples,
        examples=arguments.examples,
        offsets=arguments.offsets,
        minutes=arguments.minutes,
        lr_rule=arguments.lr_rule,
        monitor=arguments.monitor,
        seed=arguments.seed,
        say=tell,
    )


def _write(found: Probe, arguments: argparse.Namespace) -> int:
    text = json.dumps(found.to_json(), indent=1, allow_nan=False)
    picture = arguments.out.with_suffix(".png")
    try:
        drawn = _drawn(found, picture)
        write_whole(arguments.out, f"{text}\n".encode())
        if drawn is not None:
            write_whole(picture, drawn)
    except OSError as error:
        return complain(unwritable(arguments.out, error))
    if arguments.json:
        write(text)
        return 0
    notes = "".join(f"{note}\n" for note in found.notes)
    beside = "" if drawn is None else f"; picture: {picture}"
    branches = arguments.out.with_suffix(".jsonl")
    write(f"{sentence(found, arguments.out)}\n\n{table(found)}\n")
    write(f"{notes}answer: {arguments.out}{beside}; branches: {branches}")
    return 0


def _drawn(found: Probe, path: Path) -> bytes | None:
    try:
        from lightning_bsscale.figures import plot_branches

        figure, _ = plot_branches(found.answer)
    except ModuleNotFoundError as error:
        tell(str(error))
        return None
    return picture_of(figure, path)


def _from_task(name: str) -> dict[str, Any]:
    function = load("--task", name)
    made = function()
    if not isinstance(made, tuple) or len(made) != 3:
        raise ValueError(f"--task {name} must return (module, training loader, validation loader), got {show(made)}")
    return {"module": made[0], "train_loader": made[1], "val_loader": made[2], "trainer_options": {}}


def _from_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"no such config: {path}")
    import warnings

    from lightning.pytorch.cli import LightningCLI

    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    said = io.StringIO()  # the parser's own words, many lines of them
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(said):
            warnings.simplefilter("ignore")
            cli = LightningCLI(
                run=False, args=["--config", str(path)], save_config_callback=None, seed_everything_default=False
            )
    except (SystemExit, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be used as a LightningCLI config with class_path for model and data: {_reason(error)}."
        ) from error
    sys.stderr.write(said.getvalue())
    if cli.datamodule is None:
        raise ValueError(f"{path} names no data: add data.class_path, or use --task")
    cli.datamodule.prepare_data()
    cli.datamodule.setup("fit")
    options = {name: cli.config.trainer[name] for name in _KEPT if cli.config.trainer[name] is not None}
    return {
        "module": cli.model,
        "train_loader": cli.datamodule.train_dataloader(),
        "val_loader": cli.datamodule.val_dataloader(),
        "datamodule": cli.datamodule,
        "trainer_options": options,
    }


def _reason(error: BaseException) -> str:
    """Return what an error of the parser's goes back to, and the key of the config that it is about."""
    key, root = "", error
    while (before := root.__cause__ or root.__context__) is not None:
        root = before
        named = re.match(r'Parser key "([^"]+)"', str(root))
        key = f"{named[1]}: " if named and not key else key
    return f"{key}{explain(root) or one_line(root).rstrip('.')}"


def sentence(found: Probe, out: Path) -> str:
    """Say the answer and what to do with it."""
    answer, ratio, noise = found.answer, found.ratio, found.noise
    if not answer.resolved or not math.isfinite(ratio.value):
        measured = f"{_number(noise.noise_scale)} examples ({_number(noise.low)} to {_number(noise.high)})"
        known = measured if noise.resolved else f"not resolved: at least {_number(noise.low)} examples"
        return f"{answer.reason}. The noise scale is {known}."
    confidence = f"{100 * (1 - 2 * (1 - answer.confidence)):.3g} %"
    return (
        f"The critical batch is about {_number(answer.value)} examples (between {_number(answer.low)} and "
        f"{_number(answer.high)}), {_number(ratio.value)} times the noise scale of "
        f"{_number(noise.noise_scale)} ({confidence} interval of the ratio: {_number(ratio.low)}"
        f' to {_number(ratio.high)}): use NoiseScalePolicy(target_ratio="{out}").'
    )


def table(found: Probe) -> str:
    """Format the branches."""
    title = ("batch", "held-out loss", "worth of an example", "if critical", "verdict")
    lines = [title] + [
        (
            _number(row.batch_size),
            f"{row.loss:.4f}",
            _share(row.worth),
            _share(row.needed),
            row.verdict.value,
        )
        for row in found.answer.rows
    ]
    widths = [max(len(line[column]) for line in lines) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.rjust(width) for cell, width in zip(line, widths, strict=False)), line[-1]]) for line in lines
    )


def _share(value: float) -> str:
    return "-" if math.isnan(value) else "none" if value <= 0 else f"{value:.2f}"


def _number(value: float) -> str:
    from lightning_bsscale.theory.numbers import describe_count

    return describe_count(value) if math.isfinite(value) else "unknown"
