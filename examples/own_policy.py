"""Decide yourself when the batch grows: a ramp over the training that the measured noise scale may delay.

    python examples/own_policy.py                        # twenty epochs
    python examples/own_policy.py --max_epochs 4         # a quick look
    python examples/own_policy.py --to 64 --over 0.25    # a smaller batch, sooner

Needs: pip install 'lightning-bsscale[examples]'. A policy is one method, and so is a rule for the learning rate. In a
YAML file, name them by `class_path: own_policy.Ramp`.
"""

import argparse
import math
from dataclasses import dataclass

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler, Decision, LearningRateRule, Limits, NoiseScale, Policy, Situation
from lightning_bsscale.demo import DigitsModel, digits_data


@dataclass(frozen=True)
class Ramp(Policy):
    """Grow by equal factors to a given batch, but never beyond what the noise scale allows."""

    to: int = 128
    over: float = 0.5  # share of the training
    needs_budget = True  # a training of unknown length is refused

    def decide(self, situation: Situation, limits: Limits) -> Decision:
        share = min(1.0, situation.examples_seen / (self.over * situation.total_examples))
        planned = situation.start_batch_size * (self.to / situation.start_batch_size) ** share
        current = situation.batch_size
        if situation.noise is None or not situation.noise.resolved:  # an unknown number is no reason to grow
            return Decision(batch_size=current, reason="the noise scale is not known yet", code="unknown")
        allowed = limits.clip(min(planned, situation.noise.lower_bound(0.9), 2 * current))
        if allowed <= current:
            return Decision(batch_size=current, reason=f"the ramp is at {planned:.0f}", code="wait")
        return Decision(batch_size=allowed, reason=f"the ramp is at {planned:.0f}", code="ramp")


class ThreeQuarters(LearningRateRule):
    """Between the square root and linear: the learning rate follows the batch to the power of 3/4."""

    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:
        return math.pow(new_batch / old_batch, 0.75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=int, default=128, help="the largest batch of the ramp")
    parser.add_argument("--over", type=float, default=0.5, help="share of the training that the ramp takes")
    parser.add_argument("--max_epochs", type=int, default=20)
    options = parser.parse_args()

    pl.seed_everything(0)
    torch.set_num_threads(1)
    train_data, val_data = digits_data()
    scaler = BatchSizeScaler(policy=Ramp(to=options.to, over=options.over), lr_rule=ThreeQuarters(), lr_cap=8)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=options.max_epochs,
        callbacks=[scaler],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(train_data, batch_size=8, shuffle=True)
    trainer.fit(DigitsModel(rate=0.01), loader, DataLoader(val_data, batch_size=len(val_data)))
    print(f"{trainer.global_step} optimizer steps, the last one with {scaler.batch_size} examples,", end=" ")
    print(f"accuracy {trainer.callback_metrics['val_accuracy']:.4f}")
    print(scaler.summary())


if __name__ == "__main__":
    main()
