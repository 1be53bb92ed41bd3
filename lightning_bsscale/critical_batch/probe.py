"""What a probe answers, or why it cannot."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lightning_bsscale.theory.branching import BranchAnswer, Ratio
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.noise_report import NoiseReport
from lightning_bsscale.theory.stored import as_plain

__all__ = ["Probe", "ProbeError"]


class ProbeError(Exception):
    """Why the critical batch cannot be measured, in one sentence with a way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The critical batch, the noise scale at the same parameters, and their ratio.

    Attributes:
        answer: The critical batch by branching, with a row for each batch.
        noise: B_simple at the branching point.
        report: The whole measurement of it; None if it was read from the file of a stopped probe.
        ratio: `critical batch / noise scale`, for `NoiseScalePolicy(target_ratio=...)`; its interval covers with the
            confidence asked for, as both intervals are wider (half the error each).
        start_loss: The held-out loss at the branching point.
        batch_size: The batch there, in examples.
        examples: Examples of each branch.
        seconds: Seconds that the branches took, those of a stopped probe included.
        notes: What else the reader must know, as sentences.
    """

    answer: BranchAnswer
    noise: NoiseScale
    report: NoiseReport | None
    ratio: Ratio
    start_loss: float
    batch_size: float
    examples: float
    seconds: float
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the numbers for `probe.json`: unknown ones are None, and so are values that are not resolved."""
        noise, answer = self.noise, self.answer
        return {
            "critical_batch_ratio": self.ratio.to_json(),
            "critical_batch_size": _interval(answer, answer.value),
            "noise_scale": _interval(noise, noise.noise_scale),
            "resolved": answer.resolved,
            "confidence": round(1 - 2 * (1 - answer.confidence), 9),
            "reason": answer.reason,
            "start_loss": self.start_loss,
            "batch_size": self.batch_size,
            "examples_per_branch": self.examples,
            "offsets": answer.offsets,
            "branches": [
                {**{name: _finite(value) for name, value in as_plain(row).items()}, "verdict": row.verdict.value}
                for row in answer.rows
            ],
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


def _interval(measured: BranchAnswer | NoiseScale, value: float) -> dict[str, Any]:
    # A value with an open end would be taken for a result by whoever reads no further.
    known = value if measured.resolved else math.nan
    return Ratio(value=known, low=measured.low, high=measured.high).to_json()


def _finite(value: Any) -> Any:
    return None if value in {"inf", "-inf", "nan"} else value
