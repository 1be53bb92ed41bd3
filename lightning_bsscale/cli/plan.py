"""The command ``plan``: a training before it runs."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_bsscale.cli.amounts import amount, count
from lightning_bsscale.cli.files import picture_of, unwritable, write_whole
from lightning_bsscale.cli.terminal import JOURNAL, Working, complain, one_line, problem_with, write, write_json

if TYPE_CHECKING:
    from lightning_bsscale.cli.known_numbers import KnownRun
    from lightning_bsscale.theory.planning import Interval, Plan, Prices, Row, Spent
    from lightning_bsscale.theory.rules import LearningRateRule

HELP = "say what each batch size would take in steps, examples, hours and money, and which one to use"
ABOUT = """
Answers before you train. Needed are a critical batch (from a probe, a journal or a number) and the loss to be
reached, as the examples or steps that it takes with one batch; seconds and a price add time and money. Batches are in
examples over all devices together, seconds are those of one device, and numbers may be written as 33,675, 12.3M or
1e6. Intervals follow from that of the critical batch.
"""
EXAMPLES = (
    "--critical-batch 480 --examples 10M --at-batch 32 --seconds-per-example 0.002 --seconds-per-step 0.1",
    "--journal runs/demo/bsscale.jsonl --ranks 1 2 4 8 --out plan.png",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    known = parser.add_argument_group("what is known (numbers given here replace those of the files)")
    known.add_argument("--probe", type=Path, metavar="FILE", help="the JSON that `probe` wrote")
    known.add_argument("--journal", type=Path, metavar="JOURNAL", help=JOURNAL)
    ends = "examples; with its two ends if you know them: 480 300 900"
    known.add_argument(
        "--critical-batch", type=amount, nargs="+", metavar=("N", "END"), help=f"the critical batch, in {ends}"
    )
    known.add_argument(
        "--noise-scale", type=amount, nargs="+", metavar=("N", "END"), help=f"the noise scale, in {ends}"
    )
    known.add_argument(
        "--ratio", type=amount, metavar="C", help="critical batch over noise scale (default: the probe's, else 1)"
    )
    loss = parser.add_argument_group("the loss to be reached (default: as far as the journal's run came)")
    budget = loss.add_mutually_exclusive_group()
    budget.add_argument("--examples", type=amount, metavar="N", help="examples that it takes with the batch --at-batch")
    budget.add_argument("--steps", type=amount, metavar="N", help="steps that it takes with the batch --at-batch")
    loss.add_argument(
        "--at-batch", type=count, metavar="B", help="batch of those examples or steps, in examples over all devices"
    )
    machine = parser.add_argument_group("hardware, time and money")
    machine.add_argument("--ranks", type=count, nargs="+", metavar="N", help="devices; several numbers to compare")
    machine.add_argument("--max-per-device", type=count, metavar="N", help="most examples that fit on one device")
    machine.add_argument(
        "--seconds-per-example", type=amount, metavar="S", help="seconds of forward and backward, on one device"
    )
    machine.add_argument(
        "--seconds-per-step", type=amount, metavar="S", help="seconds of a step beyond its examples (update, exchange)"
    )
    machine.add_argument("--price", type=amount, metavar="P", help="of one device for an hour, in any currency")
    rate = parser.add_argument_group("learning rate")
    rate.add_argument(
        "--rule", metavar="NAME", help="linear, sqrt, power, saturating, surge, none, or auto for the optimizer's"
    )
    rate.add_argument("--optimizer", metavar="CLASS", help="class of the optimizer, for its rule; AdamW if not known")
    rate.add_argument("--lr", type=amount, metavar="LR", help="learning rate with the batch --at-batch")
    answer = parser.add_argument_group("the answer")
    answer.add_argument(
        "--efficiency",
        type=amount,
        metavar="E",
        help="recommend the largest batch that keeps this share (0.7, say) "
        "of an example's worth (default: the fastest or cheapest batch; without seconds, half)",
    )
    answer.add_argument("--out", type=Path, metavar="FILE", help="draw the trade-off (.png, .svg or .pdf)")
    answer.add_argument("--json", action="store_true", help="print one JSON object instead of the table")


def run(arguments: argparse.Namespace) -> int:
    """Plan, print, and draw; return the exit status."""
    from lightning_bsscale.cli.known_numbers import read_run

    try:
        with Working(f"reading {arguments.journal}"):
            known = None if arguments.journal is None else read_run(arguments.journal)
    except (OSError, ValueError) as error:
        return complain(problem_with(arguments.journal, error))
    try:
        plan, text = _planned(arguments, known)
        drawn = None if arguments.out is None else _drawn(plan, arguments.out)
    except OSError as error:
        return complain(f"{arguments.probe} cannot be read: {error.strerror or error}")
    except OverflowError:
        return complain("The numbers are too large, or too small, to compute with.")
    except (ValueError, ModuleNotFoundError) as error:
        return complain(one_line(error))
    if drawn is not None:
        try:
            write_whole(arguments.out, drawn)
        except OSError as error:
            return complain(unwritable(arguments.out, error))
    if arguments.json:
        write_json(text)
        return 0
    write(text)
    if drawn is not None:
        write(f"\npicture: {arguments.out}")
    return 0


def _drawn(plan: Plan, path: Path) -> bytes:
    from lightning_bsscale.figures import plot_plan

    figure, _ = plot_plan(plan)
    return picture_of(figure, path)


def _planned(arguments: argparse.Namespace, known: KnownRun | None) -> tuple[Plan, Any]:
    """Return the plan, and what to print of it."""
    from lightning_bsscale.theory.planning import Hardware, plan_batches

    critical, noise = _critical_batch(arguments, known)
    spent, prices = _spent(arguments, known), _prices(arguments, known)
    ranks = arguments.ranks or [1 if known is None else known.ranks]
    machines = [Hardware(ranks=number, max_per_device=arguments.max_per_device) for number in sorted(set(ranks))]
    plan = plan_batches(critical, spent, machines, prices, arguments.efficiency)
    rule = _rule(arguments, known)
    factor = _factors(rule, spent[0].batch_size, (noise or critical).value)
    if arguments.json:
        return plan, _as_json(plan, noise, spent, rule, factor, arguments)
    return plan, _as_text(plan, spent, rule, factor, arguments.lr)


# ---------------------------------------------------------------- what is known


def _given(name: str, numbers: Sequence[float]) -> Interval:
    from lightning_bsscale.theory.checks import check_number
    from lightning_bsscale.theory.planning import Interval

    if len(numbers) not in (1, 3):
        raise ValueError(f"{name} takes one number, or a number and the two ends of its interval, got {len(numbers)}.")
    value = check_number(name, numbers[0], above=0)
    return Interval.checked(name, value, *(numbers[1:] or (value, value)))


def _critical_batch(arguments: argparse.Namespace, known: KnownRun | None) -> tuple[Interval, Interval | None]:
    from lightning_bsscale.theory.planning import Interval
    from lightning_bsscale.theory.probe_file import read_probe

    probe = None if arguments.probe is None else read_probe(arguments.probe)
    noise = None if known is None else known.noise_scale
    if noise is None and probe is not None:
        noise = probe.noise_scale
    if arguments.noise_scale is not None:
        noise = _given("--noise-scale", arguments.noise_scale)
    if arguments.critical_batch is not None:
        return _given("--critical-batch", arguments.critical_batch), noise
    ratio = None
    if arguments.ratio is not None:
        ratio = _given("--ratio", [arguments.ratio])
    elif probe is not None:
        ratio = probe.resolved_ratio("pass --critical-batch or --ratio")
    if noise is None:
        where = arguments.journal or arguments.probe
        why = "No critical batch is known" if where is None else f"{where} has no resolved noise scale"
        raise ValueError(f"{why}. Pass --critical-batch, --noise-scale, or the --probe or --journal of a longer run.")
    if ratio is None:
        return noise, noise
    # Both ends together, as if they erred in the same direction: not narrower than the truth.
    product = Interval(value=ratio.value * noise.value, low=ratio.low * noise.low, high=ratio.high * noise.high)
    return product, noise


def _spent(arguments: argparse.Namespace, known: KnownRun | None) -> tuple[Spent, ...]:
    from lightning_bsscale.theory.planning import Spent

    batch = arguments.at_batch
    if arguments.examples is None and arguments.steps is None:
        if known is None:
            raise ValueError(
                "No loss to be reached is known. Pass --examples or --steps with --at-batch, or the --journal of a run."
            )
        if batch is not None:
            raise ValueError("--at-batch is the batch of --examples or --steps, of which neither was given.")
        return known.spent
    if batch is None and known is None:
        raise ValueError(
            "--examples and --steps need --at-batch: a loss takes more examples, and fewer steps, with a larger batch."
        )
    size = known.spent[0].batch_size if batch is None and known is not None else batch
    return (Spent(examples=arguments.examples or arguments.steps * size, batch_size=size),)


def _prices(arguments: argparse.Namespace, known: KnownRun | None) -> Prices | None:
    from lightning_bsscale.theory.planning import Prices

    example, step = arguments.seconds_per_example, arguments.seconds_per_step
    if known is not None:
        example = known.seconds_per_example if example is None else example
        step = known.seconds_per_step if step is None else step
    if example is None and step is None:
        if arguments.price is not None:
            raise ValueError(
                "--price needs --seconds-per-example and --seconds-per-step, or a --journal that has them."
            )
        return None
    if example is None or step is None:
        missing = "--seconds-per-example" if example is None else "--seconds-per-step"
        raise ValueError(f"{missing} is not known: seconds per example and per step are needed together.")
    return Prices(seconds_per_example=example, seconds_per_step=step, per_hour=arguments.price)


def _rule(arguments: argparse.Namespace, known: KnownRun | None) -> LearningRateRule:
    from lightning_bsscale.theory.rules import FOR_FIXED_BATCHES, resolve_rule, rule_for_optimizer

    if arguments.rule is not None and arguments.rule != "auto":
        return resolve_rule(arguments.rule, name="--rule", auto=", 'auto'")
    if arguments.optimizer is None and arguments.rule is None and known is not None and known.rule is not None:
        return known.rule
    return rule_for_optimizer([arguments.optimizer or "AdamW"], meant_for=FOR_FIXED_BATCHES)


def _factors(rule: LearningRateRule, present: float, noise_scale: float) -> Callable[[Row], float]:
    from lightning_bsscale.theory.estimate import noise_scale_from_means
    from lightning_bsscale.theory.rules import FactorPath

    exact = {"trace_variance": 0.0, "grad_sq_variance": 0.0, "covariance": 0.0, "effective_windows": math.inf}
    noise = noise_scale_from_means(trace=noise_scale, grad_sq=1.0, confidence=0.9, **exact)
    return lambda row: FactorPath().extended(rule, present, row.batch_size, noise).factor(rule)


# ---------------------------------------------------------------- output


def _as_text(
    plan: Plan, spent: Sequence[Spent], rule: LearningRateRule, factor: Callable[[Row], float], lr: float | None
) -> str:
    from lightning_bsscale.summary import aligned
    from lightning_bsscale.theory.numbers import describe_count, describe_number

    row, critical = plan.recommended, plan.critical
    rate = f"the learning rate times {describe_number(factor(row))}"
    if lr is not None:
        rate = f"a learning rate of {describe_number(lr * factor(row))}"
    costs = [f"{describe_count(math.ceil(row.steps.value))} steps", *_costs(row)]
    several = len({one.ranks for one in plan.rows}) > 1 or row.ranks > 1
    devices = f" on {row.ranks:,} device{'s' if row.ranks > 1 else ''}" if several else ""
    sentence = f"Use a batch of {row.batch_size:,}{devices} with {rate}: {', '.join(costs)}, {plan.reason}"
    low, high = plan.between
    if low < high:
        sentence += f"; {low:,} to {high:,} within the critical batch's interval"
    ends = "" if critical.low == critical.high else f" [{_end(critical.low)}, {_end(critical.high)}]"
    present = describe_count(spent[0].batch_size)
    about = (
        f"critical batch {describe_number(critical.value)}{ends}; at least {describe_count(plan.min_steps)} steps, and "
        f"at least {describe_count(plan.min_examples)} examples; learning rate by the rule {rule.name} from batch "
        f"{present}"
    )
    titles = ["", "batch", *(["devices"] if several else []), "micro-batches", "lr" if lr else "lr factor"]
    titles += ["steps", "examples", "worth"] + ["time"] * (row.hours is not None) + ["cost"] * (row.cost is not None)
    lines = [
        [
            ">" if one is row else "",
            f"{one.batch_size:,}",
            *([str(one.ranks)] if several else []),
            f"{one.accumulate:,} x {one.micro_batch_size:,}",
            describe_number(factor(one) * (lr or 1)),
            describe_count(math.ceil(one.steps.value)),
            describe_count(one.examples.value),
            f"{100 * one.efficiency:.0f} %",
            *_costs(one, with_ends=True),
        ]
        for one in plan.rows
    ]
    return "\n".join([f"{sentence}.", "", about, "", *aligned([titles, *lines])])


def _end(value: float) -> str:
    from lightning_bsscale.theory.numbers import describe_number

    return "unknown" if math.isinf(value) else describe_number(value)


def _costs(row: Row, *, with_ends: bool = False) -> list[str]:
    from lightning_bsscale.theory.numbers import describe_number, describe_time

    costs = []
    if row.hours is not None:
        seconds = row.hours.times(3600)
        ends = (seconds.low, seconds.high) if with_ends else ()
        costs.append(describe_time(seconds.value, *ends))
    if row.cost is not None:
        has_ends = with_ends and row.cost.low < row.cost.high
        ends_of_cost = f" [{describe_number(row.cost.low)}, {describe_number(row.cost.high)}]" if has_ends else ""
        costs.append(("" if with_ends else "a cost of ") + describe_number(row.cost.value) + ends_of_cost)
    return costs


def _as_json(
    plan: Plan,
    noise: Interval | None,
    spent: Sequence[Spent],
    rule: LearningRateRule,
    factor: Callable[[Row], float],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    from lightning_bsscale.theory.stored import as_plain

    def row_of(row: Row) -> dict[str, Any]:
        made = {**as_plain(row), "lr_factor": factor(row)}
        return made if arguments.lr is None else {**made, "lr": arguments.lr * factor(row)}

    made = {
        "critical_batch": as_plain(plan.critical),
        "noise_scale": None if noise is None else as_plain(noise),
        "spent": [as_plain(one) for one in spent],
        "min_steps": plan.min_steps,
        "min_examples": plan.min_examples,
        "cheapest_batch": plan.cheapest,
        "lr_rule": rule.name,
        "recommended": row_of(plan.recommended),
        "reason": plan.reason,
        "recommended_between": list(plan.between),
        "rows": [row_of(row) for row in plan.rows],
        "picture": None if arguments.out is None else str(arguments.out),
    }
    return {name: _without_words(value) for name, value in made.items()}


def _without_words(value: Any) -> Any:
    # Records spell infinity as a word; here it is null.
    if isinstance(value, dict):
        return {name: _without_words(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_words(one) for one in value]
    return None if value in ("inf", "-inf", "nan") else value
