"""Reads a report as a browser does, and refuses whatever a report may not have."""

import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "input"}
ELEMENTS = re.compile(
    "html|head|meta|title|style|script|body|header|main|footer|section|div|p|h[1-4]|[uo]l|li|d[ltd]|a|bdi|strong|span|"
    "fieldset|legend|label|input|figure|figcaption|details|summary|table|caption|thead|tbody|t[rhd]|pre|code|"
    "svg|desc|g|text|path|line|rect|circle"
)
ATTRIBUTES = re.compile(
    "charset|content|name|http-equiv|lang|class|id|type|value|checked|open|href|role|tabindex|scope|aria-label|"
    "aria-labelledby|aria-hidden|viewbox|d|x|y|x1|x2|y1|y2|cx|cy|r|width|height"
)


@dataclass
class Element:
    name: str
    attributes: dict
    children: list = field(default_factory=list)

    def all(self, name):
        """Every element of this name inside it, in order."""
        for child in self.children:
            if isinstance(child, Element):
                if child.name == name:
                    yield child
                yield from child.all(name)

    @property
    def text(self):
        return "".join(child if isinstance(child, str) else child.text for child in self.children)


class _Reader(HTMLParser):
    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.root = Element("", {})
        self.open = [self.root]

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(self.open[-1].children[-1])

    def handle_startendtag(self, tag, attrs):
        assert ELEMENTS.fullmatch(tag), tag
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), names
        assert all(map(ATTRIBUTES.fullmatch, names)), names
        self.open[-1].children.append(Element(tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop().name == tag

    def handle_data(self, data):
        self.open[-1].children.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment: {data[:50]}")

    def handle_pi(self, data):
        raise AssertionError(f"an instruction: {data[:50]}")

    def unknown_decl(self, data):
        raise AssertionError(f"a declaration: {data[:50]}")


def read_page(page):
    """Parse a report, check what holds for each, and return its root."""
    reader = _Reader()
    reader.feed(page)
    reader.close()
    root = reader.root
    assert len(reader.open) == 1, [one.name for one in reader.open]
    data, script = root.all("script")
    assert data.attributes == {"type": "application/json", "id": "report-data"}
    assert script.attributes == {}
    assert all(link.attributes["href"].startswith("#") for link in root.all("a"))
    ids = [one.attributes["id"] for one in _everything(root) if "id" in one.attributes]
    assert len(ids) == len(set(ids))
    for picture in pictures(root):
        names = picture.attributes["aria-labelledby"].split()
        said = [next(one.text for one in _everything(picture) if one.attributes.get("id") == name) for name in names]
        assert all(said), picture.attributes["id"]
    for name, axes in json.loads(data.text, parse_constant=AssertionError).items():
        figure = next(one for one in root.all("figure") if one.attributes["id"] == f"{name}-figure")
        rows = len(list(next(figure.all("tbody")).all("tr")))
        assert {len(places) for places in axes.values()} == {rows}
        assert {f"{name}-{axis}" for axis in axes} == {one.attributes["id"] for one in pictures(figure)}
    return root


def pictures(root):
    """The pictures inside an element, without the keys of legends."""
    return [one for one in root.all("svg") if one.attributes.get("role") == "img"]


def _everything(root):
    for child in root.children:
        if isinstance(child, Element):
            yield child
            yield from _everything(child)
