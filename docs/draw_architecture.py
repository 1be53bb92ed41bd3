"""Draw docs/architecture.svg, the package's folders and the imports between them, from the source itself.

Run `python docs/draw_architecture.py` after a file or an import between folders has changed; a test asks for it.
"""

import argparse
import ast
import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations, pairwise
from pathlib import Path
from random import Random
from xml.sax.saxutils import unescape

ROOT = Path(__file__).parents[1]
PACKAGE = "lightning_bsscale"
PICTURE = ROOT / "docs" / "architecture.svg"

# Top-level modules that share a box. One that is not named here gets a box to itself, and so does each folder.
GROUPS = {
    "command line": ("cli", "demo", "__main__"),
    "without Lightning": ("metric", "functional"),
    "figures": ("figures", "report"),
    "journal": ("journal", "journal_file", "record_lists", "replay", "summary", "what_if"),
    "simulation": ("simulation", "critical_batch"),
}
ABOUT = {
    "theory": "formulas and policies: numbers in, frozen records out · standard library only",
    "gradients": "measures gradients · torch",
    "callbacks": "hooks, and the only code that touches the Trainer · Lightning",
    "command line": "runs the rest",
    "without Lightning": "for your own loop",
    "figures": "pictures and reports",
    "journal": "a run as JSON lines, and its replay",
    "verdict": "what a run found, in words",
    "simulation": "noise with known truth",
}
FLOOR = "theory"  # the bottom row, as wide as the picture
COLORS = {"theory": "#2e7d5b", "gradients": "#2f67a8", "callbacks": "#b3541e"}
GREY = "#5f6672"

# All lengths are points.
WIDTH, MARGIN = 640.0, 10.0
LINE, TITLE, PAD, GAP = 11.5, 15.0, 9.0, 14.0
LANE, CHANNEL, PORT = 22.0, 46.0, 24.0
SEARCHES = 24
TEXT, SMALL = 8.0, 7.0


def files() -> dict[str, list[str]]:
    """Return the modules of each folder and group as paths within the package, without the __init__ files."""
    group_of = {module: group for group, modules in GROUPS.items() for module in modules}
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        inside = path.relative_to(ROOT / PACKAGE)
        if path.name != "__init__.py":
            top = inside.parts[0].removesuffix(".py")
            found.setdefault(group_of.get(top, top), []).append(inside.as_posix())
    return found


def imported(path: Path, modules: set[str]) -> Iterator[str]:
    """Yield the path of each module of the package that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" for name in names]
        for name in names:
            parts = name.split(".")
            # `from package.module import name` names a module and something in it.
            candidates = ["/".join(parts[1:end]) + ".py" for end in (len(parts), len(parts) - 1)]
            if parts[0] == PACKAGE:
                yield from [candidate for candidate in candidates if candidate in modules][:1]


def table() -> dict[str, dict[str, list[str]] | dict[str, int]]:
    """Return what the picture shows: the files of each box, and how many imports lead from one box to another.

    An import is a pair of files, however many names it brings.
    """
    boxes = files()
    box_of = {file: box for box, inside in boxes.items() for file in inside}
    pairs = {
        (file, target) for file in box_of for target in imported(ROOT / PACKAGE / file, set(box_of)) if target != file
    }
    counts = Counter((box_of[a], box_of[b]) for a, b in pairs if box_of[a] != box_of[b])
    return {"files": boxes, "imports": {f"{a} -> {b}": count for (a, b), count in sorted(counts.items())}}


def drawn_table(svg: str) -> dict[str, dict[str, list[str]] | dict[str, int]]:
    """Return the table that a picture carries in its description."""
    match = re.search(r"<dc:description>(.*?)</dc:description>", svg, flags=re.DOTALL)
    return json.loads(unescape(match[1])) if match else {"files": {}, "imports": {}}


# ---------------------------------------------------------------- layout


@dataclass
class Box:
    """A folder or group, or with no name a lane that arrows pass a row through."""

    name: str
    files: list[str] = field(default_factory=list)
    columns: int = 1
    x: float = 0.0
    top: float = 0.0  # of its row
    bottom: float = 0.0
    width: float = LANE
    height: float = 0.0

    @property
    def color(self) -> str:
        return COLORS.get(self.name, GREY)

    @property
    def y(self) -> float:
        return self.bottom - self.height

    @property
    def center(self) -> float:
        return self.x + self.width / 2

    def folders(self) -> dict[str, list[str]]:
        """Return the file names of the box itself (key "") and of the folders in it."""
        result: dict[str, list[str]] = {"": []}
        for file in self.files:
            parts = file.split("/")
            inner = parts[:-1] if self.name in GROUPS else parts[1:-1]
            result.setdefault("/".join(inner), []).append(parts[-1])
        return result


def column_width(names: list[str]) -> float:
    return max(map(len, names), default=0) * TEXT * 0.6 + 8


def fit(box: Box, width: float | None = None) -> None:
    """Set the size of a box, and the columns in which its own files are listed."""
    folders = box.folders()
    own = folders.pop("")
    inner = [column_width([*names, f"{name}/"]) + PAD for name, names in folders.items()]
    if width is None:
        columns = max(1, math.ceil(len(own) / 4))
        title = len(box.name) * 7
        about = min(len(ABOUT.get(box.name, "")) * SMALL * 0.52, 110)
        inside = sum(inner) + GAP / 2 * (len(inner) - 1)
        width = 2 * PAD + max(columns * column_width(own), inside, title, about)
    box.width = width
    box.columns = columns_in(own, width - 2 * PAD)
    lines = math.ceil(len(own) / box.columns)
    about_lines = len(wrapped(box))
    box.height = PAD + TITLE + about_lines * (SMALL + 3) + lines * LINE + PAD
    if folders:
        box.height += inner_size(box, folders)[1] + PAD / 2 + (GAP / 2 if own else 0)


def columns_in(names: list[str], width: float) -> int:
    return max(1, int(width / column_width(names)))


def inner_size(box: Box, folders: dict[str, list[str]]) -> tuple[float, float]:
    """Return the width and height that the folders within a box share."""
    width = (box.width - 2 * PAD - GAP / 2 * (len(folders) - 1)) / len(folders)
    lines = max(math.ceil(len(names) / columns_in(names, width - PAD)) for names in folders.values())
    return width, TITLE + lines * LINE + PAD / 2


def wrapped(box: Box) -> list[str]:
    """Return the sentence about a box in lines that fit into it."""
    lines: list[str] = []
    for word in ABOUT.get(box.name, "").split():
        if lines and (len(lines[-1]) + len(word) + 1) * SMALL * 0.52 <= box.width - 2 * PAD:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def levels(names: list[str], edges: dict[tuple[str, str], int]) -> dict[str, int]:
    """Return the row of each box, counted from below: above everything that it imports.

    Raises:
        SystemExit: The imports go round in a circle.
    """
    level = {name: int(name != FLOOR) for name in names}
    for _ in range(len(names) + 1):
        raised = {a for a, b in edges if level[a] <= level[b]}
        if not raised:
            return level
        for a in raised:
            level[a] = 1 + max(level[b] for source, b in edges if source == a)
    raise SystemExit(f"imports go round in a circle through {', '.join(sorted(raised))}")


def arrange(data: dict[str, dict]) -> tuple[list[list[Box]], dict[tuple[str, str], list[Box]]]:
    """Place the boxes in rows so that every arrow points down, and give arrows lanes through the rows they pass.

    Returns:
        The rows from below, and for each import the boxes and lanes from its beginning to its end.
    """
    edges = imports_of(data)
    level = levels(list(data["files"]), edges)
    boxes = {name: Box(name, inside) for name, inside in data["files"].items()}
    for name, box in boxes.items():
        fit(box, WIDTH - 2 * MARGIN if name == FLOOR else None)
    make_room(level, boxes, edges)
    rows: list[list[Box]] = [[] for _ in range(max(level.values()) + 1)]
    for name, box in boxes.items():
        rows[level[name]].append(box)
    paths: dict[tuple[str, str], list[Box]] = {}
    for a, b in edges:
        lanes = [Box("") for _ in range(level[a] - level[b] - 1)]
        for offset, lane in enumerate(lanes, 1):
            rows[level[a] - offset].append(lane)
        paths[a, b] = [boxes[a], *lanes, boxes[b]]
    order(rows, paths)
    y = MARGIN
    for row in reversed(rows):
        height = max(box.height for box in row)
        for box in row:
            # Boxes stand on the row's lower edge.
            box.top, box.bottom = y, y + height
        y += height + CHANNEL
    return rows, paths


def imports_of(data: dict[str, dict]) -> dict[tuple[str, str], int]:
    return {tuple(key.split(" -> ")): count for key, count in data["imports"].items()}


def make_room(level: dict[str, int], boxes: dict[str, Box], edges: dict[tuple[str, str], int]) -> None:
    """Move boxes out of rows that are too wide, one row up, where nothing in that row imports them."""
    for number in range(1, max(level.values())):
        while True:
            row = [name for name in level if level[name] == number]
            passing = sum(level[a] > number > level[b] for a, b in edges)
            width = sum(boxes[name].width for name in row) + passing * LANE + (len(row) + passing + 1) * GAP / 2
            movable = [name for name in row if all(level[a] > number + 1 for a, b in edges if b == name)]
            if width <= WIDTH - 2 * MARGIN or not movable:
                break
            level[max(movable, key=lambda name: boxes[name].width)] += 1


def spread(row: list[Box]) -> None:
    """Give the boxes of a row their places from left to right."""
    free = WIDTH - 2 * MARGIN - sum(box.width for box in row)
    gap = free / (len(row) + 1) if len(row) > 1 else 0.0
    x = MARGIN + (gap if len(row) > 1 else free / 2)
    for box in row:
        box.x = x
        x += box.width + gap


def order(rows: list[list[Box]], paths: dict[tuple[str, str], list[Box]]) -> None:
    """Sort the rows so that arrows are short and seldom cross: the best of some searches from random orders."""
    pairs = [pair for path in paths.values() for pair in pairwise(path)]
    random = Random(0)
    found: list[tuple[float, list[list[Box]]]] = []
    for _ in range(SEARCHES):
        for row in rows:
            random.shuffle(row)
            spread(row)
        found.append((swap(rows, pairs), [list(row) for row in rows]))
    for row, best in zip(rows, min(found, key=lambda one: one[0])[1], strict=True):
        row[:] = best
        spread(row)


def swap(rows: list[list[Box]], pairs: list[tuple[Box, Box]]) -> float:
    """Swap boxes within their rows for as long as that lowers the cost, and return it."""
    least = cost(pairs)
    improved = True
    while improved:
        improved = False
        for row in rows:
            for left, right in combinations(range(len(row)), 2):
                row[left], row[right] = row[right], row[left]
                spread(row)
                new = cost(pairs)
                if new < least - 1e-6:
                    least, improved = new, True
                else:
                    row[left], row[right] = row[right], row[left]
                    spread(row)
    return least


def cost(pairs: list[tuple[Box, Box]]) -> float:
    """Return how far arrows go sideways, where one that crosses another counts as far as the picture is wide."""
    sideways = sum(max(0.0, abs(a.center - b.center) - (a.width + b.width) / 2 + LANE) for a, b in pairs)
    crossings = sum(
        (a.center - c.center) * (b.center - d.center) < 0 and b.name != FLOOR and d.name != FLOOR
        for (a, b), (c, d) in combinations(pairs, 2)
    )
    return sideways + WIDTH * crossings


def ports(box: Box, ends: list[tuple[float, tuple[str, str]]]) -> dict[tuple[str, str], float]:
    """Return where arrows meet a box: near their other end, PORT apart, within the box."""
    ends = sorted(ends)
    step = min(PORT, (box.width - 2 * PAD) / max(1, len(ends)))
    low, high = box.x + PAD + step / 2, box.x + box.width - PAD - step / 2
    places: list[float] = []
    for number, (wish, _) in enumerate(ends):
        floor = places[-1] + step if places else low
        places.append(min(max(wish, floor), high - step * (len(ends) - 1 - number)))
    return {edge: place for (_, edge), place in zip(ends, places, strict=True)}


# ---------------------------------------------------------------- drawing


def draw_box(axes, box: Box) -> None:
    from matplotlib.patches import FancyBboxPatch

    def frame(x, y, width, height, face, edge, line):
        style = "round,pad=0,rounding_size=4"
        patch = FancyBboxPatch((x, y), width, height, style, facecolor=face, edgecolor=edge, linewidth=line, zorder=3)
        axes.add_patch(patch)

    def write(x, y, text, **settings):
        axes.text(x, y, text, va="center", zorder=4, **settings)

    frame(box.x, box.y, box.width, box.height, f"{box.color}14", box.color, 1.2)
    folders = box.folders()
    own = folders.pop("")
    x, y = box.x + PAD, box.y + PAD + TITLE / 2 - 3
    is_folder = box.name not in GROUPS and "/" in box.files[0]
    title = f"{box.name}/" if is_folder else box.name
    write(x, y, title, fontsize=10.5, fontweight="bold", color=box.color)
    y += TITLE / 2 + 3
    for line in wrapped(box):
        write(x, y + 1, line, fontsize=SMALL, color="#3c424c")
        y += SMALL + 3
    y += LINE / 2
    lines = math.ceil(len(own) / box.columns)
    for number, name in enumerate(own):
        column, row = divmod(number, lines)
        left = x + column * (box.width - 2 * PAD) / box.columns
        write(left, y + row * LINE, name, fontsize=TEXT, color="#1d2129")
    if not folders:
        return
    y += lines * LINE - LINE / 2 + (GAP / 2 if own else 0)
    width, height = inner_size(box, folders)
    for name, names in folders.items():
        frame(x, y, width, height, "white", f"{box.color}88", 0.8)
        write(x + PAD / 2, y + TITLE / 2 + 1, f"{name}/", fontsize=TEXT, fontweight="bold", color=box.color)
        columns = columns_in(names, width - PAD)
        rows = math.ceil(len(names) / columns)
        for number, file in enumerate(names):
            column, row = divmod(number, rows)
            left = x + PAD / 2 + column * (width - PAD) / columns
            write(left, y + TITLE + row * LINE + LINE / 2, file, fontsize=TEXT, color="#1d2129")
        x += width + GAP / 2


def draw_arrow(axes, points: list[tuple[float, float]], color: str, count: int) -> None:
    """Draw a line through (x, y) pairs of row ends: bent in the channels, straight through the rows."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Line

    vertices, codes = [points[0]], [Line.MOVETO]
    start, label = points[0][1], 13.0
    vertices.append((points[0][0], start + label))
    codes.append(Line.LINETO)
    for number, (x, y) in enumerate(points[1:], 1):
        last_x, last_y = vertices[-1]
        if number % 2:  # across a channel
            bend = 0.7 * (y - last_y)
            vertices += [(last_x, last_y + bend), (x, y - bend), (x, y)]
            codes += [Line.CURVE4] * 3
        else:
            vertices.append((x, y))
            codes.append(Line.LINETO)
    arrow = FancyArrowPatch(
        path=Line(vertices, codes), arrowstyle="-|>,head_length=5,head_width=2.6", color=color, linewidth=1.1, zorder=1
    )
    arrow.set_joinstyle("round")
    axes.add_patch(arrow)
    badge = {"boxstyle": "round,pad=0.22", "facecolor": "white", "edgecolor": color, "linewidth": 0.7}
    x, y = points[0][0], points[0][1] + label - 2
    axes.text(x, y, str(count), fontsize=SMALL, color=color, ha="center", va="center", bbox=badge, zorder=5)


def draw(data: dict[str, dict]):
    """Return the picture of a table as a figure."""
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

    rows, paths = arrange(data)
    edges = imports_of(data)
    height = rows[0][0].bottom + MARGIN
    figure = Figure(figsize=(WIDTH / 72, height / 72), facecolor="white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, WIDTH), ylim=(height, 0))
    axes.axis("off")
    boxes = [box for row in rows for box in row if box.name]
    leaving: dict[tuple[str, str], float] = {}
    arriving: dict[tuple[str, str], float] = {}
    for box in boxes:
        leaving |= ports(box, [(path[1].center, edge) for edge, path in paths.items() if path[0] is box])
    for box in boxes:
        ends = [
            (path[-2].center if path[-2] is not path[0] else leaving[edge], edge)
            for edge, path in paths.items()
            if path[-1] is box
        ]
        arriving |= ports(box, ends)
    for edge, path in paths.items():
        points = [(leaving[edge], path[0].bottom)]
        for lane in path[1:-1]:
            points += [(lane.center, lane.top), (lane.center, lane.bottom)]
        end = path[-1]
        points += [(arriving[edge], top) for top in ([end.top, end.y] if end.y - end.top > 8 else [end.y])]
        draw_arrow(axes, points, path[0].color, edges[edge])
    for box in boxes:
        axes.add_patch(
            FancyBboxPatch(
                (box.x, box.y),
                box.width,
                box.height,
                "round,pad=0,rounding_size=4",
                facecolor="white",
                edgecolor="none",
                zorder=2,
            )
        )
        draw_box(axes, box)
    return figure


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=PICTURE, help="default: docs/architecture.svg")
    out = parser.parse_args().out
    import matplotlib

    # The same source gives the same file: no date, no random ids, and text as text.
    matplotlib.rcParams.update({"svg.hashsalt": PACKAGE, "svg.fonttype": "none", "font.family": "DejaVu Sans"})
    data = table()
    is_svg = out.suffix == ".svg"
    metadata = {"Date": None, "Title": f"The folders of {PACKAGE}", "Description": json.dumps(data)} if is_svg else {}
    draw(data).savefig(out, dpi=150, metadata=metadata)
    print(f"{out}: {len(data['files'])} boxes, {sum(data['imports'].values())} imports between them")


if __name__ == "__main__":
    main()
