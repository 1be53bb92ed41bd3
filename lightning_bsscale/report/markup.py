"""Write HTML and SVG in which nothing but our own words can become markup.

A page is built of `Markup`, which only `tag` makes. Text that is no `Markup` is escaped wherever it is put, so that a
name or a sentence from a journal stays text whatever characters it has.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["Markup", "cut", "data_block", "number", "tag", "text"]

LONGEST_TEXT = 500
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"}
_VOID = frozenset({"input", "meta"})
_CLOSED = frozenset({"circle", "line", "path", "rect"})
_TAGS = re.compile(
    "html|head|meta|title|style|script|body|header|main|footer|section|div|p|h[1-4]|[uo]l|li|d[ltd]|a|bdi|strong|span|"
    "fieldset|legend|label|input|figure|figcaption|details|summary|table|caption|thead|tbody|t[rhd]|pre|code|"
    "svg|desc|g|text|path|line|rect|circle"
)
# Control characters, marks that turn the direction of a line, halves of a surrogate pair, and line separators.
_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def cut(words: str, longest: int = LONGEST_TEXT) -> str:
    """Return a text of at most so many characters."""
    return words if len(words) <= longest else f"{words[: longest - 4]} ..."


def text(words: object) -> Markup:
    """Escape a text.

    Args:
        words: Anything; its `str` is shown.

    Returns:
        The text as markup. Characters that show nothing, or that turn the direction of a line, are written as their
        code points, so that they can neither hide nor reorder anything.

    Example:
        >>> text("<b>5 & 6</b>")
        '&lt;b&gt;5 &amp; 6&lt;/b&gt;'
        >>> print(text("a" + chr(0x202E) + "b"))
        a[U+202E]b
    """
    if isinstance(words, Markup):
        return words
    return Markup("".join(map(_shown, str(words))))


def _shown(character: str) -> str:
    if character in _ESCAPES:
        return _ESCAPES[character]
    if character in "\t\n\r":
        return " "
    return f"[U+{ord(character):04X}]" if unicodedata.category(character) in _INVISIBLE else character


def tag(name: str, /, *inside: object, **attributes: object) -> Markup:
    """Write an element.

    Args:
        name: One of the elements that a page may have.
        inside: What it contains: `Markup`, text, or lists of these. None is left out.
        attributes: Its attributes: a trailing underscore is dropped, other underscores become hyphens, except in
            ``viewBox``. False and None leave one out, True writes it without a value.

    Returns:
        The element.

    Example:
        >>> tag("p", "1 < 2", class_="note")
        '<p class="note">1 &lt; 2</p>'
    """
    assert _TAGS.fullmatch(name), name
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID | _CLOSED:
        return Markup(f"<{name}{written}{'/' if name in _CLOSED else ''}>")
    return Markup(f"<{name}{written}>{''.join(_flat(inside))}</{name}>")


def _attribute(key: str, value: object) -> str:
    name = key.rstrip("_").replace("_", "-")
    assert name != "style"
    assert not name.startswith("on")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{text(value)}"'


def _flat(inside: Iterable[object]) -> Iterable[str]:
    for one in inside:
        if one is None:
            continue
        if isinstance(one, (list, tuple)):
            yield from _flat(one)
        else:
            yield text(one)


def number(value: float) -> str:
    """Write a coordinate: at most one decimal, without a trailing zero.

    Args:
        value: The coordinate, finite.

    Returns:
        Its digits.
    """
    assert math.isfinite(value), value
    written = f"{value:.1f}".removesuffix(".0")
    return "0" if written == "-0" else written


def data_block(name: str, data: Mapping[str, Any]) -> Markup:
    """Write data for the page's script: JSON in which no character can end the element."""
    written = json.dumps(data, allow_nan=False, ensure_ascii=True, separators=(",", ":"), sort_keys=True)
    for character in "<>&":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return tag("script", Markup(written), type="application/json", id=name)
