"""The command `probe`: what is the critical batch of this training, and what should `target_ratio` be?"""

from __future__ import annotations

import argparse
import json
import math
import os
import pkgutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_bsscale.theory.checks import show

if TYPE_CHECKING:
    from lightning_bsscale.critical_batch import Probe

HELP = "measure the critical batch by short branches from a checkpoint, and its ratio to the noise scale"
EXAMPLE = "python -m lightning_bsscale probe --config config.yaml --ckpt last.ckpt --minutes 10"

# What of a config's Trainer changes the gradients; everything else is the branches' own.
_KEPT = ("accelerator", "precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--config", type=Path, help="a LightningCLI config with class_path for model and data")
    source.add_argument(
        "--task", help="package.module:function that returns (module, training loader, validation loader)"
    )
    parser.add_argument("--ckpt", type=Path, help="checkpoint to branch from (default: the start of training)")
    parser.add_argument(
        "--out", type=Path, default=Path("probe.json"), help="the answer; picture and branches lie beside it"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="time for the whole measurement")
    parser.add_argument(
        "--multiples", type=float, nargs="+", default=[0.5, 1, 2, 4, 8], help="of the current batch, which to try"
    )
    parser.add_argument("--examples", type=int, help="examples of each branch (default: 8 steps of the largest batch)")
    parser.add_argument("--offsets", type=int, help="repetitions on other data (default: what the minutes allow)")
    parser.add_argument("--lr-rule", default="auto", help="how the learning rate follows the batch")
    parser.add_argument("--monitor", help="validation metric to compare (default: val_loss)")
    parser.add_argument(
        "--accumulate",
        type=int,
        help="accumulate_grad_batches of the training (default: the config's, or 1); where the checkpoint holds a "
        "scaler's or a monitor's state, its batch is used",
    )
    parser.add_argument("--seed", type=int, default=0, help="order of the examples")
    parser.add_argument("--json", action="store_true", help="print the answer as one JSON object alone")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print the answer, and write it with its picture.

    Args:
        arguments: The parsed arguments.

    Returns:
        The exit status: 0, or 1 if it cannot be measured.
    """
    from lightning_bsscale.critical_batch import ProbeError, measure_critical_batch

    progress = sys.stderr
    try:
        given = _from_config(arguments.config) if arguments.config else _from_task(arguments.task)
        if arguments.accumulate is not None:
            given["trainer_options"]["accumulate_grad_batches"] = arguments.accumulate
        found = measure_critical_batch(
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
            say=lambda text: print(text, file=progress, flush=True),
        )
    except (ProbeError, ValueError, TypeError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    text = json.dumps(found.to_json(), indent=1, allow_nan=False)
    arguments.out.write_text(text + "\n", encoding="utf-8")
    picture = _draw(found, arguments.out.with_suffix(".png"))
    if arguments.json:
        print(text)
        return 0
    print(f"{sentence(found, arguments.out)}\n\n{table(found)}\n")
    for note in found.notes:
        print(note)
    print(f"answer: {arguments.out}{picture}; branches: {arguments.out.with_suffix('.jsonl')}")
    return 0


def _from_task(name: str) -> dict[str, Any]:
    if not name.partition(":")[2]:
        raise ValueError(f"--task must be package.module:function, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"--task {name} cannot be loaded: {error}. Run the command where it can be imported"
        ) from error
    made = function()
    if not isinstance(made, tuple) or len(made) != 3:
        raise ValueError(f"--task {name} must return (module, training loader, validation loader), got {show(made)}")
    return {"module": made[0], "train_loader": made[1], "val_loader": made[2], "trainer_options": {}}


def _from_config(path: Path) -> dict[str, Any]:
    import warnings

    from lightning.pytorch.cli import LightningCLI

    if not path.is_file():
        raise ValueError(f"no such config: {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cli = LightningCLI(
                run=False, args=["--config", str(path)], save_config_callback=None, seed_everything_default=False
            )
    except SystemExit as error:  # the parser has said on stderr what is wrong
        raise ValueError(f"{path} is no LightningCLI config with class_path for model and data") from error
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


def _draw(found: Probe, path: Path) -> str:
    try:
        from lightning_bsscale.figures import plot_branches

        figure, _ = plot_branches(found.answer)
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        return ""
    figure.savefig(path, dpi=120)
    return f"; picture: {path}"


def _number(value: float) -> str:
    from lightning_bsscale.theory.numbers import describe_count

    return describe_count(value) if math.isfinite(value) else "unknown"
