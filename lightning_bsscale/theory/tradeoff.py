"""The trade-off of a batch size: progress per step, value of an example, steps against examples.

All batches and noise scales are in examples. ``B_noise`` is the (Hessian-weighted) noise scale, ``B_simple`` its
measurable proxy tr(Sigma)/||G||^2, ``B_crit`` the batch at which an example is worth half. Near a well-conditioned
optimum they agree; elsewhere they differ by a task-dependent factor, often 1 to 4 (Merrill et al. 2025,
arXiv 2505.23971).

Source: McCandlish et al. 2018, arXiv 1812.06162, sections 2.2 and 2.3. Where it stops being true: the quadratic model
of one step with a well-chosen learning rate; Adam; an optimum where small batches generalise better.
"""

from __future__ import annotations

import math

from lightning_bsscale.theory.checks import check_number

__all__ = [
    "batch_size_for_efficiency",
    "batch_size_for_prices",
    "critical_batch_size",
    "examples_for_steps",
    "relative_examples",
    "relative_gradient_error",
    "relative_steps",
    "sample_efficiency",
    "step_progress",
    "steps_for_examples",
]


def step_progress(batch_size: float, noise_scale: float) -> float:
    """Compute the progress of one step, relative to a step with the true gradient.

    ``dL(B) / dL_max = 1 / (1 + B_noise / B)``, at the best learning rate for each batch (eq. 2.7).

    Args:
        batch_size: B, in examples, above 0.
        noise_scale: B_noise, in examples, at least 0.

    Returns:
        A share between 0 and 1.

    Example:
        >>> step_progress(64, 64)
        0.5
    """
    batch = check_number("batch_size", batch_size, above=0)
    noise = check_number("noise_scale", noise_scale, at_least=0, may_be_infinite=True)
    return 1 / (1 + noise / batch)


def relative_gradient_error(batch_size: float, noise_scale: float) -> float:
    """Compute the expected squared error of the batch gradient, relative to the true gradient's squared norm.

    ``E||g - G||^2 / ||G||^2 = B_simple / B``. Exact for independent examples of any distribution.

    Args:
        batch_size: B, in examples, above 0.
        noise_scale: B_simple, in examples, at least 0.

    Returns:
        The ratio, from 0.

    Example:
        >>> relative_gradient_error(32, 64)
        2.0
    """
    batch = check_number("batch_size", batch_size, above=0)
    return check_number("noise_scale", noise_scale, at_least=0, may_be_infinite=True) / batch


def sample_efficiency(batch_size: float, critical_batch_size: float) -> float:
    """Compute the value of an example, relative to an example in a very small batch.

    ``1 / (1 + B / B_crit)``, the inverse of :func:`relative_examples`.

    Args:
        batch_size: B, in examples, above 0.
        critical_batch_size: B_crit, in examples, above 0.

    Returns:
        A share between 0 and 1.

    Example:
        >>> sample_efficiency(64, 64)
        0.5
    """
    return 1 / relative_examples(batch_size, critical_batch_size)


def batch_size_for_efficiency(efficiency: float, critical_batch_size: float) -> float:
    """Compute the largest batch at which an example keeps a given share of its value.

    ``B = B_crit (1 / efficiency - 1)``, the inverse of :func:`sample_efficiency`.

    Args:
        efficiency: Share of an example's value to keep, between 0 and 1.
        critical_batch_size: B_crit, in examples, above 0.

    Returns:
        The batch, in examples (not rounded).

    Example:
        >>> batch_size_for_efficiency(0.8, 64)
        16.0
    """
    share = check_number("efficiency", efficiency, above=0, below=1)
    return check_number("critical_batch_size", critical_batch_size, above=0) * (1 / share - 1)


def batch_size_for_prices(critical_batch_size: float, *, step_price: float, example_price: float) -> float:
    """Compute the batch at which progress costs least, where steps and examples have prices (seconds, say).

    Progress per price is ``B / (B + B_crit) / (p_step + p_example B)``, and its derivative in B is zero at
    ``B = sqrt(B_crit p_step / p_example)``. Near it the cost is flat: half or twice that batch costs at most 12.5 %
    more.

    Args:
        critical_batch_size: B_crit, in examples, above 0; may be infinite.
        step_price: Price of a step beyond its examples, at least 0.
        example_price: Price of an example, above 0.

    Returns:
        The batch, in examples (not rounded).

    Example:
        >>> batch_size_for_prices(64, step_price=100, example_price=1)
        80.0
    """
    critical = check_number("critical_batch_size", critical_batch_size, above=0, may_be_infinite=True)
    price = check_number("step_price", step_price, at_least=0) / check_number("example_price", example_price, above=0)
    return math.sqrt(critical * price) if price else 0.0


def relative_steps(batch_size: float, critical_batch_size: float) -> float:
    """Compute the steps to a given loss, relative to the fewest possible (with an infinite batch).

    ``S / S_min = 1 + B_crit / B`` (eq. 2.11 with eq. 2.12).

    Args:
        batch_size: B, in examples, above 0.
        critical_batch_size: B_crit, in examples, above 0.

    Returns:
        The ratio, above 1.

    Example:
        >>> relative_steps(32, 64)
        3.0
    """
    batch = check_number("batch_size", batch_size, above=0)
    return 1 + check_number("critical_batch_size", critical_batch_size, above=0) / batch


def relative_examples(batch_size: float, critical_batch_size: float) -> float:
    """Compute the examples to a given loss, relative to the fewest possible (with a very small batch).

    ``E / E_min = 1 + B / B_crit`` (eq. 2.11 with eq. 2.12).

    Args:
        batch_size: B, in examples, above 0.
        critical_batch_size: B_crit, in examples, above 0.

    Returns:
        The ratio, above 1.

    Example:
        >>> relative_examples(32, 64)
        1.5
    """
    batch = check_number("batch_size", batch_size, above=0)
    return 1 + batch / check_number("critical_batch_size", critical_batch_size, above=0)


def critical_batch_size(*, min_steps: float, min_examples: float) -> float:
    """Compute the critical batch from the two ends of the hyperbola.

    ``B_crit = E_min / S_min`` (eq. 2.12).

    Args:
        min_steps: S_min, fewest steps to the loss in question, above 0.
        min_examples: E_min, fewest examples to that loss, above 0.

    Returns:
        The critical batch, in examples.

    Example:
        >>> critical_batch_size(min_steps=1000, min_examples=64000)
        64.0
    """
    return check_number("min_examples", min_examples, above=0) / check_number("min_steps", min_steps, above=0)


def steps_for_examples(examples: float, *, min_steps: float, min_examples: float) -> float:
    """Compute the steps to the loss for a given number of examples.

    From ``(S/S_min - 1)(E/E_min - 1) = 1`` (eq. 2.11): ``S = S_min (1 + 1 / (E/E_min - 1))``.

    Args:
        examples: E, above ``min_examples``.
        min_steps: S_min, fewest steps to the loss in question, above 0.
        min_examples: E_min, fewest examples to that loss, above 0.

    Returns:
        The steps, above ``min_steps``.

    Example:
        >>> steps_for_examples(96000, min_steps=1000, min_examples=64000)
        3000.0
    """
    fewest = check_number("min_examples", min_examples, above=0)
    spent = check_number("examples", examples, above=fewest)
    return check_number("min_steps", min_steps, above=0) * (1 + 1 / (spent / fewest - 1))


def examples_for_steps(steps: float, *, min_steps: float, min_examples: float) -> float:
    """Compute the examples to the loss for a given number of steps: the inverse of :func:`steps_for_examples`.

    ``E = E_min (1 + 1 / (S/S_min - 1))``.

    Args:
        steps: S, above ``min_steps``.
        min_steps: S_min, fewest steps to the loss in question, above 0.
        min_examples: E_min, fewest examples to that loss, above 0.

    Returns:
        The examples, above ``min_examples``.

    Example:
        >>> examples_for_steps(3000, min_steps=1000, min_examples=64000)
        96000.0
    """
    fewest = check_number("min_steps", min_steps, above=0)
    taken = check_number("steps", steps, above=fewest)
    return check_number("min_examples", min_examples, above=0) * (1 + 1 / (taken / fewest - 1))
