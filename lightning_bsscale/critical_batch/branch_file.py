"""The file of finished branches, one line each, from which a stopped probe resumes."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_bsscale.critical_batch.probe import ProbeError
from lightning_bsscale.theory.checks import show

__all__ = ["BranchFile"]


@dataclass(slots=True)
class BranchFile:
    """The file of finished branches."""

    path: Path
    settings: dict[str, Any]
    _values: dict[str, Any] = field(default_factory=dict)
    _branches: dict[tuple[int, float], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Read the finished branches, after what a kill has torn is removed; what it held is measured again.

        Raises:
            ProbeError: If the file holds something else.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        first = json.dumps({"settings": self.settings}) + "\n"
        if first.startswith(text):  # a new file, or one whose first line was being written
            self.path.write_text(first, encoding="utf-8")
            return
        whole = text[: text.rfind("\n") + 1]
        lines = [_as_object(line) for line in text.splitlines()]
        if lines[0].get("settings") != self.settings:
            raise ProbeError(
                f"{self.path} holds branches of another probe ({show(lines[0].get('settings'))} instead of "
                f"{show(self.settings)}): name another file, or remove it"
            )
        if whole != text:
            lines.pop()
            self.path.write_text(whole, encoding="utf-8")
        for line in lines:
            if "branch" in line:
                self._branches[line["branch"][0], line["branch"][1]] = line
            self._values.update(line.get("value", {}))

    def _append(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def once(self, name: str, compute: Callable[[], Any]) -> Any:
        """Return a value of the file, or compute and write it."""
        if name not in self._values:
            self._values[name] = compute()
            self._append({"value": {name: self._values[name]}})
        return self._values[name]

    def known(self, name: str, otherwise: Any = None) -> Any:
        """Return a value of the file, or another if it has none."""
        return self._values.get(name, otherwise)

    def add(
        self,
        offset: int,
        batch_size: float,
        loss: float,
        seconds: float,
        data: str,
        earlier: Sequence[float] = (),
    ) -> None:
        """Write a finished branch; `data` is the fingerprint of its examples, `earlier` are its losses on the way."""
        plain = [one if math.isfinite(one) else str(one) for one in (loss, *earlier)]
        line: dict[str, Any] = {
            "branch": [offset, batch_size],
            "loss": plain[0],
            "seconds": round(seconds, 3),
            "data": data,
        }
        if earlier:
            line["earlier"] = plain[1:]
        self._branches[offset, batch_size] = line
        self._append(line)

    def has(self, offset: int, batch_size: float, data: str | None = None) -> bool:
        """Return whether a branch is finished, and of these examples."""
        line = self._branches.get((offset, batch_size))
        return line is not None and (data is None or line["data"] == data)

    def loss(self, offset: int, batch_size: float) -> float:
        """Return the held-out loss of a finished branch; not finite if it diverged."""
        return float(self._branches[offset, batch_size]["loss"])

    def earlier(self, offset: int, batch_size: float) -> list[float]:
        """Return its held-out losses on the way."""
        return [float(one) for one in self._branches[offset, batch_size]["earlier"]]

    @property
    def seconds(self) -> float:
        """Return what all finished branches took."""
        return float(sum(line["seconds"] for line in self._branches.values()))

    def median_seconds(self, batch_size: float) -> float | None:
        """Return the median of what branches of a batch took, None without any."""
        taken = [line["seconds"] for (_, size), line in self._branches.items() if size == batch_size]
        return statistics.median(taken) if taken else None


def _as_object(text: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}
