"""The picture of a run: what is drawn is what was measured and decided, in words that explain it."""

import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from lightning_bsscale import BatchSizeScaler, GradientNoiseScaleMonitor
from lightning_bsscale.figures import DrawnRun, plot_noise_scale, plot_run
from lightning_bsscale.theory.losses import LossPoint
from lightning_bsscale.theory.policies import Decision, HoldIfWorse, Milestones, NoiseScalePolicy, Seesaw
from tests.helpers.expected_warnings import CANNOT_MEASURE
from tests.helpers.records import DECISION, MEASUREMENT, NOISE
from tests.helpers.training import Regression, fit, regression_loader, scripted

pytestmark = CANNOT_MEASURE

KNOWN = replace(NOISE, noise_scale=100.0, low=50.0, high=200.0, trace=100.0, grad_sq=1.0, resolved=True)


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    plt.close("all")


def measured(seen, *, noise=KNOWN, lr=0.1, scale=1.0, loader_batches=1, batch=8):
    return replace(
        MEASUREMENT,
        examples_seen=seen,
        noise=noise,
        lr=lr,
        lr_scale=scale,
        accumulate_grad_batches=loader_batches,
        batch_size=batch,
    )


def decided(seen, before, after, *, lr_scale=1.0, ratio=1.0, bound=40.0):
    return replace(
        DECISION,
        situation=replace(DECISION.situation, examples_seen=seen, batch_size=before),
        decision=Decision(batch_size=after, reason="r", bound=bound, confidence=0.9, target=ratio * bound, needed=10.0),
        batch_size=after,
        lr_scale=lr_scale,
    )


def run(**changes):
    """Two growths: at 250 from 8 to 16, at 350 to 32."""
    history = [
        measured(100, noise=None),
        measured(200, noise=NOISE),
        measured(300, lr=0.3, scale=3.0, loader_batches=2, batch=16),
        # A short last window, with a factor of its own.
        measured(320, lr=0.15, scale=1.5, loader_batches=1, batch=16),
        measured(400, lr=0.5, scale=5.0, loader_batches=4, batch=32, noise=replace(KNOWN, noise_scale=120.0)),
    ]
    decisions = [decided(150, 8, 8), decided(250, 8, 16, lr_scale=3.0), decided(350, 16, 32, lr_scale=5.0)]
    whole = dict(history=history, decisions=decisions, examples_seen=450, warmup_examples=60, granularity=8)
    return DrawnRun(**whole | changes)


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def labels(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()] if axes.get_legend() else []


def texts(axes):
    return " ".join(" ".join(text.get_text() for text in axes.texts).split())


def test_noise_scale_band_bound_and_batch(tmp_path):
    figure, axes = plot_run(run())
    top = axes[0]
    drawn = lines(top)
    noise = drawn["noise scale"]
    assert list(noise.get_xdata()) == [200, 300, 320, 400]
    assert math.isnan(noise.get_ydata()[0])  # not resolved: a gap
    assert list(noise.get_ydata())[1:] == [100.0, 100.0, 120.0]
    bound = drawn["its lower bound (90 %) = target"]
    expected = KNOWN.lower_bound(0.9)
    assert list(bound.get_ydata())[1:] == pytest.approx([expected] * 3)
    batch = drawn["batch"]
    assert (list(batch.get_xdata()), list(batch.get_ydata())) == ([0, 250, 350, 450], [8, 16, 32, 32])
    assert batch.get_drawstyle() == "steps-post"
    changed = drawn["batch changed"]
    assert (list(changed.get_xdata()), list(changed.get_ydata())) == ([250, 350], [16, 32])
    assert all(math.isfinite(limit) for limit in (*top.get_ylim(), *top.get_xlim()))
    assert top.get_xlim() == (0, 450)
    figure.savefig(tmp_path / "run.png")


def test_warmup_and_unresolved_stretches_are_marked_where_they_were():
    _, axes = plot_run(run())
    by_label = {patch.get_label(): patch for patch in axes[0].patches}
    veil = by_label["warmup: no growth yet"].get_extents().transformed(axes[0].transData.inverted())
    assert (veil.x0, veil.x1) == pytest.approx((0, 60))
    (strip,) = [one for one in axes[0].collections if one.get_label() == "not resolved"]
    (path,) = strip.get_paths()  # the two windows without are one stretch
    assert (path.vertices[:, 0].min(), path.vertices[:, 0].max()) == (0, 200)
    shown = labels(axes[0])
    assert shown[0] == "noise scale"
    assert shown[-2:] == ["warmup: no growth yet", "not resolved"]


def test_the_learning_rate_is_drawn_as_it_was_with_its_jumps():
    _, axes = plot_run(run())
    drawn = lines(axes[1])
    real, plain = drawn["learning rate"], drawn["without the batch's factor"]
    # The schedule is flat at 0.1; the short window's own factor is not drawn.
    points = [
        (100, 0.1),
        (200, 0.1),
        (250, 0.1),
        (250, 0.3),
        (300, 0.3),
        (320, 0.3),
        (350, 0.3),
        (350, 0.5),
        (400, 0.5),
    ]
    assert list(zip(real.get_xdata(), real.get_ydata(), strict=True)) == [(x, pytest.approx(y)) for x, y in points]
    assert list(plain.get_ydata()) == pytest.approx([0.1] * 5)
    assert list(drawn["batch changed"].get_ydata()) == pytest.approx([0.3, 0.5])


def test_between_two_windows_a_jump_lies_on_the_schedule():
    falling = [measured(100, lr=0.4), measured(200, lr=0.6, scale=3.0)]  # the schedule falls from 0.4 to 0.2
    _, axes = plot_run(run(history=falling, decisions=[decided(150, 8, 16, lr_scale=3.0)], granularity=None))
    real = lines(axes[1])["learning rate"]
    assert list(real.get_ydata()) == pytest.approx([0.4, 0.3, 0.9, 0.6])


def test_a_target_that_is_a_share_of_the_bound_has_its_own_line():
    decisions = [decided(150, 8, 8, ratio=0.25), decided(250, 8, 16, ratio=0.25)]
    _, axes = plot_run(run(decisions=decisions))
    drawn = lines(axes[0])
    bound, target = drawn["its lower bound (90 %)"], drawn["target: 0.25 × lower bound"]
    assert list(target.get_ydata())[1:] == pytest.approx([0.25 * value for value in bound.get_ydata()[1:]])
    low, high = axes[0].get_ylim()
    assert all(low < value < high for value in target.get_ydata()[1:])


def test_targets_that_are_no_share_of_a_bound_are_drawn_where_they_were_decided():
    decisions = [decided(150, 8, 8, ratio=0.25), decided(250, 8, 16, ratio=0.5)]
    _, axes = plot_run(run(decisions=decisions))
    targets = lines(axes[0])["target of a decision"]
    assert list(zip(targets.get_xdata(), targets.get_ydata(), strict=True)) == [(150, 10.0), (250, 20.0)]


def test_a_dry_run_says_that_its_batch_was_not_used():
    history = [measured(100, lr=0.1), measured(300, lr=0.2)]
    _, axes = plot_run(run(history=history, is_dry_run=True))
    assert "batch (dry run: not used)" in lines(axes[0])
    drawn = lines(axes[1])
    assert list(drawn["learning rate"].get_ydata()) == [0.1, 0.2]  # as it was: no factor was applied
    assert set(drawn) & {"without the batch's factor", "batch changed"} == set()


def test_a_monitors_batch_is_that_of_its_windows():
    history = [measured(100), measured(200), measured(300, batch=32)]
    _, axes = plot_noise_scale(DrawnRun(history=history, examples_seen=400, batch_size=3))
    batch = lines(axes)["batch"]
    assert (list(batch.get_xdata()), list(batch.get_ydata())) == ([0, 200, 400], [8, 32, 32])


LIMIT = "largest batch that min_steps=10 allows"


def limited(min_steps, total, **changes):
    _, axes = plot_run(run(min_steps=min_steps, total_examples=total, **changes))
    return axes[0]


def test_the_limit_by_min_steps_is_drawn_with_its_formula():
    axes = limited(10, 600.0)
    drawn = lines(axes)[LIMIT]
    assert LIMIT in labels(axes)
    seen, most = np.array(drawn.get_xdata()), np.array(drawn.get_ydata())
    assert most == pytest.approx(600 * 600 / (2 * 10 * (600 - seen)))
    assert (seen[0], seen[-1]) == (0, 450)  # the run ends before the budget does
    assert drawn.get_linestyle() == "--"
    assert drawn.get_linewidth() < lines(axes)["batch"].get_linewidth()


def test_only_what_lies_within_the_axis_is_drawn_of_the_limit():
    axes, without = limited(10, 450.0), limited(0, 450.0)
    low, high = axes.get_ylim()
    assert (low, high) == without.get_ylim()
    most = lines(axes)[LIMIT].get_ydata()
    assert low <= min(most) < max(most) == pytest.approx(high)  # at the budget's end it leaves the picture
    beginning = limited(100, 450.0)
    most = lines(beginning)["largest batch that min_steps=100 allows"].get_ydata()
    assert min(most) == pytest.approx(low)  # from below


@pytest.mark.parametrize(
    ("min_steps", "total", "examples"),
    [(10, 1e6, 450), (0, 600.0, 450), (10, None, 450), (10, 1e200, 450), (10**400, 600.0, 450)],
    ids=["far above", "no limit", "no budget", "no number", "no steps"],
)
def test_a_limit_that_is_none_or_far_away_changes_nothing(min_steps, total, examples):
    axes, without = limited(min_steps, total, examples_seen=examples), limited(0, None, examples_seen=examples)
    assert axes.get_ylim() == without.get_ylim()
    assert labels(axes) == labels(without)


class LogsItsLoss(Regression):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.log("val_loss", loss)
        return loss


@pytest.mark.min_steps
def test_a_training_draws_the_limit_of_its_policy():
    limits = {}
    for name, policy in (
        ("default", NoiseScalePolicy()),
        ("fewer", NoiseScalePolicy(min_steps=20)),
        ("within", HoldIfWorse(NoiseScalePolicy(min_steps=20), monitor="val_loss")),
        ("other", Milestones({0.5: 2})),
    ):
        scaler = BatchSizeScaler(policy=policy)
        fit(LogsItsLoss(), regression_loader(400), [scaler], max_epochs=1)
        figure, axes = scaler.plot()
        limits[name] = [label for label in labels(np.ravel(axes)[0]) if "min_steps" in label]
        plt.close(figure)
    assert limits["fewer"] == limits["within"] == ["largest batch that min_steps=20 allows"]
    assert limits["default"] == ["largest batch that min_steps=500 allows"]  # in sight near the end alone
    assert limits["other"] == []


def losses(**curves):
    return {
        name: [
            LossPoint(examples_seen=10 * step, optimizer_steps=step, seconds=0.1 * step, value=value)
            for step, value in enumerate(values, start=1)
        ]
        for name, values in curves.items()
    }


def test_losses_against_examples_and_steps():
    figure, axes = plot_run(run(losses=losses(train_loss=[3.0, 2.0, 1.0], val_loss=[2.5, 1.5])))
    assert len(axes) == 4
    assert [panel.get_xlabel() for panel in axes[2:]] == ["examples seen", "optimizer steps"]
    assert list(lines(axes[2])["train_loss"].get_xdata()) == [10, 20, 30]
    assert list(lines(axes[3])["train_loss"].get_xdata()) == [1, 2, 3]
    assert list(lines(axes[3])["val_loss"].get_ydata()) == [2.5, 1.5]
    assert labels(axes[3]) == ["train_loss", "val_loss"]
    figure.canvas.draw()


def test_a_noisy_loss_has_its_running_median():
    values = [1.0 + (index % 2) for index in range(100)]
    values[50] = 1000.0
    values[60] = math.nan
    _, axes = plot_run(run(losses=losses(loss=values)))
    median = lines(axes[2])["loss (median)"].get_ydata()
    assert len(median) == 100
    assert max(median) <= 2  # the outlier is in the thin line alone
    assert any(max(np.nan_to_num(line.get_ydata())) == 1000 for line in axes[2].lines)


def test_the_axes_speak_the_runs_unit():
    _, axes = plot_run(run(unit="tokens", losses=losses(loss=[1.0, 0.5])))
    assert [panel.get_xlabel() for panel in axes] == ["tokens seen", "tokens seen", "tokens seen", "optimizer steps"]
    assert axes[0].get_ylabel() == "tokens in one step"
    assert axes[1].get_ylabel() == "learning rate"


@pytest.mark.parametrize(
    ("drawn", "says"),
    [
        (DrawnRun(why="No training in this process yet."), "No training in this process yet."),
        (DrawnRun(), "Nothing was measured"),
        (DrawnRun(decisions=[DECISION], examples_seen=500, why="Every step had one micro-batch."), "one micro-batch"),
        (DrawnRun(history=[measured(100, noise=NOISE)], why="It is not resolved."), "It is not resolved."),
    ],
)
def test_an_empty_picture_says_why(drawn, says, tmp_path):
    figure, axes = plot_run(drawn)
    assert says in texts(np.atleast_1d(axes)[0])
    figure.savefig(tmp_path / "empty.png")


def test_a_full_picture_says_nothing_over_it():
    _, axes = plot_run(run(why="Because."))
    assert texts(axes[0]) == ""


def test_axes_that_are_given_get_the_noise_scale_alone():
    figure, axes = plt.subplots()
    assert plot_run(run(losses=losses(loss=[1.0])), axes) == (figure, axes)
    assert "batch" in lines(axes)
    assert len(figure.axes) == 1
    assert axes.get_xlabel() == "examples seen"


def luminance(color):
    red, green, blue = (int(to_hex(color)[place : place + 2], 16) / 255 for place in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_lines_differ_in_more_than_hue():
    """Okabe and Ito's colours; each two lines of a panel also differ in dashes, markers or brightness."""
    decisions = [decided(150, 8, 8, ratio=0.25), decided(250, 8, 16, ratio=0.25)]
    _, axes = plot_run(run(decisions=decisions, losses=losses(a=[1.0], b=[1.0], c=[1.0], d=[1.0])))
    for panel in axes:
        shapes = [(line.get_linestyle(), line.get_marker(), line.get_drawstyle()) for line in panel.lines]
        bright = [luminance(line.get_color()) for line in panel.lines]
        for one in range(len(shapes)):
            for other in range(one):
                assert shapes[one] != shapes[other] or abs(bright[one] - bright[other]) > 0.1


@pytest.mark.parametrize("size", [(8, 9), (5, 7)])
def test_it_is_laid_out_at_every_size(size):
    """Matplotlib warns where axes would collapse; warnings are errors here."""
    figure, axes = plot_run(run(losses=losses(train_loss=[3.0] * 60, val_loss=[2.5, 1.5])))
    figure.set_size_inches(*size)
    figure.canvas.draw()
    inside = figure.bbox
    for panel in axes:
        box = panel.get_window_extent()
        assert box.width > 60
        assert box.height > 40
        assert inside.contains(box.x0, box.y0)
        assert inside.contains(box.x1, box.y1)


def test_names_of_the_users_are_shown_as_they_are(tmp_path):
    """Not read as formulas, of which this one could not be drawn, nor hidden for their first letter."""
    name = r"_loss $\frac{$"
    figure, axes = plot_run(run(unit="$tokens_$", losses=losses(**{name: [1.0, 0.5]})))
    assert [text.strip() for text in labels(axes[3])] == [name.replace("$", r"\$")]
    figure.savefig(tmp_path / "run.png")
    figure, _ = plot_run(DrawnRun(why=r"$\frac{$ of it."))
    figure.savefig(tmp_path / "empty.png")


@pytest.fixture(scope="module")
def trained():
    scaler = BatchSizeScaler(warmup=100, measure_every=1)

    class Logs(Regression):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train_loss", loss)
            return loss

    fit(Logs(), regression_loader(2000, noise=3.0), [scaler], max_epochs=2, log_every_n_steps=10)
    return scaler


def test_a_real_run_is_drawn_with_everything(trained):
    figure, axes = trained.plot()
    assert len(axes) == 4
    batch = lines(axes[0])["batch"]
    changes = [record for record in trained.decisions if record.is_change]
    assert list(batch.get_ydata()) == [4, *(record.batch_size for record in changes), changes[-1].batch_size]
    assert batch.get_xdata()[-1] == trained.examples_seen == 4000
    assert "warmup: no growth yet" in labels(axes[0])
    loss = trained.losses["train_loss"]
    assert list(axes[2].lines[0].get_xdata()) == [point.examples_seen for point in loss]
    figure.canvas.draw()


def test_a_run_without_a_measurement_says_why_in_its_picture():
    scaler = scripted(4)
    fit(Regression(), regression_loader(40), [scaler], max_epochs=1)
    _, axes = scaler.plot()
    assert "The batch stayed at 4 examples." in texts(axes)
    assert list(lines(axes)["batch"].get_ydata()) == [4, 4]
    for callback in (BatchSizeScaler(), GradientNoiseScaleMonitor()):
        assert "No training in this process yet." in texts(callback.plot()[1])


def test_a_policy_without_a_bound_has_none_in_its_picture():
    scaler = BatchSizeScaler(policy=Seesaw(gate=None), warmup=0, measure_every=1, schedule="linear", lr_rule="sqrt")
    fit(Regression(lambda p: __import__("torch").optim.Adam(p)), regression_loader(200), [scaler], max_epochs=1)
    _, axes = scaler.plot()
    assert not [label for label in labels(axes[0]) if "bound" in label]
