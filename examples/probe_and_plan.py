"""Train for a while, measure the critical batch there by short branches, and plan the long training with it.

    python examples/probe_and_plan.py               # checkpoint, probe and plan
    python examples/probe_and_plan.py --offsets 3   # a quick look, which resolves little

Needs: pip install 'lightning-bsscale[examples]'. From the command line, for a training of your own:
`bsscale probe --task package.module:task --ckpt last.ckpt` writes probe.json, which `bsscale plan --probe` reads.
"""

import argparse
import tempfile
from pathlib import Path

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from lightning_bsscale.cli import main as bsscale
from lightning_bsscale.critical_batch import measure_critical_batch
from lightning_bsscale.demo import DigitsModel, digits_data

BATCH = 8


class ConstantRate(DigitsModel):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer()  # a probe is about one moment, and so about one learning rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120, help="steps before the probe")
    parser.add_argument("--offsets", type=int, default=16, help="how often each branch is made, on other examples")
    parser.add_argument("--folder", type=Path, help="where checkpoint and branches are kept (default: nowhere)")
    options = parser.parse_args()

    pl.seed_everything(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        probe_and_plan(options.steps, options.offsets, options.folder or Path(temporary))


def probe_and_plan(steps: int, offsets: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    train_data, val_data = digits_data()
    train_loader = DataLoader(train_data, batch_size=BATCH, shuffle=True)
    val_loader = DataLoader(val_data, batch_size=len(val_data))

    # 1. A checkpoint where you want to know: here, early in the training.
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = ConstantRate()
    trainer.fit(model, train_loader)
    checkpoint = folder / "early.ckpt"
    trainer.save_checkpoint(checkpoint)

    # 2. The noise scale there, and the critical batch: which batches make the most of the same examples?
    found = measure_critical_batch(
        model,
        train_loader,
        val_loader,
        ckpt_path=checkpoint,
        record=folder / "probe.jsonl",  # a stopped probe resumes from it
        trainer_options={"accelerator": "cpu"},
        multiples=(1, 2, 4, 8, 16),
        examples=1024,
        offsets=offsets,
    )
    for row in found.answer.rows:
        print(f"batch {row.batch_size:4.0f}: an example is worth {row.worth:5.2f} of one in the smallest batch")
    print(found.answer.reason)

    # 3. The plan: steps, examples and time of each batch. The critical batch where it is known, else the noise scale.
    if found.answer.resolved:
        known = ["--critical-batch", f"{found.answer.value}", f"{found.answer.low}", f"{found.answer.high}"]
    elif found.noise.resolved:
        known = ["--noise-scale", f"{found.noise.noise_scale}", f"{found.noise.low}", f"{found.noise.high}"]
    else:
        print("Nothing to plan with yet: probe at a later checkpoint, or with more examples.")
        return
    training = f"--examples 1M --at-batch {BATCH} --seconds-per-example 1e-4 --seconds-per-step 2e-3 --optimizer SGD"
    bsscale(["plan", *known, *training.split()])


if __name__ == "__main__":
    main()
