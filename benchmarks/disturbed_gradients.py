"""Show what the measurement reports if something changes `.grad` between backward and step.

The gradient of example i is x_i at any weights, in two layers with a noise scale of 64 each; it is 64 for both
together and for either of them alone. Each case does to `.grad` what users' code does, through the real Trainer, with
windows of four micro-batches of four examples. The answer is correct, refused, or silently wrong.

    python benchmarks/disturbed_gradients.py --label after       # about 2 minutes
    python benchmarks/disturbed_gradients.py --table             # only write the table of the existing results

`--label before` measures an earlier version of the package; the table shows both side by side.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

RESULTS = Path(__file__).parent / "results"
HALF = 32
NOISE_SCALE = 64.0
ACCUMULATE, SIZE = 4, 4
WORDS = "the gradient in .grad at the step"


class TwoLayers(pl.LightningModule):
    """Two layers whose gradients are the two halves of x."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(HALF, 1, bias=False)
        self.last = nn.Linear(HALF, 1, bias=False)

    def loss(self, x: Tensor) -> Tensor:
        """Compute the loss of a micro-batch.

        Args:
            x: (examples, 64)

        Returns:
            The mean over examples.
        """
        return (self.first(x[:, :HALF]) + self.last(x[:, HALF:])).mean()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(batch[0])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def examples(count: int, seed: int = 0) -> Tensor:
    """Draw the examples.

    Args:
        count: number of examples
        seed: seed of the noise

    Returns:
        (count, 64), with unit variance around a mean of squared norm 1/2 in each half
    """
    generator = torch.Generator().manual_seed(seed)
    means = [torch.randn(HALF, generator=generator) for _ in range(2)]
    mean = torch.cat([part / part.norm() * 0.5**0.5 for part in means])
    return mean + torch.randn(count, 2 * HALF, generator=generator)


class CancelsToNone(TwoLayers):
    def on_after_backward(self) -> None:
        self.last.weight.grad = None


class CancelsToZero(TwoLayers):
    def on_after_backward(self) -> None:
        self.last.weight.grad.zero_()


class CancelsAtFirst(TwoLayers):
    def on_after_backward(self) -> None:
        if self.global_step < self.trainer.estimated_stepping_batches // 4:
            self.last.weight.grad = None


class FreezesEverySecond(TwoLayers):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.last.weight.requires_grad_(batch_idx % 2 == 0)


class UnfreezesInMidWindow(TwoLayers):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.last.weight.requires_grad_(batch_idx % ACCUMULATE >= 2)


class AddsNoise(TwoLayers):
    def on_after_backward(self) -> None:
        for parameter in self.parameters():
            parameter.grad += 0.3 * torch.randn_like(parameter.grad)


class SendsAPartByItself(TwoLayers):
    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.loss(batch[0])
        (0.5 * loss / ACCUMULATE).backward(retain_graph=True)
        return 0.5 * loss


class ClipsEveryMicroBatch(TwoLayers):
    def on_after_backward(self) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 0.5)


def halve(parameter: Tensor) -> None:
    """Halve `.grad`.

    Args:
        parameter: the parameter whose gradient is halved
    """
    if parameter.grad is not None:
        parameter.grad *= 0.5


class ScalesAfterAccumulation(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        for parameter in self.parameters():
            parameter.register_post_accumulate_grad_hook(halve)


class HooksWithinTheWindow(TwoLayers):
    handle: Any = None

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx % ACCUMULATE == 0:
            if self.handle is not None:
                self.handle.remove()
            self.handle = self.last.weight.register_hook(lambda gradient: 0.5 * gradient)

    def on_train_end(self) -> None:
        self.handle.remove()


class KeepsGradients(TwoLayers):
    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        if (batch_idx // ACCUMULATE) % 3 == 0:
            optimizer.zero_grad()


class ClipsBeforeTheMonitor(pl.Callback):
    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        nn.utils.clip_grad_norm_(module.parameters(), 0.5)


class ScalesBeforeTheMonitor(pl.Callback):
    def on_before_optimizer_step(self, trainer: pl.Trainer, module: Any, optimizer: Any) -> None:
        for parameter in module.parameters():
            parameter.grad *= 8


class ClipsInItsHook(TwoLayers):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **settings: Any) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), 0.5)


class ChangesInAnEarlyHook(TwoLayers):
    def __init__(self) -> None:
        super().__init__()
        self.handle = self.last.weight.register_hook(lambda gradient: 2 * gradient)

    def on_train_end(self) -> None:
        self.handle.remove()


class ClearsToZero(TwoLayers):
    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=False)


# Description, module, callbacks before the monitor, and whether it must be measured (True) or refused.
Case = tuple[str, Callable[[], TwoLayers], list[Callable[[], pl.Callback]], bool]
CASES: dict[str, Case] = {
    "nothing": ("nothing changes `.grad`", TwoLayers, [], True),
    "clips in its hook": ("clipping in `configure_gradient_clipping`", ClipsInItsHook, [], True),
    "early hook": ("a tensor hook from before training", ChangesInAnEarlyHook, [], True),
    "zeros": ("gradients are cleared to zero, not None", ClearsToZero, [], True),
    "cancels to none": ("`on_after_backward` sets a layer's `.grad` to None", CancelsToNone, [], True),
    "cancels to zero": ("`on_after_backward` sets a layer's `.grad` to zero", CancelsToZero, [], True),
    "cancels at first": ("the same, in the first quarter of training", CancelsAtFirst, [], True),
    "freezes": ("a layer is frozen in every second micro-batch", FreezesEverySecond, [], True),
    "unfreezes": ("a layer is unfrozen in mid-window", UnfreezesInMidWindow, [], True),
    "noise": ("`on_after_backward` adds noise", AddsNoise, [], False),
    "part of the loss": ("half of the loss by `.backward()` in `training_step`", SendsAPartByItself, [], False),
    "clips": ("`on_after_backward` clips after every micro-batch", ClipsEveryMicroBatch, [], False),
    "post-accumulate": ("a post-accumulate hook halves `.grad`", ScalesAfterAccumulation, [], False),
    "late hook": ("a tensor hook that is registered within the window", HooksWithinTheWindow, [], False),
    "kept": ("gradients are cleared at every third window only", KeepsGradients, [], False),
    "callback clips": ("a callback before ours clips", TwoLayers, [ClipsBeforeTheMonitor], False),
    "callback scales": ("a callback before ours multiplies all by 8", TwoLayers, [ScalesBeforeTheMonitor], False),
}


def run(name: str, windows: int) -> dict[str, Any]:
    """Train one case under the monitor, which measures every window.

    Args:
        name: name of the case
        windows: number of windows

    Returns:
        The noise scale with its interval, or None if refused; whether it is resolved; and the number of warnings
    """
    from lightning_bsscale import GradientNoiseScaleMonitor

    _, module, others, _ = CASES[name]
    monitor = GradientNoiseScaleMonitor(measure_every=1, memory=1.0)
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(examples(windows * ACCUMULATE * SIZE)), batch_size=SIZE)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=1,
            accumulate_grad_batches=ACCUMULATE,
            callbacks=[*(make() for make in others), monitor],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module(), loader)
    noise = monitor.noise_scale
    return {
        "noise_scale": None if noise is None else noise.noise_scale,
        "low": None if noise is None else noise.low,
        "high": None if noise is None else noise.high,
        "is_resolved": noise is not None and noise.resolved,
        "says": sum(WORDS in str(warning.message) for warning in said),
    }


def shown(found: dict[str, Any] | None) -> str:
    """Put a result into words.

    Args:
        found: the result of `run`, or None

    Returns:
        A table cell
    """
    if found is None:
        return "–"
    if found["noise_scale"] is None:
        return "refused, and says so" if found["says"] else "nothing, without a word"
    interval = f"{found['noise_scale']:.3g} [{found['low']:.3g}, {found['high']:.3g}]"
    return interval if found["is_resolved"] else interval + ", unresolved"


def write_table(kept: dict[str, Any]) -> None:
    """Write the table of the existing results.

    Args:
        kept: results by label and case
    """
    lines = [
        f"Noise scale with its 90 % interval over {kept['windows']} windows of {ACCUMULATE} micro-batches; "
        "the monitor measures every window.",
        "",
        "| what happens | truth | before | now |",
        "|---|---|---|---|",
    ]
    for name, (what, *_) in CASES.items():
        before, after = (kept.get(label, {}).get(name) for label in ("before", "after"))
        lines.append(f"| {what} | {NOISE_SCALE:g} | {shown(before)} | {shown(after)} |")
    (RESULTS / "disturbed_gradients.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write("\n".join(lines) + "\n")


def main() -> None:
    """Run all cases, or only write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", choices=("before", "after"), default="after", help="which column to fill")
    parser.add_argument("--windows", type=int, default=600, help="number of windows per case")
    parser.add_argument("--table", action="store_true", help="only write the table")
    given = parser.parse_args()
    path = RESULTS / "disturbed_gradients.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if not given.table:
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        kept["windows"] = given.windows
        kept[given.label] = {name: run(name, given.windows) for name in CASES}
        path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    write_table(kept)


if __name__ == "__main__":
    main()
