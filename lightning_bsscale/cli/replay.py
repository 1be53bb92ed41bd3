"""The command ``replay``: compute a run again from its journal, as it was or with other options."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_bsscale.cli.own_code import add_traceback, explain
from lightning_bsscale.cli.terminal import (
    DISAGREES,
    JOURNAL,
    Working,
    complain,
    one_line,
    problem_with,
    write,
    write_json,
)

HELP = "compute a run again from its journal, and compare; or with other options: what if?"
ABOUT = """
Without options it computes every window, average, decision and factor again and counts what agrees with the journal
(exit status 3 if anything does not). A policy, a rule or a schedule of your own is not in a journal: name it with
--policy, --rule or --schedule, as package.module:Name, with its options in parentheses.

With --set, with --what-if, or with a policy that is not the journal's, it shows what other options would have done
with the batch, beside what was: batch in examples over all devices, optimizer steps, learning-rate factor. Noise
scales are those that this run measured at the same number of examples. Nothing is known of the loss.
"""
EXAMPLES = (
    "runs/demo/bsscale.jsonl",
    "runs/demo/bsscale.jsonl --set target_ratio=0.5",
    "runs/demo/bsscale.jsonl --set max_batch_size=512 --set memory=0.1",
    "runs/demo/bsscale.jsonl --policy 'Seesaw(cut=2)'",
    "run.jsonl --policy 'my_package.policies:Mine(patience=3)'",
)

OF_SCALER = ("lr_cap", "max_batch_size", "memory", "warmup")
_OBJECTS = {"policy": "policy", "lr_rule": "rule", "schedule": "schedule"}  # what --set may name: the option for it
_LONGEST = 1000
_SHOWN = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options to a parser."""
    parser.add_argument("journal", type=Path, metavar="JOURNAL", help=JOURNAL)
    what = "short name, class with options in parentheses, or package.module:Name of your own"
    parser.add_argument("--policy", metavar="POLICY", help=f"the policy: {what}")
    parser.add_argument("--rule", metavar="RULE", help=f"the learning-rate rule: {what}")
    parser.add_argument("--schedule", metavar="SCHEDULE", help=f"the callback's own schedule: {what}")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what if: another value of an option of the policy, such as target_ratio=0.5, or of BatchSizeScaler "
        f"({', '.join(OF_SCALER)}); may be repeated. max_batch_size is in examples, memory and warmup are shares of "
        "the training's examples, such as 0.1",
    )
    parser.add_argument(
        "--what-if",
        action="store_true",
        help="what if, also without another option: for a dry run, a monitor, or a policy whose code you changed",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_traceback(parser)


def run(arguments: argparse.Namespace) -> int:
    """Replay a journal; return the exit status."""
    try:
        return _run(arguments)
    except BrokenPipeError:
        raise
    except Exception as error:  # a user-defined policy may raise anything
        own = None if arguments.traceback else explain(error)
        if own is not None:
            return complain(f"{own}. --traceback shows all of it.")
        if arguments.traceback or not isinstance(error, (OSError, TypeError, ValueError)):
            raise
        return complain(problem_with(arguments.journal, error) if isinstance(error, OSError) else one_line(error))


def _run(arguments: argparse.Namespace) -> int:
    from lightning_bsscale.cli.objects import KINDS, make_object

    path: Path = arguments.journal
    try:
        header = _header(path)
    except (OSError, ValueError) as error:
        return complain(problem_with(path, error))
    made = {
        name: make_object(f"--{name}", KINDS[name], getattr(arguments, name))
        for name in KINDS
        if getattr(arguments, name) is not None
    }
    if not (arguments.set or arguments.what_if or _differs(made, header)):
        return _check(path, made, as_json=arguments.json)
    from lightning_bsscale.cli.what_if import as_json, as_text
    from lightning_bsscale.what_if import what_if

    options = _with_settings(made, arguments.set, header, path)
    with Working(f"replaying {path}"):
        found = what_if(path, **options)
    asked = [f"{name}={getattr(arguments, name)}" for name in made] + arguments.set
    if arguments.json:
        write_json({"journal": str(path), "asked": asked, **as_json(found)})
    else:
        write(as_text(found, asked))
    return 0


# ---------------------------------------------------------------- what is asked


def _with_settings(
    made: Mapping[str, Any], settings: Sequence[str], header: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Return the options of `what_if`: the objects, with what --set says of the scaler and of the policy."""
    from lightning_bsscale.cli.objects import KINDS, make_object, read_value

    options = {"lr_rule" if name == "rule" else name: one for name, one in made.items()}
    of_policy: dict[str, Any] = {}
    for text in settings:
        name, equals, value = text.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ValueError(f"--set must be NAME=VALUE, such as target_ratio=0.5, got {text!r}.")
        if name in _OBJECTS:
            options[name] = make_object(f"--set {name}", KINDS[_OBJECTS[name]], value)
        elif name in OF_SCALER:
            options[name] = read_value(value)
        else:
            of_policy[name] = read_value(value)
    if of_policy:
        options["policy"] = _changed(options.get("policy"), of_policy, header, path)
    return options


def _header(path: Path) -> dict[str, Any]:
    from lightning_bsscale.journal import Header, read_lines

    _, first = next(read_lines(path))
    assert isinstance(first, Header)
    return first.fields


def _differs(made: Mapping[str, Any], header: Mapping[str, Any]) -> bool:
    """Return whether one of the objects is another than the journal names."""
    from lightning_bsscale.theory.described import describe

    for name, one in made.items():
        recorded, mine = header.get("lr_rule" if name == "rule" else name), describe(one)
        if name == "rule" and isinstance(recorded, dict) and recorded.get("class") == "Capped" != mine["class"]:
            recorded = (recorded.get("options") or {}).get("rule")
        if not isinstance(recorded, dict) or recorded.get("class") != mine["class"]:
            return True
        if recorded.get("options") not in (None, mine["options"]):
            return True
    return False


def _changed(policy: Any, options: dict[str, Any], header: Mapping[str, Any], path: Path) -> Any:
    """Return a policy with other options: the given one, that of the journal, or of a monitor the default."""
    import dataclasses

    from lightning_bsscale.theory.described import make_policy
    from lightning_bsscale.theory.policies import NoiseScalePolicy

    if policy is None:
        described = header.get("policy")
        policy = NoiseScalePolicy() if described is None else make_policy(described, path)
    known = [one.name for one in dataclasses.fields(policy)] if dataclasses.is_dataclass(policy) else []
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(
            f"--set {unknown[0]}: what can be set is {', '.join([*_OBJECTS, *OF_SCALER])} of BatchSizeScaler, and "
            f"{', '.join(known) or 'nothing'} of {type(policy).__name__}. A journal does not hold what other options "
            "would have measured."
        )
    return dataclasses.replace(policy, **options)


# ---------------------------------------------------------------- as it was


def _check(path: Path, made: Mapping[str, Any], *, as_json: bool) -> int:
    from lightning_bsscale.replay import KINDS, Replayed, replay

    total, wrong = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    first: list[Replayed] = []
    with Working(f"replaying {path}") as working:
        for one in replay(path, **made):
            working.at = f"line {one.line:,}"
            total[one.kind] += 1
            if not one.agrees:
                wrong[one.kind] += 1
                first += [one] if len(first) < _SHOWN else []
    agrees = not any(wrong.values())
    shown = [(one.line, one.kind, _in_one_line(one.recorded), _in_one_line(one.replayed)) for one in first]
    if as_json:
        counts = {kind: {"all": total[kind], "agree": total[kind] - wrong[kind]} for kind in KINDS}
        disagreements = [dict(zip(("line", "kind", "recorded", "replayed"), one, strict=True)) for one in shown]
        write_json({"journal": str(path), "agrees": agrees, "counts": counts, "disagreements": disagreements})
    else:
        for line, kind, recorded, replayed in shown:
            write(f"line {line}, {kind}: recorded {recorded}, replayed {replayed}")
        if sum(wrong.values()) > _SHOWN:
            write(f"... and {sum(wrong.values()) - _SHOWN} more that disagree")
        write("; ".join(f"{total[kind] - wrong[kind]} of {total[kind]} {KINDS[kind]}" for kind in KINDS) + " agree")
    return 0 if agrees else DISAGREES


def _in_one_line(recorded: object) -> str:
    # The reason of a decision is whatever a policy, or whoever wrote the file, made it.
    text = repr(recorded)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 4]} ..."
