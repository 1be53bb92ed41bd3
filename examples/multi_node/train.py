"""Run the same training in one process or on many nodes: only the launcher changes.

    python examples/multi_node/train.py                          # one process
    python examples/multi_node/train.py --devices 2              # two processes on this machine, started by Lightning
    torchrun ... examples/multi_node/train.py --num_nodes 2 --devices 2 --folder runs/nodes  # see README.md
    sbatch examples/multi_node/train.sbatch

Needs: pip install 'lightning-bsscale[examples]'. With `--folder`, it saves the journal and a checkpoint of every epoch
there. Started again after a failure, it resumes from the newest checkpoint and decides as if it had never stopped.
"""

import argparse
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.demo import DigitsModel, digits_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_nodes", type=int, default=1)
    parser.add_argument("--devices", type=int, default=1, help="processes on each node")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--max_epochs", type=int, default=20)
    parser.add_argument("--batch_size", type=int, default=8, help="size of a loader batch, in every process")
    parser.add_argument("--folder", type=Path, help="folder for checkpoints and the journal, visible to every node")
    options = parser.parse_args()

    pl.seed_everything(0)  # the same weights everywhere; Lightning's DistributedSampler distributes the examples
    torch.set_num_threads(1)  # the layers are tiny: a second thread costs more than it saves
    train_data, val_data = digits_data()
    folder = options.folder
    scaler = BatchSizeScaler(record=folder / "bsscale.jsonl" if folder else False)
    keep = [ModelCheckpoint(folder, save_last=True)] if folder else []
    trainer = pl.Trainer(
        num_nodes=options.num_nodes,
        devices=options.devices,
        accelerator=options.accelerator,
        max_epochs=options.max_epochs,
        callbacks=[scaler, *keep],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=bool(keep),
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    newest = folder / "last.ckpt" if folder else None
    loader = DataLoader(train_data, batch_size=options.batch_size, shuffle=True)
    model = DigitsModel(rate=0.01)
    trainer.fit(model, loader, ckpt_path=newest if newest and newest.is_file() else None)

    if trainer.is_global_zero:
        images, labels = val_data.tensors
        with torch.no_grad():
            accuracy = (model.cpu().eval()(images).argmax(1) == labels).float().mean().item()
        print(f"{trainer.world_size} processes, {trainer.global_step} optimizer steps, {scaler.examples_seen} examples")
        print(f"accuracy {accuracy:.4f}")
        print(scaler.summary())


if __name__ == "__main__":
    main()
