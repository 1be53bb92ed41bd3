"""One record of each kind, with numbers that are not finite where a run may have them."""

import math

from lightning_bsscale.theory.estimate import NoiseScale
from lightning_bsscale.theory.policies import Limits, NoiseScalePolicy, Situation
from lightning_bsscale.theory.records import DecisionRecord, Measurement

NOISE = NoiseScale(
    noise_scale=math.inf,
    low=3.5,
    high=math.inf,
    trace=2.0,
    grad_sq=-0.1,
    effective_windows=7.5,
    resolved=False,
    trace_variance=0.1,
    grad_sq_variance=0.2,
    covariance=-0.01,
    confidence=0.9,
)
SITUATION = Situation(batch_size=8, start_batch_size=8, examples_seen=100, total_examples=1000, noise=NOISE)
LIMITS = Limits(granularity=8, min_batch_size=8, max_batch_size=64)
DECISION = DecisionRecord(
    situation=SITUATION,
    limits=LIMITS,
    decision=NoiseScalePolicy(min_steps=0).decide(SITUATION, LIMITS),
    batch_size=8,
    lr_scale=1.0,
    lr_rule="sqrt",
)
MEASUREMENT = Measurement(
    examples_seen=100,
    optimizer_steps=12,
    batch_size=8,
    accumulate_grad_batches=2,
    window_examples=16,
    trace=math.nan,
    grad_sq=-math.inf,
    noise=None,
    lr=0.1,
    lr_scale=1.5,
)
