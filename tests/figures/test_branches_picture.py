"""The critical batch by branching: what decided it is in the picture."""

from lightning_bsscale.figures import plot_branches
from lightning_bsscale.theory.branching import critical_batch, shares_needed


def test_branches_are_drawn_with_the_interval_and_the_line_that_decides(tmp_path):
    sizes, swing = [8, 16, 32, 64, 128], [0, 0, 0.5, 0, 0]
    losses = [[2 - 1 / (1 + size / 45) + sign * x for size, x in zip(sizes, swing, strict=True)] for sign in (-1, 0, 1)]
    earlier = [[2 - share / (1 + 8 / 45) + sign / 1000 for share in shares_needed(sizes)] for sign in (-1, 0, 1)]
    figure, axes = plot_branches(critical_batch(sizes, 2.0, losses, earlier))
    drawn = {line.get_label(): line for line in axes.lines}
    assert list(drawn["half its worth in a very small batch"].get_ydata())[:2] == [1.0, 0.75]
    assert list(drawn["undecided"].get_xdata()) == [32]
    assert list(drawn["worth of an example"].get_xdata()) == sizes
    assert axes.get_title() == "The critical batch is between 16 and 64"
    interval = axes.patches[0]  # a rectangle, or in older versions a polygon
    assert interval.get_patch_transform().transform(interval.get_path().vertices)[:, 0].min() == 16
    figure.savefig(tmp_path / "branches.png")
