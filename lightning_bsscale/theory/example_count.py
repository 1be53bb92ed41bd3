"""Examples over all ranks: counted exactly where a message has told, by micro-batches since the last one."""

from __future__ import annotations


class ExamplesSeen:
    """A count that is the same on all ranks at every moment, so that decisions may be taken by it.

    A rank knows its own examples only. It sends them with the next measured window; until that message has arrived,
    its windows count as micro-batches of the usual size on every rank, which all ranks know alike. An epoch's last
    window is measured on several ranks, so that the count is exact there.
    """

    def __init__(self, world_size: int, granularity: int) -> None:
        """Begins at none.

        Args:
            world_size: ranks; one alone always counts exactly
            granularity: examples of one usual micro-batch on all ranks
        """
        self._world_size = world_size
        self._granularity = granularity
        self._known = 0
        self._unsent = 0.0
        self._assumed = 0
        self._assumed_in_flight = 0

    @property
    def total(self) -> int:
        """Examples so far."""
        return self._known + self._assumed_in_flight + self._assumed

    def add(self, examples: int, num_micro_batches: int) -> int:
        """Counts a window.

        Args:
            examples: of this rank
            num_micro_batches: of one rank

        Returns:
            what it counts as for now, over all ranks
        """
        if self._world_size == 1:
            self._known += examples
            return examples
        self._unsent += examples
        usual = num_micro_batches * self._granularity
        self._assumed += usual
        return usual

    def take_unsent(self) -> float:
        """Hands over what a message now takes with it.

        Returns:
            examples of this rank since the last message
        """
        unsent, self._unsent = self._unsent, 0.0
        self._assumed_in_flight += self._assumed
        self._assumed = 0
        return unsent

    def arrived(self, examples: int) -> int:
        """A message has arrived.

        Args:
            examples: of all ranks, from the message before to this one

        Returns:
            all examples up to this message's window
        """
        self._known += examples
        self._assumed_in_flight = 0
        return self._known

    def give_up_waiting(self) -> None:
        """The message that is on its way will not be read: what was assumed of it stands."""
        self._known += self._assumed_in_flight
        self._assumed_in_flight = 0

    def state(self) -> dict[str, int]:
        """What cannot be recomputed, the same on all ranks.

        Returns:
            numbers that add up to `total`
        """
        return {"known": self._known, "in_flight": self._assumed_in_flight, "assumed": self._assumed}

    def load(self, state: dict[str, int]) -> None:
        """Takes up where `state` left off; what no message took with it yet is then assumed for good.

        Args:
            state: what `state` gave
        """
        self._known = state["known"]
        self._assumed_in_flight = state["in_flight"]
        self._assumed = state["assumed"]
        self._unsent = self._assumed / self._world_size
        if self._world_size == 1:
            self._known += self._assumed
            self._assumed = 0
            self._unsent = 0.0
