"""A policy, a rule or a schedule from words: ``seesaw``, ``NoiseScalePolicy(target_ratio=0.5)``, ``mine:Own(3)``."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_bsscale.cli.own_code import load
from lightning_bsscale.theory.checks import show
from lightning_bsscale.theory.policies import POLICIES, policy_classes, resolve_policy
from lightning_bsscale.theory.rules import RULES, Capped, resolve_rule
from lightning_bsscale.theory.schedules import SCHEDULES, resolve_schedule

__all__ = ["KINDS", "make_object", "read_value"]

_PATH = re.compile(r"([A-Za-z_][\w.]*:[A-Za-z_][\w.]*)\s*(\(.*\))?\s*", flags=re.DOTALL)
_UNREADABLE = (SyntaxError, TypeError, ValueError, MemoryError, RecursionError)
_WORDS = {"true": True, "false": False, "none": None, "null": None}


@dataclass(frozen=True)
class Kind:
    """What an option may name.

    Attributes:
        names: short names, and what each makes
        classes: the package's classes
        resolve: returns a checked object
    """

    names: Mapping[str, Callable[[], Any]]
    classes: Sequence[type]
    resolve: Callable[[Any], Any]


KINDS = {
    "policy": Kind(POLICIES, policy_classes(), resolve_policy),
    "rule": Kind(RULES, (*RULES.values(), Capped), resolve_rule),
    "schedule": Kind(SCHEDULES, tuple(SCHEDULES.values()), resolve_schedule),
}
"""By the name of the option."""


def make_object(option: str, kind: Kind, text: str) -> Any:
    """Make the object that a text names.

    Args:
        option: The option, for the message.
        kind: What it may name.
        text: A short name; a class of the package or the import path of one's own, with options in parentheses if any;
            or the import path of an object.

    Returns:
        The object. What its constructor raises is raised.

    Raises:
        ValueError: If the text is another, or names what is not there.
        TypeError: If it names something else.
    """  # noqa: DOC502
    path = _PATH.fullmatch(text.strip())
    if path is not None:
        own = load(option, path[1])
        return kind.resolve(_called(option, own, path[2] or "()", kind) if inspect.isclass(own) or path[2] else own)
    if text in kind.names:
        return kind.resolve(kind.names[text]())
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except _UNREADABLE:
        raise ValueError(_allowed(option, kind, text)) from None
    made = _evaluated(option, tree, kind, text)
    return kind.resolve(_made(option, made, [], {}) if inspect.isclass(made) else made)


def _allowed(option: str, kind: Kind, text: str) -> str:
    classes = [cls.__name__ for cls in kind.classes]
    return (
        f"{option} must be one of {', '.join([*kind.names, *classes])}, with options in parentheses if any, such as "
        f"'{classes[0]}(...)', or package.module:Name for your own, got {show(text)}."
    )


def _called(option: str, own: Any, parentheses: str, kind: Kind) -> Any:
    try:
        call = ast.parse(f"_{parentheses}", mode="eval").body
    except _UNREADABLE:
        raise ValueError(_allowed(option, kind, parentheses)) from None
    assert isinstance(call, ast.Call)
    return _made(option, own, *_arguments(option, call, kind, parentheses))


def _evaluated(option: str, node: ast.expr, kind: Kind, text: str) -> Any:
    """Return the value of an expression of literals, classes of the package and calls of these."""
    if isinstance(node, ast.Name):
        found = next((cls for cls in kind.classes if cls.__name__ == node.id), None)
        if found is None:
            raise ValueError(_allowed(option, kind, text))
        return found
    if isinstance(node, ast.Call):
        return _made(option, _evaluated(option, node.func, kind, text), *_arguments(option, node, kind, text))
    if isinstance(node, ast.Attribute):  # one's own within another: HoldIfWorse(mine.Own())
        return load(option, ":".join(ast.unparse(node).rsplit(".", 1)))
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_evaluated(option, one, kind, text) for one in node.elts]
    try:
        return ast.literal_eval(node)
    except _UNREADABLE:
        raise ValueError(_allowed(option, kind, text)) from None


def _arguments(option: str, call: ast.Call, kind: Kind, text: str) -> tuple[list[Any], dict[str, Any]]:
    placed = [_evaluated(option, one, kind, text) for one in call.args]
    named = {str(one.arg): _evaluated(option, one.value, kind, text) for one in call.keywords}
    return placed, named


def _made(option: str, function: Any, placed: list[Any], named: dict[str, Any]) -> Any:
    name = getattr(function, "__name__", show(function))
    if callable(function):
        try:
            takes = inspect.signature(function)
            takes.bind(*placed, **named)
        except TypeError as error:
            options = ", ".join(takes.parameters)
            raise ValueError(f"{option}: {name} has the options {options or '(none)'}: {error}.") from None
        except ValueError:  # a built-in without a signature
            pass
        return function(*placed, **named)
    raise ValueError(f"{option}: {name} cannot be made, as it is neither a class nor a function.")


def read_value(text: str) -> Any:
    """Return the value of an option: a number, true, false, none, a list, or the word itself.

    Example:
        >>> read_value("0.5"), read_value("512"), read_value("true"), read_value("probe.json")
        (0.5, 512, True, 'probe.json')
    """
    word = text.strip()
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    try:
        return ast.literal_eval(word)
    except _UNREADABLE:
        return word
