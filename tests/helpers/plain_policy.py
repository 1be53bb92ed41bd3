"""A policy that needs no torch, for replays where there is none."""

from lightning_bsscale.theory.policies import Decision


class EverySecond:
    """Doubles the batch every five steps, halves it every seven, and holds in between."""

    def decide(self, situation, limits):
        step, batch = situation.optimizer_steps, situation.batch_size
        if step % 5 == 0:
            return Decision(batch_size=batch * 2, reason="five")
        if step % 7 == 0:
            return Decision(batch_size=batch // 2, reason="seven")
        return Decision(batch_size=batch, reason="hold")
