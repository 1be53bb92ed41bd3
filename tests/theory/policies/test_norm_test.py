import itertools
from dataclasses import replace

import pytest

from lightning_bsscale.theory.policies import Limits, NoiseScalePolicy, NormTest, Situation
from tests.helpers.simulated import noise_of

FINE = Limits(granularity=1, min_batch_size=1, max_batch_size=10**7)


def path(policy, scale, batch=1000, times=40):
    """Batches when the policy is asked again and again at one noise scale."""
    batches = [batch]
    for _ in range(times):
        now = Situation(batch_size=batches[-1], start_batch_size=batch, examples_seen=5, noise=noise_of(scale))
        batches.append(policy.decide(now, FINE).batch_size)
    return batches


@pytest.mark.parametrize("theta", [0.3, 0.6, 0.9])
def test_it_rests_at_the_biased_fixed_point(theta):
    batches = path(NormTest(theta=theta), 100_000)
    assert batches[-1] == pytest.approx(100_000 * (1 / theta**2 - 1), rel=0.01)
    steps = [new / old for old, new in itertools.pairwise(batches)]
    assert max(steps) <= 1 / theta**2
    # The bias: far below the noise scale the test sees a fixed multiple of the batch as necessary.
    assert steps[0] == pytest.approx(1 / theta**2 / (1 + 1000 / 100_000), rel=0.002)


def test_metas_setting_rests_where_its_norm_test_does():
    meta, test = path(NoiseScalePolicy.meta(), 100_000), path(NormTest(), 100_000)
    # The policy stops within its hysteresis of the target.
    assert test[-1] / 1.25 <= meta[-1] <= 100_000 * (1 / 0.36 - 1)
    assert meta[1] / meta[0] == pytest.approx(1 / 0.36, rel=0.002)


@pytest.mark.parametrize(
    ("noise", "batch", "code"),
    [
        (None, 64, "no_estimate"),
        (noise_of(1000), 167, "grow"),  # 1000 / (0.36 (1 + 1000/64))
        (noise_of(1000, resolved=False), 167, "grow"),  # the method has no interval
        (noise_of(36), 64, "test_passed"),  # 64 = 36 (1/0.36 - 1)
        (replace(noise_of(1), trace=0.0, grad_sq=-1.0), 64, "unresolved"),  # neither noise nor signal
    ],
)
def test_decisions(noise, batch, code):
    now = Situation(batch_size=64, start_batch_size=8, examples_seen=50, noise=noise)
    decision = NormTest().decide(now, FINE)
    limit = Limits(granularity=64, min_batch_size=64, max_batch_size=64)
    assert (decision.batch_size, decision.code) == (batch, code)
    if code == "grow":
        assert "exceeds θ²‖ḡ‖²" in decision.reason
        assert decision.needed == 64 < decision.target
        assert NormTest().decide(now, limit).code == "at_limit"
    early = Situation(batch_size=64, start_batch_size=8, examples_seen=50, warmup_examples=51, noise=noise)
    assert NormTest().decide(early, FINE).code == "in_warmup"


@pytest.mark.parametrize("theta", [0, 1, 2])
def test_theta_is_a_tolerance(theta):
    with pytest.raises(ValueError, match="theta must be a finite number above 0 and below 1"):
        NormTest(theta=theta)
