"""The JSON file that a probe has written, for whoever decides or plans by it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_bsscale.theory.checks import show
from lightning_bsscale.theory.planning import Interval

__all__ = ["KnownProbe", "read_probe"]

MOST_BYTES = 1 << 24
RATIO, NOISE_SCALE = "critical_batch_ratio", "noise_scale"


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownProbe:
    """What a probe knows.

    Attributes:
        path: Its file.
        ratio: Critical batch over noise scale; None if it was not resolved.
        noise_scale: The noise scale, in examples; None if it was not resolved.
        received: What the file says of the ratio, for a message.
    """

    path: Path
    ratio: Interval | None
    noise_scale: Interval | None
    received: str

    def resolved_ratio(self, instead: str) -> Interval:
        """Return the ratio.

        Args:
            instead: What else to do where it is not known, for the message.

        Returns:
            The ratio with its interval.

        Raises:
            ValueError: If the probe did not resolve it.
        """
        if self.ratio is None:
            raise ValueError(
                f"{self.path} did not resolve {RATIO}, got {self.received}. "
                f"Probe for longer or with other multiples, or {instead}."
            )
        return self.ratio


def read_probe(path: Path) -> KnownProbe:
    """Read the JSON of a probe.

    Args:
        path: The file.

    Returns:
        What it holds of ``critical_batch_ratio`` and ``noise_scale``.

    Raises:
        ValueError: If it is no JSON object with either of them, or what it holds is no interval.
    """
    try:
        with open(path, encoding="utf-8") as file:
            found = json.loads(file.read(MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON file of a probe: {error}.") from error
    if not isinstance(found, dict) or not {RATIO, NOISE_SCALE} & found.keys():
        raise ValueError(
            f"{path} is no JSON file of a probe: it has neither {RATIO} nor {NOISE_SCALE}. "
            "Pass the file that `python -m lightning_bsscale probe` wrote."
        )
    ratio, noise = (_interval(path, name, found.get(name)) for name in (RATIO, NOISE_SCALE))
    return KnownProbe(path=path, ratio=ratio, noise_scale=noise, received=show(found.get(RATIO)))


def _interval(path: Path, name: str, found: Any) -> Interval | None:
    if found is None:
        return None
    if not isinstance(found, dict) or "value" not in found:
        raise ValueError(f"{path} must hold {name} as an object with value, low and high, got {show(found)}.")
    if found["value"] is None:
        return None
    return Interval.checked(f"{path}: {name}", *(found.get(key) for key in ("value", "low", "high")))
