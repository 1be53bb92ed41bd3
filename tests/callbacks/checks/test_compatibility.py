"""Lightning comes in two packages that do not know each other's classes: one sentence says which import is right."""

import pytest
import torch

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from tests.helpers.expected_warnings import CANNOT_MEASURE, WITHOUT_VALIDATION
from tests.helpers.training import QUIET, Regression, regression_loader

foreign = pytest.importorskip("pytorch_lightning", reason="pytorch-lightning is not installed")


class Module(foreign.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(8, 2)
        self.trained = 0

    def training_step(self, batch, batch_idx):
        self.trained += 1
        return torch.nn.functional.mse_loss(self.net(batch[0]), batch[1])

    validation_step = test_step = training_step

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


# Who refuses, what it found, and the import to use instead.
SENTENCE = r"{}.*lightning\.pytorch.*\({}\).*`import lightning\.pytorch as pl` instead of `import pytorch_lightning "


class Mine(foreign.Trainer):
    """A Trainer of the user's own, whose module says nothing of the package it comes from."""


FOREIGN = (foreign.Trainer, r"pytorch_lightning\.trainer\.trainer\.Trainer")


@pytest.mark.parametrize("cls", [BatchSizeScaler, GradientNoiseScaleMonitor])
@pytest.mark.parametrize(
    ("call", "made", "found"),
    [(call, *FOREIGN) for call in ("fit", "validate", "test")] + [("fit", Mine, r"\S*test_compatibility\.Mine")],
)
@WITHOUT_VALIDATION
def test_the_foreign_trainer_is_refused_before_anything_else(cls, call, made, found):
    module = Module()
    module.automatic_optimization = False  # refused too, but that would not be the first thing to mend
    trainer = made(**QUIET, max_epochs=1, callbacks=[cls()])
    with pytest.raises(TypeError, match=SENTENCE.format(cls.__name__, found)):
        getattr(trainer, call)(module, regression_loader(40))
    assert module.trained == 0


@CANNOT_MEASURE
def test_a_foreign_callback_beside_ours_is_called_as_any_other():
    import lightning.pytorch as pl

    class Looks(foreign.Callback):
        sizes = ()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.sizes = (*self.sizes, int(trainer.accumulate_grad_batches))

    looks, scaler = Looks(), BatchSizeScaler(split=False)
    trainer = pl.Trainer(**QUIET, max_epochs=1, callbacks=[looks, scaler])
    trainer.fit(Regression(), regression_loader(40))
    assert len(looks.sizes) == 10
    assert scaler.examples_seen == 40
