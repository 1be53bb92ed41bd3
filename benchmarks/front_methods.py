"""The methods of the front: fixed batches, the scaler, and what others do, all through the same callback."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_bsscale import BatchSizeScaler, Milestones, NoiseScalePolicy, Seesaw, Smith

Plan = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Method:
    """One way to choose the batch.

    Attributes:
        title: What it is, in one phrase.
        start: The start batch as a multiple of the task's.
        rates: Factors on the learning rate that was best for the fixed batch it starts from; the best one counts.
        make: Makes the callback; `plan` is the scaler's mean batch in hindsight, `sgd` whether the optimizer is SGD.
        needs_plan: Whether it needs `plan`.
        is_ours: Whether it is the scaler with another target, which shows what the scaler would do in as many steps.
    """

    title: str
    make: Callable[[bool, Plan], BatchSizeScaler]
    start: int = 1
    rates: tuple[float, ...] = (1.0,)
    needs_plan: bool = False
    is_ours: bool = False


def trade(policy: Any, **options: Any) -> Callable[[bool, Plan], BatchSizeScaler]:
    """Return what makes a policy that trades decay for growth, as published: without a gate."""

    def make(sgd: bool, plan: Plan) -> BatchSizeScaler:
        form = {"form": "sgd" if sgd else "adam"} if policy is Seesaw else {}
        rule = "linear" if sgd or policy is Smith else "sqrt"
        return BatchSizeScaler(policy=policy(gate=None, **form), lr_rule=rule, **options)

    return make


def target(ratio: float) -> Callable[[bool, Plan], BatchSizeScaler]:
    """Return what makes the scaler with another target."""
    return lambda sgd, plan: BatchSizeScaler(policy=NoiseScalePolicy(target_ratio=ratio))


METHODS: dict[str, Method] = {
    "scaler": Method("`BatchSizeScaler()`", lambda sgd, plan: BatchSizeScaler(), is_ours=True),
    "scaler0.3": Method("the same with `target_ratio=0.3`", target(0.3), is_ours=True),
    "scaler0.6": Method("the same with `target_ratio=0.6`", target(0.6), is_ours=True),
    "scaler2.5": Method("the same with `target_ratio=2.5`", target(2.5), is_ours=True),
    "no min_steps": Method(
        "the same with `min_steps=0`", lambda sgd, plan: BatchSizeScaler(policy=NoiseScalePolicy(min_steps=0))
    ),
    "confidence 0.9": Method(
        "the same with `confidence=0.9`", lambda sgd, plan: BatchSizeScaler(policy=NoiseScalePolicy(confidence=0.9))
    ),
    "square root": Method('the same with `lr_rule="sqrt"`', lambda sgd, plan: BatchSizeScaler(lr_rule="sqrt")),
    "seesaw": Method("Seesaw (ungated, as published)", trade(Seesaw)),
    "seesaw x2": Method("Seesaw from twice the batch", trade(Seesaw), start=2),
    "smith": Method("Smith", trade(Smith), rates=(0.5, 1.0)),
    "smith x2": Method("Smith from twice the batch", trade(Smith), start=2, rates=(0.5, 1.0)),
    "milestones": Method(
        "milestones in hindsight: the scaler's mean batch",
        lambda sgd, plan: BatchSizeScaler(policy=Milestones(dict(plan))),
        needs_plan=True,
    ),
    "meta": Method("Meta's rule, from unbiased measurements", lambda sgd, plan: BatchSizeScaler(policy="meta")),
    "norm test": Method("the norm test", lambda sgd, plan: BatchSizeScaler(policy="norm_test")),
    "unscaled": Method("growth at an unscaled learning rate", lambda sgd, plan: BatchSizeScaler(lr_rule="none")),
    "linear": Method(
        'the same with `lr_rule="linear"`, the rule of SGD\'s small batches',
        lambda sgd, plan: BatchSizeScaler(lr_rule="linear"),
        rates=(0.5, 1.0),
    ),
}
