import copy
import math
import pickle

import pytest
import torch

from lightning_bsscale import GradientNoiseScale, functional
from lightning_bsscale.theory.estimate import NoiseScale
from tests.helpers.processes import run


def gaussian_windows(count, seed=0, micro_batch_sizes=(8, 8), dimension=50):
    """Windows of micro-gradients with tr(Sigma) = 4 * dimension and ||G||^2 = dimension: noise scale 4."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        gradients = [
            1 + 2 * torch.randn(dimension, generator=generator, dtype=torch.float64) / math.sqrt(size)
            for size in micro_batch_sizes
        ]
        mean = torch.stack(gradients).mean(0)
        yield torch.stack([g.square().sum() for g in gradients]), mean.square().sum(), list(micro_batch_sizes)


def filled(windows):
    metric = GradientNoiseScale()
    for window in windows:
        metric.update(*window)
    return metric


def values_of(metric):
    interval = metric.interval()
    return metric.compute().item(), interval.low, interval.high


def test_finds_a_known_noise_scale():
    metric = filled(gaussian_windows(400, micro_batch_sizes=(8, 8, 4)))
    found = metric.interval()
    assert isinstance(found, NoiseScale)
    assert found.low < 4.0 < found.high < 1.2 * found.low
    assert metric.compute().item() == found.noise_scale
    assert metric.interval(0.99).high > found.high


def test_agrees_with_the_function():
    windows = list(gaussian_windows(20))
    expected = functional.noise_scale(*zip(*windows, strict=True))
    assert values_of(filled(windows)) == pytest.approx((expected.noise_scale, expected.low, expected.high))


def test_forward_gives_the_windows_own_value_and_keeps_the_sums():
    windows = list(gaussian_windows(5))
    metric = GradientNoiseScale()
    values = [metric(*window) for window in windows]
    for value, window in zip(values, windows, strict=True):
        assert value.item() == pytest.approx(functional.noise_scale(*window).noise_scale)
    assert metric.compute().item() == pytest.approx(filled(windows).compute().item())


def test_unknown_is_a_value():
    metric = GradientNoiseScale()
    with pytest.warns(UserWarning, match="before the ``update`` method"):
        assert metric.compute().isnan()
    assert metric.interval() is None
    metric.update([9.0, 1.0], 4.0, [4, 4])
    assert metric.interval().high == math.inf
    assert not metric.interval().resolved
    # The squared gradient norm comes out below zero: the noise scale is infinite, not some large number.
    metric.reset()
    metric.update([9.0, 9.0], 1.0, [4, 4])
    assert metric.compute().item() == math.inf


def test_a_window_that_overflowed_is_dropped_and_counted():
    metric = filled(gaussian_windows(5))
    before = metric.compute()
    metric.update([math.inf, 1.0], math.inf, [4, 4])
    metric.update([math.nan, 1.0], 1.0, [4, 4])
    assert metric.compute() == before
    assert metric.sum_dropped.item() == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, -2.0], 1.0, [4, 4]), r"micro_sq_norms\[1\] .*-2"),
        (([1.0, 2.0], -1.0, [4, 4]), "mean_sq_norm "),
        ((torch.ones(2), 1.0, torch.tensor(4)), "micro_batch_sizes "),
    ],
)
def test_wrong_arguments_are_named_and_leave_nothing(arguments, message):
    metric = filled(gaussian_windows(2))
    before = metric.interval()
    with pytest.raises((ValueError, TypeError), match=message):
        metric.update(*arguments)
    assert metric.interval() == before
    with pytest.raises(ValueError, match=r"^confidence .*90"):
        metric.interval(90)


@pytest.mark.parametrize("change", [torch.nn.Module.half, torch.nn.Module.float, lambda m: m.to("cpu")])
def test_sums_stay_in_double_precision(change):
    module = torch.nn.ModuleDict({"metric": filled(gaussian_windows(5))})
    before = module["metric"].interval()
    change(module)
    assert module["metric"].sum_weight.dtype == torch.float64
    assert module["metric"].interval() == before


def test_pickle_copy_and_checkpoint():
    metric = filled(gaussian_windows(5))
    expected = metric.interval()
    assert pickle.loads(pickle.dumps(metric)).interval() == expected
    assert copy.deepcopy(metric).interval() == expected
    state = metric.state_dict()
    assert {value.dtype for value in state.values()} == {torch.float64}
    fresh = GradientNoiseScale()
    fresh.load_state_dict(state)
    assert fresh.interval() == expected


def test_two_halves_added_are_the_whole():
    windows = list(gaussian_windows(20))
    first, second = filled(windows[:7]), filled(windows[7:])
    first.merge_state(second)
    assert first.interval().noise_scale == pytest.approx(filled(windows).interval().noise_scale)


def test_plot():
    from matplotlib import pyplot
    from matplotlib.figure import Figure

    metric = filled(gaussian_windows(5))
    figure, _ = metric.plot()
    assert isinstance(figure, Figure)
    drawn = Figure().add_subplot()
    _, axis = metric.plot([metric(*window) for window in gaussian_windows(3)], ax=drawn)
    assert axis is drawn
    assert len(axis.lines) >= 1
    pyplot.close("all")


def test_processes_add_their_windows():
    first, second = run(halves, 2)
    assert first == second == pytest.approx(values_of(filled(gaussian_windows(21))))


def halves(rank):
    windows = list(gaussian_windows(21))
    own = windows[:7] if rank == 0 else windows[7:]
    metric = filled(own)
    values = values_of(metric)
    # After the answer each process has its own sums again, and can go on.
    assert metric.sum_windows.item() == len(own)
    return values
