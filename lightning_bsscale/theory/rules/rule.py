"""The interface of a learning-rate rule, and what the rules share."""

from __future__ import annotations

from abc import ABC, abstractmethod

from lightning_bsscale.theory.checks import check_number
from lightning_bsscale.theory.estimate import NoiseScale

__all__ = ["LearningRateRule", "batch_ratio", "resolved_scale", "uses_fallback"]


class LearningRateRule(ABC):
    """The factor on the learning rate when the batch size changes."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """Name of the rule, for records."""
        return type(self).__name__

    @property
    def needs_noise(self) -> bool:
        """Whether the rule uses the noise scale (and the square root where it is not resolved)."""
        return False

    @property
    def has_peak(self) -> bool:
        """Whether the learning rate may fall again when the batch grows."""
        return False

    @abstractmethod
    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:
        """Compute the factor on the learning rate for one change of the batch size.

        Args:
            old_batch: Batch size before, in examples, above 0.
            new_batch: Batch size after, in examples, above 0.
            noise: The current estimate, or None where there is none.

        Returns:
            The factor, above 0; 1 when the batch size does not change.
        """

    def applied(self, path_factor: float) -> float:
        """Compute the factor on the learning rate from the product of all ratios so far.

        Args:
            path_factor: Product of the ratios along the path.

        Returns:
            The factor; the same number unless the rule has a ceiling.
        """
        return path_factor


def batch_ratio(old_batch: float, new_batch: float) -> float:
    """Divide the new batch size by the old one; refuse impossible ones.

    Args:
        old_batch: Batch size before, in examples.
        new_batch: Batch size after, in examples.

    Returns:
        ``new / old``, above 0.
    """
    return check_number("new_batch", new_batch, above=0) / check_number("old_batch", old_batch, above=0)


def resolved_scale(noise: NoiseScale | None) -> float | None:
    """Return the noise scale where it is resolved.

    Args:
        noise: The current estimate, or None.

    Returns:
        The noise scale in examples; None where it is unknown.
    """
    return noise.noise_scale if noise is not None and noise.resolved else None


def uses_fallback(rule: LearningRateRule, noise: NoiseScale | None) -> bool:
    """Return whether the rule must use the square root now.

    Args:
        rule: The rule.
        noise: The current estimate, or None.

    Returns:
        True when the rule needs a noise scale and there is no resolved one.
    """
    return rule.needs_noise and resolved_scale(noise) is None
