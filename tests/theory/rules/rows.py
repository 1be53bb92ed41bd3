"""A rule's ratios at points where they are known by hand."""

from lightning_bsscale.theory.rules import LearningRateRule
from tests.theory.simulated import noise_of


def ratios(rule: LearningRateRule, *, old: float = 64, scale: float = 512.0) -> list[float]:
    """The rule's ratios when the batch grows from `old` to 1, 2, 4 and 8 times that, at this noise scale."""
    return [rule.ratio(old, old * growth, noise_of(scale)) for growth in (1, 2, 4, 8)]
