"""The factor on the learning rate along a run: the product of a rule's ratios.

Each change of the batch size uses the noise scale of that moment. A later estimate never rewrites the past: the factor
changes only when the batch size does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from lightning_bsscale.theory.checks import check_number
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.rules.rule import LearningRateRule

__all__ = ["RatePath"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RatePath:
    """The product of a rule's ratios along the changes so far.

    Attributes:
        product: Product of the ratios, before any ceiling.
    """

    product: float = 1.0

    def grown(self, rule: LearningRateRule, old_batch: float, new_batch: float, noise: NoiseScale | None) -> RatePath:
        """Return the path after one more change of the batch size.

        Args:
            rule: The rule.
            old_batch: Batch size before, in examples.
            new_batch: Batch size after, in examples.
            noise: The estimate of this moment, or None.

        Returns:
            The new path.

        Example:
            >>> from lightning_bsscale.theory.rules import Linear, Sqrt
            >>> RatePath().grown(Linear(), 4, 8, None).grown(Sqrt(), 8, 32, None).product
            4.0
        """
        return RatePath(product=self.product * _checked_ratio(rule, old_batch, new_batch, noise))

    def factor(self, rule: LearningRateRule) -> float:
        """Compute the factor on the learning rate for windows of the current batch size.

        Args:
            rule: The rule.

        Returns:
            The factor, after any ceiling.
        """
        return _checked_factor(rule, self.product)

    def factor_at(
        self, rule: LearningRateRule, batch_size: float, window_batch: float, noise: NoiseScale | None
    ) -> float:
        """Compute the factor for one window of another size (a probe, a ragged end); the path stays as it is.

        Args:
            rule: The rule.
            batch_size: The current batch size, in examples.
            window_batch: Examples in this window.
            noise: The current estimate, or None.

        Returns:
            The factor, after any ceiling.
        """
        return _checked_factor(rule, self.product * _checked_ratio(rule, batch_size, window_batch, noise))


# A user's rule is first called here: a learning rate of 0 or NaN must not reach the optimizer.


def _checked_factor(rule: LearningRateRule, path_factor: float) -> float:
    return check_number(f"the factor that the rule {rule.name!r} applies", rule.applied(path_factor), above=0)


def _checked_ratio(rule: LearningRateRule, old_batch: float, new_batch: float, noise: NoiseScale | None) -> float:
    return check_number(f"the ratio of the rule {rule.name!r}", rule.ratio(old_batch, new_batch, noise), above=0)
