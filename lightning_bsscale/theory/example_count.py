"""Examples over all ranks: counted exactly up to the last message, at the usual size since then."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_bsscale.theory.frozen import changed

__all__ = ["ExampleCount"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleCount:
    """A count that is the same on all ranks at any time, so that decisions may depend on it.

    One rank counts exactly. With several, each rank knows only its own examples and sends them with the next measured
    window. Until that message arrives, every loader batch counts as one of the usual size.

    Attributes:
        known: Examples that were counted exactly.
        in_flight: Examples assumed for the windows of a message that has not arrived.
        assumed: Examples assumed for the windows since that message.
    """

    known: int = 0
    in_flight: int = 0
    assumed: int = 0

    @property
    def total(self) -> int:
        """Examples so far."""
        return self.known + self.in_flight + self.assumed

    def counted(self, examples: int) -> ExampleCount:
        """Add a window whose size over all ranks is known."""
        return changed(self, known=self.known + examples)

    def assuming(self, examples: int) -> ExampleCount:
        """Add a window whose exact size will arrive with a later message."""
        return changed(self, assumed=self.assumed + examples)

    def sent(self) -> ExampleCount:
        """Send a message that covers every window so far."""
        return ExampleCount(known=self.known, in_flight=self.in_flight + self.assumed)

    def arrived(self, examples: int) -> ExampleCount:
        """Replace the assumed number by that of the message."""
        return changed(self, known=self.known + examples, in_flight=0)

    def settled(self) -> ExampleCount:
        """Keep the assumed number, where the message will not be read."""
        return changed(self, known=self.known + self.in_flight, in_flight=0)

    def resumed(self, world_size: int) -> ExampleCount:
        """Continue on `world_size` ranks; one rank has no messages, so assumptions become final."""
        return self if world_size > 1 else ExampleCount(known=self.known + self.assumed, in_flight=self.in_flight)
