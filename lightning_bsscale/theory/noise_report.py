"""What a measurement at fixed parameters found: in total, per layer and per parameter group."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from lightning_bsscale.theory.blocks import relative_half_width
from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.numbers import describe_count

__all__ = ["Ending", "NoiseReport"]


class Ending(str, Enum):
    """Why a measurement ended; the value is the sentence for people."""

    REACHED = "the relative error asked for is reached"
    OUT_OF_BATCHES = "there are no more batches"
    MAX_BATCHES = "max_batches is reached"
    OUT_OF_TIME = "the time is used up"


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseReport:
    """The noise scale at fixed parameters.

    Attributes:
        noise: B_simple = tr(Sigma) / ||G||^2 of all parameters, in examples, with its interval.
        layers: The same for the parameters of each module, by its name.
        groups: The same for each parameter group of the optimizer, by name or number; empty without an optimizer.
        hessian: B_noise = tr(H Sigma) / G.HG; None if it was not asked for or not measured.
        hessian_products: Number of Hessian-vector products behind it, each with another batch.
        preconditioned: tr(P Sigma) / G.PG with the optimizer's diagonal P; None without its state.
        relative_error: The relative error asked for: half the width of the interval over the estimate.
        ending: Why the measurement ended.
        more_batches: Forecast of the batches that the relative error still needs: 0 if it is reached, infinite if
            nothing is known yet.
        batches: Batches whose gradients entered.
        examples: Examples in them.
        dropped: Batches that were left out because their gradient was not finite.
        notes: What else the reader must know, as sentences.
    """

    noise: NoiseScale
    layers: Mapping[str, NoiseScale] = field(default_factory=dict)
    groups: Mapping[str, NoiseScale] = field(default_factory=dict)
    hessian: NoiseScale | None = None
    hessian_products: int = 0
    preconditioned: NoiseScale | None = None
    relative_error: float
    ending: Ending
    more_batches: float = 0.0
    batches: int
    examples: float
    dropped: int = 0
    notes: tuple[str, ...] = ()

    @property
    def is_reached(self) -> bool:
        """Whether the relative error asked for was reached."""
        return self.ending is Ending.REACHED

    def sentence(self) -> str:
        """Say what was found, how well it is known, and what is missing."""
        noise, confidence = self.noise, f"{100 * self.noise.confidence:.3g} %"
        if noise.resolved:
            found = f"The noise scale is {_number(noise.noise_scale)} examples"
            found += f" ({confidence} interval {_number(noise.low)} to {_number(noise.high)})"
        else:
            found = f"The noise scale is not resolved: at least {_number(noise.low)} examples ({confidence} interval)"
        source = f"from {_number(self.batches)} batches with {_number(self.examples)} examples"
        text = f"{found}, {source}: {self.ending.value}."
        if self.is_reached:
            return text
        asked = f"A relative error of {self.relative_error:.3g}"
        if math.isinf(self.more_batches):
            return f"{text} {asked} cannot be forecast yet: the squared gradient norm is not above its own noise."
        return f"{text} {asked} needs about {_number(self.more_batches)} more."

    def rows(self) -> list[tuple[str, NoiseScale]]:
        """Return every noise scale with its name: the total, the variants, the groups, the layers."""
        rows = [("total", self.noise)]
        if self.hessian is not None:
            rows.append((f"total, Hessian-weighted ({self.hessian_products} products)", self.hessian))
        if self.preconditioned is not None:
            rows.append(("total, preconditioned", self.preconditioned))
        rows += [(f"group {name}", noise) for name, noise in self.groups.items()]
        return rows + [(name or "(the model itself)", noise) for name, noise in self.layers.items()]

    def table(self) -> str:
        """Format all noise scales as an aligned table: the shares are those of tr(Sigma) and of ||G||^2."""
        title = ("", "noise scale", "low", "high", "share of noise", "share of signal")
        lines: list[tuple[str, ...]] = [title]
        for name, noise in self.rows():
            is_part = noise is not self.hessian and noise is not self.preconditioned
            shares = [
                f"{100 * part / whole:.3g} %" if is_part and whole > 0 and part >= 0 else "-"
                for part, whole in ((noise.trace, self.noise.trace), (noise.grad_sq, self.noise.grad_sq))
            ]
            value = _number(noise.noise_scale) if noise.resolved else "unresolved"
            lines.append((name, value, _number(noise.low), _number(noise.high), *shares))
        widths = [max(len(line[column]) for line in lines) for column in range(len(title))]
        return "\n".join(
            "  ".join(
                [line[0].ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
            ).rstrip()
            for line in lines
        )

    def to_json(self) -> dict[str, Any]:
        """Return the numbers for a JSON file: unknown and infinite ones are None."""
        return {
            "noise_scale": _plain(self.noise),
            "hessian_weighted": None if self.hessian is None else _plain(self.hessian),
            "hessian_products": self.hessian_products,
            "preconditioned": None if self.preconditioned is None else _plain(self.preconditioned),
            "layers": {name: _plain(noise) for name, noise in self.layers.items()},
            "groups": {name: _plain(noise) for name, noise in self.groups.items()},
            "relative_error": _finite(relative_half_width(self.noise)),
            "relative_error_asked": self.relative_error,
            "ending": self.ending.name.lower(),
            "more_batches": _finite(self.more_batches),
            "batches": self.batches,
            "examples": self.examples,
            "dropped": self.dropped,
            "notes": list(self.notes),
        }


def _plain(noise: NoiseScale) -> dict[str, Any]:
    return {
        "value": _finite(noise.noise_scale),
        "low": _finite(noise.low),
        "high": _finite(noise.high),
        "resolved": noise.resolved,
        "trace": _finite(noise.trace),
        "grad_sq": _finite(noise.grad_sq),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float) -> str:
    if math.isinf(value):
        return "unknown"
    return describe_count(value)
