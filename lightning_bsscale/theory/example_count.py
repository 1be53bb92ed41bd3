"""Examples over all ranks: exact up to the last message, assumed to be of the usual size since then."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["ExampleCount"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleCount:
    """A count that all ranks share at every moment, so that decisions may depend on it.

    One rank counts exactly. With several, each rank knows only its own examples and sends them with the next measured
    window. Until that message arrives, every loader batch counts as one of the usual size.

    Attributes:
        known: Examples that were counted exactly.
        in_flight: Examples assumed for the windows that a message on its way covers.
        assumed: Examples assumed for the windows since.
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
        return replace(self, known=self.known + examples)

    def assuming(self, examples: int) -> ExampleCount:
        """Add a window whose size a later message will bring."""
        return replace(self, assumed=self.assumed + examples)

    def sent(self) -> ExampleCount:
        """Send a message that covers every window so far."""
        return ExampleCount(known=self.known, in_flight=self.in_flight + self.assumed)

    def arrived(self, examples: int) -> ExampleCount:
        """Replace what was assumed by what the message brought."""
        return replace(self, known=self.known + examples, in_flight=0)

    def settled(self) -> ExampleCount:
        """Keep what was assumed: the message on its way will not be read."""
        return replace(self, known=self.known + self.in_flight, in_flight=0)

    def resumed(self, world_size: int) -> ExampleCount:
        """Continue on `world_size` ranks; one rank has no messages, so assumptions become final."""
        return self if world_size > 1 else ExampleCount(known=self.known + self.assumed, in_flight=self.in_flight)
