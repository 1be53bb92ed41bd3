r"""Training on a noisy quadratic, whose noise scales are known exactly at every step.

The loss is ``1/2 sum h_i x_i^2``, with x the distance from the optimum in the eigenvectors of the Hessian. One
example's gradient is ``h_i x_i`` plus noise of variance ``s_i``; a batch of B divides the variance by B. Of the noise's
covariance only this diagonal enters the expected loss, because the Hessian is diagonal too. The optimum may drift, by a
random walk of variance ``drift_i`` for each example, and the noise may have tails.

For SGD, with or without momentum, the expected loss follows a closed recursion, because the update is linear: no
sampling is needed. Without momentum the second moment ``p_i = E x_i^2`` of each mode obeys

    p_i -> (1 - eta h_i)^2 p_i + eta^2 s_i / B + B drift_i

for any distribution of the noise, and k steps at the same batch and learning rate have a closed form. Sign-like updates
have none over several steps: one step is exact (:func:`sign_step`), more are sampled (:func:`sampled_losses`).

Known truths, at a point or in expectation over p:

    B_simple = sum s_i / sum h_i^2 p_i        B_noise = tr(H Sigma) / G^T H G = sum h_i s_i / sum h_i^3 p_i

Sources: McCandlish et al. 2018, arXiv 1812.06162, section 2.2; Zhang et al. 2019, arXiv 1907.04164 (the noisy
quadratic as a model of training). Where it stops being true: real losses are not quadratic, and their noise changes
with the parameters; shapes and orders of magnitude carry over, not digits.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from lightning_bsscale.theory.checks import check_number

__all__ = [
    "Adam",
    "Momentum",
    "NoisyQuadratic",
    "Optimizer",
    "Sign",
    "expected_losses",
    "sampled_losses",
    "sgd_step",
    "sign_step",
]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class NoisyQuadratic:
    """A quadratic loss with noisy gradients.

    Args:
        curvature: Eigenvalues of the Hessian, above 0.
        noise: Variance of one example's gradient along each eigenvector, at least 0.
        drift: Variance by which the optimum moves for each example, at least 0.
        tail: Degrees of freedom of Student's t, above 2; infinite for Gaussian noise. One factor for a whole example,
            so that single examples are outliers. The variance stays `noise`.
    """

    curvature: Any
    noise: Any
    drift: Any = 0.0
    tail: float = math.inf

    def __post_init__(self) -> None:
        """Check the options, and make arrays of one number for each mode."""
        curvature = np.atleast_1d(np.asarray(self.curvature, dtype=np.float64))
        object.__setattr__(self, "curvature", curvature)
        for name in ("noise", "drift"):
            values = np.broadcast_to(np.asarray(getattr(self, name), dtype=np.float64), curvature.shape)
            check_number(f"the smallest {name}", float(values.min()), at_least=0)
            object.__setattr__(self, name, values)
        check_number("the smallest curvature", float(curvature.min()), above=0)
        check_number("tail", self.tail, above=2, may_be_infinite=True)

    @classmethod
    def power_law(cls, modes: int, exponent: float, noise: float, *, proportional: bool = True) -> NoisyQuadratic:
        """Make a quadratic with eigenvalues ``i^-exponent``.

        Args:
            modes: Number of eigenvalues.
            exponent: Of the power law.
            noise: Trace of the noise's covariance.
            proportional: Whether the covariance is proportional to the Hessian; otherwise it is isotropic.

        Returns:
            The quadratic, without drift and tails.
        """
        curvature = np.arange(1.0, modes + 1) ** -exponent
        shape = curvature if proportional else np.ones(modes)
        return cls(curvature=curvature, noise=noise * shape / shape.sum())

    def loss(self, moments: Array) -> Any:
        """Compute the loss from the squared distances of the modes (last axis), or from their expectation."""
        return (self.curvature * moments).sum(-1) / 2

    def grad_sq(self, moments: Array) -> Any:
        """Compute the squared norm of the true gradient."""
        return (self.curvature**2 * moments).sum(-1)

    def simple_scale(self, moments: Array) -> Any:
        """Compute ``B_simple = tr(Sigma) / ||G||^2``, in examples."""
        return self.noise.sum() / self.grad_sq(moments)

    def hessian_scale(self, moments: Array) -> Any:
        """Compute ``B_noise = tr(H Sigma) / G^T H G``, in examples."""
        return (self.curvature * self.noise).sum() / (self.curvature**3 * moments).sum(-1)

    def after_sgd(self, moments: Array, batch: Any, rate: Any, steps: float = 1) -> Array:
        """Compute the expected squared distances after some steps of plain SGD, exactly.

        Args:
            moments: Expected squared distances before, modes on the last axis.
            batch: Batch size in examples; an array broadcasts against the other axes with a last axis of one.
            rate: Learning rate; the same.
            steps: Number of steps.

        Returns:
            The expected squared distances after them.
        """
        kept = (1 - rate * self.curvature) ** 2
        added = rate**2 * self.noise / batch + batch * self.drift
        if steps == 1:
            return np.asarray(kept * moments + added)
        remaining = 1 - kept
        flat = np.abs(remaining) < 1e-12
        sums = np.where(flat, steps, (1 - kept**steps) / np.where(flat, 1.0, remaining))
        return np.asarray(kept**steps * moments + added * sums)

    def sample_noise(self, batch: int, runs: int, rng: np.random.Generator) -> Array:
        """Draw the noise of a batch's mean gradient, for several runs."""
        drawn = rng.standard_normal((runs, self.curvature.size)) * np.sqrt(self.noise / batch)
        if math.isinf(self.tail):
            return np.asarray(drawn)
        # Gaussian, given the factors of its examples. (tail - 2) / chi-square has the mean 1.
        factors = (self.tail - 2) / rng.chisquare(self.tail, (runs, batch))
        return np.asarray(drawn * np.sqrt(factors.mean(1))[:, None])


def expected_losses(
    quadratic: NoisyQuadratic, start: Any, batches: Sequence[int], rates: Sequence[float], *, momentum: float = 0.0
) -> Array:
    """Compute the expected loss of SGD before the first step and after each one, exactly.

    With momentum the update is ``u -> momentum u + g``, ``x -> x - rate u`` (torch's SGD), still linear: the expected
    products of x and u follow a closed recursion.

    Args:
        quadratic: The loss and its noise.
        start: The first distance from the optimum, one number for each mode.
        batches: Batch size of each step.
        rates: Learning rate of each step.
        momentum: From 0 to below 1.

    Returns:
        The losses, one more than there are steps.

    Example:
        >>> quadratic = NoisyQuadratic(curvature=[1.0], noise=[4.0])
        >>> expected_losses(quadratic, [2.0], batches=[4, 4], rates=[0.5, 0.5]).round(4).tolist()
        [2.0, 0.625, 0.2812]
    """
    h, modes = quadratic.curvature, quadratic.curvature.size
    moments = np.zeros((modes, 2, 2))
    moments[:, 0, 0] = np.broadcast_to(np.asarray(start, dtype=np.float64), modes) ** 2
    losses = [quadratic.loss(moments[:, 0, 0])]
    for batch, rate in zip(batches, rates, strict=True):
        update = np.empty((modes, 2, 2))
        update[:, 0, 0], update[:, 0, 1] = 1 - rate * h, -rate * momentum
        update[:, 1, 0], update[:, 1, 1] = h, momentum
        effect = np.array([-rate, 1.0])
        moments = update @ moments @ update.transpose(0, 2, 1)
        moments += (quadratic.noise / batch)[:, None, None] * np.outer(effect, effect)
        moments[:, 0, 0] += batch * quadratic.drift
        losses.append(quadratic.loss(moments[:, 0, 0]))
    return np.asarray(losses)


class Optimizer(Protocol):
    """Turns gradients into updates, for many runs at once."""

    def update(self, gradient: Array, step: int, memory: dict[str, Array]) -> Array:
        """Return what is subtracted, before the learning rate.

        Args:
            gradient: One row for each run.
            step: Number of the step, from 1.
            memory: What the optimizer keeps from step to step; empty at first.

        Returns:
            The update, of the same shape.
        """
        ...


@dataclass(frozen=True)
class Momentum:
    """SGD with momentum; without by default."""

    momentum: float = 0.0

    def update(self, gradient: Array, step: int, memory: dict[str, Array]) -> Array:  # noqa: D102
        memory["mean"] = self.momentum * memory.get("mean", np.zeros_like(gradient)) + gradient
        return memory["mean"]


@dataclass(frozen=True)
class Sign:
    """The sign of the gradient (signSGD), or of its average (Signum)."""

    beta: float = 0.0

    def update(self, gradient: Array, step: int, memory: dict[str, Array]) -> Array:  # noqa: D102
        memory["mean"] = self.beta * memory.get("mean", np.zeros_like(gradient)) + (1 - self.beta) * gradient
        return np.asarray(np.sign(memory["mean"]))


@dataclass(frozen=True)
class Adam:
    """Adam, without weight decay."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-12

    def update(self, gradient: Array, step: int, memory: dict[str, Array]) -> Array:  # noqa: D102
        for name, beta, new in (("mean", self.beta1, gradient), ("square", self.beta2, gradient**2)):
            memory[name] = beta * memory.get(name, np.zeros_like(gradient)) + (1 - beta) * new
        mean, square = memory["mean"] / (1 - self.beta1**step), memory["square"] / (1 - self.beta2**step)
        return np.asarray(mean / (np.sqrt(square) + self.epsilon))


def sampled_losses(
    quadratic: NoisyQuadratic,
    start: Any,
    batches: Sequence[int],
    rates: Sequence[float],
    *,
    optimizer: Optimizer | None = None,
    runs: int = 100,
    seed: int = 0,
) -> Array:
    """Train many runs at once with sampled noise.

    Args:
        quadratic: The loss and its noise.
        start: The first distance from the optimum, one number for each mode.
        batches: Batch size of each step.
        rates: Learning rate of each step.
        optimizer: Plain SGD by default. Sign-like ones act in the eigenvectors of the Hessian.
        runs: Number of runs.
        seed: Of the noise.

    Returns:
        The losses, of the shape (steps + 1, runs).
    """
    rng, chosen, memory = np.random.default_rng(seed), optimizer or Momentum(), dict[str, Array]()
    x = np.broadcast_to(np.asarray(start, dtype=np.float64), (runs, quadratic.curvature.size)).copy()
    losses = [quadratic.loss(x**2)]
    for step, (batch, rate) in enumerate(zip(batches, rates, strict=True), 1):
        gradient = quadratic.curvature * x + quadratic.sample_noise(batch, runs, rng)
        x -= rate * chosen.update(gradient, step, memory)
        if quadratic.drift.any():
            x += rng.standard_normal(x.shape) * np.sqrt(batch * quadratic.drift)
        losses.append(quadratic.loss(x**2))
    return np.asarray(losses)


def sgd_step(hessian: Array, gradient: Array, covariance: Array, batch: float) -> tuple[float, float]:
    """Compute the best learning rate of one SGD step, and its expected progress, exactly.

    ``rate = ||G||^2 / (G^T H G + tr(H Sigma) / B)`` and ``progress = rate ||G||^2 / 2`` (McCandlish et al. 2018, eq.
    2.6 and 2.7).

    Args:
        hessian: H, a matrix.
        gradient: G, a vector.
        covariance: Sigma of one example's gradient, a matrix.
        batch: B, in examples.

    Returns:
        Learning rate and progress.
    """
    square = float(gradient @ gradient)
    rate = square / float(gradient @ hessian @ gradient + np.trace(hessian @ covariance) / batch)
    return rate, rate * square / 2


def sign_step(hessian: Array, gradient: Array, deviation: Array, batch: float) -> tuple[float, float]:
    """Compute the best learning rate of one step along the gradient's sign, and its expected progress, exactly.

    With Gaussian noise, independent over the coordinates, the expected sign is ``e_i = erf(G_i sqrt(B/2) / sigma_i)``,
    and the product of two signs is ``e_i e_j``, or 1 on the diagonal. The expected change of the loss is therefore

        -rate G^T e + rate^2 / 2 (sum_i H_ii + sum_{i != j} H_ij e_i e_j)

    The first sum is there from the smallest batch on, the second grows with the batch. Where it is the larger one, the
    best learning rate rises, peaks, and falls (Li et al. 2024, arXiv 2405.14578: the *surge*). Where the Hessian is
    diagonal in the optimizer's own coordinates, it never falls.

    Args:
        hessian: H in the optimizer's coordinates, a matrix.
        gradient: G, a vector.
        deviation: sigma, the standard deviation of one example's gradient in each coordinate.
        batch: B, in examples.

    Returns:
        Learning rate and progress.
    """
    expected = np.array([math.erf(value) for value in gradient * math.sqrt(batch / 2) / deviation])
    diagonal = np.diag(hessian)
    bend = float(diagonal.sum() + expected @ hessian @ expected - diagonal @ expected**2)
    slope = float(gradient @ expected)
    return slope / bend, slope**2 / (2 * bend)
