"""Configure the callback in a YAML file, with LightningCLI.

    python examples/cli/main.py fit --config examples/cli/config.yaml
    python examples/cli/main.py fit --config examples/cli/config.yaml --trainer.callbacks.policy.target_ratio 1
    python examples/cli/main.py fit --trainer.callbacks.help lightning_bsscale.BatchSizeScaler   # its options

Needs: pip install 'lightning-bsscale[examples]'. Run it from any folder: results go to runs/cli/ in the current one.
"""

import lightning.pytorch as pl
import torch
from lightning.pytorch.cli import LightningCLI
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.demo import DigitsModel, digits_data


class Digits(pl.LightningDataModule):
    """scikit-learn's digits.

    Args:
        batch_size: Size of a loader batch, and the starting batch size.
    """

    def __init__(self, batch_size: int = 8) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        self.train_data, self.val_data = digits_data()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_data, batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_data, batch_size=len(self.val_data))


def main() -> None:
    torch.set_num_threads(1)  # the layers are tiny: a second thread costs more than it saves
    cli = LightningCLI(DigitsModel, Digits)
    for callback in cli.trainer.callbacks:
        if isinstance(callback, BatchSizeScaler):
            print(callback.summary())


if __name__ == "__main__":
    main()
