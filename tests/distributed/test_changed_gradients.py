"""`.grad` changed between backward and step on two ranks: all ranks measure the same, or all refuse."""

import warnings

import pytest

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from tests.distributed import trained
from tests.distributed.processes import run

pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("place")]
SAYS = "the gradient in .grad at the step"


class Cancels(trained.Linear):
    """Its first layer is trained from the fourth step on."""

    def on_after_backward(self):
        if self.global_step < 4:
            for parameter in self.net[0].parameters():
                parameter.grad = None


class ChangesOnOneRank(trained.Linear):
    def on_after_backward(self):
        if self.global_rank == 1:
            for parameter in self.parameters():
                parameter.grad *= 1.5


def measured(rank, ranks, module, accumulate, kind):
    if kind == "monitor":
        callback = GradientNoiseScaleMonitor(measure_every=1, memory=1.0)
    else:
        callback = BatchSizeScaler(measure_every=1, memory=1.0, warmup=0)
    trainer = trained.trainer_of(ranks, [callback], max_epochs=1, accumulate_grad_batches=accumulate)
    items = trained.regression_items(80, [4])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module(), trained.loader_of(items, rank, ranks))
    said = sum(SAYS in str(warning.message) for warning in caught)
    decided = [record.batch_size for record in getattr(callback, "decisions", [])]
    return trained.moments_of(callback), callback.noise_scale, said, decided


def test_a_cancelled_layer_is_left_out_on_all_ranks():
    ((alone, *_),) = run(measured, 1, 1, Cancels, 4, "monitor", init=False)
    assert len(alone) == 20
    for found, _, said, _ in run(measured, 2, 2, Cancels, 2, "monitor", init=False):
        assert found == [pytest.approx(window, rel=1e-4) for window in alone]
        assert said == 0


@pytest.mark.parametrize("kind", ["monitor", "scaler"])
def test_all_ranks_refuse_what_one_rank_changes(kind):
    results = run(measured, 2, 2, ChangesOnOneRank, 2, kind, init=False)
    for found, noise, _, decided in results:
        assert found == []
        assert noise is None
        assert len(set(decided)) <= 1
    assert [said for _, _, said, _ in results] == [1, 0]
