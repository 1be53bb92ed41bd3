"""The interface of a learning-rate rule, the product of its ratios along a run, and what the rules share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from lightning_bsscale.theory.checks import check_number
from lightning_bsscale.theory.estimate import NoiseScale

__all__ = ["FactorPath", "LearningRateRule", "batch_ratio", "resolved_scale", "uses_fallback"]


class LearningRateRule(ABC):
    """The factor on the learning rate when the batch size changes."""

    @property
    def name(self) -> str:
        """Name of the rule, for records."""
        return type(self).__name__

    @property
    def needs_noise(self) -> bool:
        """Whether the rule uses the noise scale, and the square root if that is not resolved."""
        return False

    @property
    def has_peak(self) -> bool:
        """Whether the learning rate may fall as the batch grows."""
        return False

    @abstractmethod
    def ratio(self, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:
        """Compute the factor on the learning rate for one change of the batch size.

        Args:
            old_batch: Batch size before, in examples, above 0.
            new_batch: Batch size after, in examples, above 0.
            noise: The current estimate, or None.

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
    """Return ``new / old``, above 0; refuse batch sizes that are not positive."""
    return check_number("new_batch", new_batch, above=0) / check_number("old_batch", old_batch, above=0)


def resolved_scale(noise: NoiseScale | None) -> float | None:
    """Return the noise scale in examples if it is resolved, else None."""
    return noise.noise_scale if noise is not None and noise.resolved else None


def uses_fallback(rule: LearningRateRule, noise: NoiseScale | None) -> bool:
    """Return whether the rule needs a resolved noise scale and there is none, so that it uses the square root."""
    return rule.needs_noise and resolved_scale(noise) is None


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class FactorPath:
    """The product of a rule's ratios over the changes so far.

    Each change of the batch size uses the noise scale of that moment. Later estimates do not alter it: the factor
    changes only when the batch size does.

    Attributes:
        product: Product of the ratios, before any ceiling.
    """

    product: float = 1.0

    def extended(
        self, rule: LearningRateRule, old_batch: float, new_batch: float, noise: NoiseScale | None
    ) -> FactorPath:
        """Return the path after one more change of the batch size.

        Args:
            rule: The rule.
            old_batch: Batch size before, in examples.
            new_batch: Batch size after, in examples.
            noise: The current estimate, or None.

        Returns:
            The new path.

        Example:
            >>> from lightning_bsscale.theory.rules import Linear, Sqrt
            >>> FactorPath().extended(Linear(), 4, 8, None).extended(Sqrt(), 8, 32, None).product
            4.0
        """
        return FactorPath(product=self.product * _checked_ratio(rule, old_batch, new_batch, noise))

    def factor(self, rule: LearningRateRule) -> float:
        """Compute the factor on the learning rate for windows of the current batch size, after any ceiling."""
        return _checked_factor(rule, self.product)

    def factor_at(
        self, rule: LearningRateRule, batch_size: float, window_batch: float, noise: NoiseScale | None
    ) -> float:
        """Compute the factor for one window of another size (a ragged end), without changing the path.

        Args:
            rule: The rule.
            batch_size: The current batch size, in examples.
            window_batch: Examples in this window.
            noise: The current estimate, or None.

        Returns:
            The factor, after any ceiling.
        """
        return _checked_factor(rule, self.product * _checked_ratio(rule, batch_size, window_batch, noise))


# Users' rules are called here, and a learning rate of 0 or NaN must not reach the optimizer.


def _checked_factor(rule: LearningRateRule, path_factor: float) -> float:
    return check_number(f"the factor that the rule {rule.name!r} applies", rule.applied(path_factor), above=0)


def _checked_ratio(rule: LearningRateRule, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:
    return check_number(f"the ratio of the rule {rule.name!r}", rule.ratio(old_batch, new_batch, noise), above=0)
