"""The rules of the house, read from the syntax trees. Each rule has a twin: a source that it must flag."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "lightning_bsscale"
STANDARD_LIBRARY = sys.stdlib_module_names

# Room -> what it may import besides the standard library: anywhere, and only where importing the room does not run it
# (inside functions, or for type checkers).
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "theory": ({"theory"}, set()),
    "gradients": ({"torch", "theory", "gradients"}, set()),
    "callbacks": (
        {
            *("torch", "lightning", "numpy", "theory", "gradients", "callbacks"),
            *("journal", "journal_file", "summary", "record_lists", "verdict"),
        },
        {"figures", "matplotlib"},
    ),
    "metric": ({"torch", "torchmetrics", "theory", "functional"}, {"figures", "matplotlib"}),
    "functional": ({"torch", "theory", "gradients"}, set()),
    "journal": ({"theory", "journal_file"}, set()),
    "journal_file": (set(), set()),
    "replay": ({"theory", "journal"}, set()),
    "what_if": ({"theory", "journal", "replay"}, set()),
    "summary": ({"theory", "journal"}, set()),
    "record_lists": ({"theory"}, {"pandas"}),
    "verdict": ({"theory", "journal", "verdict"}, set()),
    "figures": ({"theory", "journal", "numpy", "figures"}, {"matplotlib"}),
    "report": ({"theory", "journal", "verdict", "report"}, set()),
    "simulation": ({"theory", "numpy", "simulation"}, {"matplotlib"}),
    "demo": (
        {"torch", "lightning", "numpy", "sklearn", "theory", "callbacks", "journal", "journal_file", "summary"},
        {"figures", "matplotlib"},
    ),
    "critical_batch": ({"torch", "lightning", "numpy", "theory", "callbacks", "functional", "critical_batch"}, set()),
    "cli": (
        {"theory", "cli", "journal", "replay", "__version__"},
        {
            *("demo", "summary", "record_lists", "verdict", "figures", "report", "simulation", "what_if"),
            *("critical_batch", "lightning", "matplotlib"),
        },
    ),
    "__main__": ({"cli"}, set()),
    # The door names everything and loads nothing: see test_the_door_loads_no_torch.
    "__init__": ({"theory", "callbacks", "metric", "functional"}, set()),
}
COLLECTIVES = {
    *("all_gather", "all_gather_into_tensor", "all_gather_object", "all_reduce", "all_reduce_coalesced", "all_to_all"),
    *("barrier", "broadcast", "broadcast_object_list", "gather_object", "monitored_barrier"),
    *("reduce_boolean_decision", "reduce_scatter", "reduce_scatter_tensor"),
}
FORBIDDEN_FILE_NAMES = {"base.py", "common.py", "helpers.py", "misc.py", "types.py", "utils.py"}
MAX_FUNCTION_LINES = 60
MAX_EXAMPLE_LINES = 100


def room_of(path: PurePosixPath) -> str:
    return path.parts[0] if len(path.parts) > 1 else path.stem


def imports(tree: ast.AST, deferred: bool = False) -> Iterator[tuple[str, bool, int]]:
    """Head of each import (a room's name or a distribution's), whether it runs later or never, and its line."""
    for node in ast.iter_child_nodes(tree):
        inside = deferred or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        inside = inside or (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = ["." * node.level + (node.module or "")] if node.level else []
            names += [] if node.level else [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            names = []
        for name in names:
            parts = name.split(".")
            yield (parts[1] if parts[0] == PACKAGE and parts[1:] else parts[0] or "."), inside, node.lineno
        yield from imports(node, inside)


def wrong_imports(source: str, path: PurePosixPath) -> list[str]:
    room = room_of(path)
    if room not in ROOMS:
        return [f"{path}: this file has no room; its rules belong into ROOMS"]
    anywhere, in_functions = ROOMS[room]
    tree = ast.parse(source)
    found = [
        f"{path}:{line}: {room} imports {head}"
        for head, inside, line in imports(tree)
        if head not in anywhere | STANDARD_LIBRARY and not (inside and head in in_functions)
    ]
    # A module named by a string would walk around the table above. Only the door does that.
    dynamic = {"import_module", "__import__"}
    for node in ast.walk(tree):
        name = getattr(node, "id", None) or getattr(node, "attr", None)
        if name in dynamic and room != "__init__":
            found.append(f"{path}:{node.lineno}: {name} outside the door")
    return found


def module_name(path: PurePosixPath) -> str:
    """Dotted name within the package; the door's is empty."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(files: dict[PurePosixPath, str]) -> dict[str, set[str]]:
    """Module -> modules that it names in imports: at the top, for type checkers, and inside functions alike.

    An import inside a function still ties two files together for whoever reads them, so it is no way out of a cycle.
    `from package import name` leads to the module `package.name` if there is one, else to `package/__init__.py`. That a
    folder's `__init__` runs before its files is no edge: only a file that names it depends on it.
    """
    modules = {module_name(path) for path in files}
    graph: dict[str, set[str]] = {}
    for path, source in files.items():
        named: set[str] = set()
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                named.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                named.update(f"{node.module}.{alias.name}" for alias in node.names)
        inside = {name[len(PACKAGE) + 1 :] for name in named if f"{name}.".startswith(f"{PACKAGE}.")}
        graph[module_name(path)] = {name if name in modules else name.rpartition(".")[0] for name in inside} & modules
    return graph


def import_cycles(files: dict[PurePosixPath, str]) -> set[frozenset[str]]:
    """Largest sets of modules in which each leads to each other one."""
    graph = import_graph(files)
    reached: dict[str, set[str]] = {}
    for start in graph:
        found, todo = set(), list(graph[start])
        while todo:
            module = todo.pop()
            if module not in found:
                found.add(module)
                todo.extend(graph[module])
        reached[start] = found
    return {frozenset(m for m in reached[s] if s in reached[m]) for s in graph if s in reached[s]}


def written_targets(tree: ast.AST) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.Delete):
            todo = list(node.targets)
        elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.For | ast.NamedExpr):
            todo = [node.target]
        elif isinstance(node, ast.withitem):
            todo = [node.optional_vars] if node.optional_vars else []
        else:
            continue
        while todo:
            target = todo.pop()
            if isinstance(target, ast.Tuple | ast.List):
                todo.extend(target.elts)
            elif isinstance(target, ast.Starred):
                todo.append(target.value)
            else:
                yield target


def attribute_writes(source: str, attribute: str) -> list[int]:
    """Lines that assign to `x.attribute` or call `setattr`/`delattr` with its name."""
    tree = ast.parse(source)
    lines = [t.lineno for t in written_targets(tree) if isinstance(t, ast.Attribute) and t.attr == attribute]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and len(node.args) >= 2:
            name = getattr(node.func, "id", None) or getattr(node.func, "attr", None)
            if name in {"setattr", "delattr", "__setattr__", "__delattr__"} and any(
                isinstance(argument, ast.Constant) and argument.value == attribute for argument in node.args
            ):
                lines.append(node.lineno)
    return lines


def key_writes(source: str, key: str) -> list[int]:
    """Lines that assign to `x[key]`, or hand the key to `update` or `setdefault`."""

    def is_key(node: ast.AST | None) -> bool:
        return isinstance(node, ast.Constant) and node.value == key

    tree = ast.parse(source)
    lines = [t.lineno for t in written_targets(tree) if isinstance(t, ast.Subscript) and is_key(t.slice)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            named = any(keyword.arg == key for keyword in node.keywords)
            in_dict = any(isinstance(a, ast.Dict) and any(map(is_key, a.keys)) for a in node.args)
            if (node.func.attr == "update" and (named or in_dict)) or (
                node.func.attr in {"setdefault", "__setitem__"} and node.args and is_key(node.args[0])
            ):
                lines.append(node.lineno)
    return lines


def collectives(source: str) -> list[int]:
    """Lines where something that waits for other ranks is named."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            named = [ast.unparse(node)]
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        else:
            continue
        for name in named:
            owner, _, last = name.rpartition(".")
            is_reduce = last == "reduce" and owner != "functools"
            if last in COLLECTIVES or is_reduce or name.startswith("torch.distributed"):
                lines.append(node.lineno)
    return lines


def long_functions(source: str) -> list[str]:
    """Functions above the limit. Docstrings do not count: a proof in one is no reason to split the code."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            if lines > MAX_FUNCTION_LINES:
                found.append(f"{node.name}: {lines} lines")
    return found


FILES = {
    PurePosixPath(file.relative_to(ROOT / PACKAGE).as_posix()): file.read_text(encoding="utf-8")
    for file in (ROOT / PACKAGE).rglob("*.py")
}
ACCUMULATION = PurePosixPath("callbacks/trainer/accumulation.py")
LEARNING_RATE = PurePosixPath("callbacks/trainer/learning_rate.py")
HYPERPARAMETERS = PurePosixPath("callbacks/trainer/hyperparameters.py")
SCHEDULERS = PurePosixPath("callbacks/trainer/schedulers.py")
STOP = PurePosixPath("callbacks/trainer/stop.py")
MICRO_BATCHES = PurePosixPath("callbacks/trainer/micro_batches.py")
COLLECTIVE = PurePosixPath("gradients/reduce.py")


def test_the_package_was_found():
    assert {PurePosixPath("__init__.py"), PurePosixPath("gradients/parameter_hooks.py")} <= set(FILES)


def test_imports_point_one_way():
    assert not [line for path, source in FILES.items() for line in wrong_imports(source, path)]


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("theory/windows.py", "import torch"),
        ("theory/windows.py", "import numpy as np"),
        ("theory/windows.py", "def f():\n    import torch"),
        ("theory/windows.py", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from torch import Tensor"),
        ("theory/windows.py", "from lightning_bsscale.gradients import watcher"),
        ("theory/windows.py", "from lightning_bsscale import gradients"),
        ("theory/windows.py", "import lightning_bsscale.gradients.watcher"),
        ("theory/windows.py", "from .moments import WindowMoments"),
        ("theory/windows.py", "from . import moments"),
        ("theory/windows.py", "import importlib\nimportlib.import_module('torch')"),
        ("theory/windows.py", "__import__('torch')"),
        ("theory/windows.py", "class A:\n  def f(self):\n    try:\n      import lightning\n    finally:\n      pass"),
        ("gradients/watcher.py", "import lightning.pytorch as pl"),
        ("gradients/watcher.py", "def f():\n    from lightning_bsscale.callbacks.scaler import BatchSizeScaler"),
        ("callbacks/scaler.py", "import matplotlib"),
        ("callbacks/scaler.py", "if sys.flags.optimize:\n    import matplotlib"),
        ("callbacks/scaler.py", "from lightning_bsscale.figures import draw"),
        ("callbacks/scaler.py", "from lightning_bsscale import NoiseScalePolicy"),
        ("callbacks/scaler.py", "def f():\n    from lightning_bsscale.demo import run"),
        ("metric.py", "from lightning_bsscale.gradients.parameter_hooks import ParameterHooks"),
        ("journal.py", "import torch"),
        ("journal.py", "from lightning_bsscale.replay import replay"),
        ("replay.py", "import torch"),
        ("callbacks/scaler.py", "from lightning_bsscale.replay import replay"),
        ("cli/demo.py", "from lightning_bsscale.demo import run"),
        ("new_room.py", "x = 1"),
        ("new_room/file.py", "x = 1"),
    ],
)
def test_a_wrong_import_is_flagged(path, source):
    assert wrong_imports(source, PurePosixPath(path))


def test_right_imports_are_not_flagged():
    source = (
        "import math\nfrom lightning_bsscale.theory.moments import WindowMoments\nimport lightning_bsscale.theory.rules"
    )
    assert not wrong_imports(source, PurePosixPath("theory/x.py"))
    source = "if TYPE_CHECKING:\n    import matplotlib\ndef plot():\n    from lightning_bsscale.figures import draw"
    assert not wrong_imports(source, PurePosixPath("callbacks/scaler.py"))


def test_no_files_import_each_other_in_a_circle():
    assert not import_cycles(FILES)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("from lightning_bsscale.theory.b import x", "from lightning_bsscale.theory.a import y"),
        ("import lightning_bsscale.theory.b", "from lightning_bsscale.theory import a"),
        ("if TYPE_CHECKING:\n    from lightning_bsscale.theory.b import x", "import lightning_bsscale.theory.a as a"),
        ("def f():\n    from lightning_bsscale.theory.b import x", "from lightning_bsscale.theory.a import y"),
        ("from lightning_bsscale.theory.c import x", "from lightning_bsscale.theory.a import y"),
        ("from lightning_bsscale.theory import x", ""),
        ("from lightning_bsscale.theory.a import x", ""),
    ],
    ids=["names", "modules", "type checkers", "in a function", "of three", "through __init__", "itself"],
)
def test_a_circle_of_imports_is_flagged(first, second):
    files = {
        "theory/__init__.py": "from lightning_bsscale.theory.a import x",
        "theory/a.py": first,
        "theory/b.py": second,
        "theory/c.py": "from lightning_bsscale.theory.b import x",
    }
    (cycle,) = import_cycles({PurePosixPath(path): source for path, source in files.items()})
    assert "theory.a" in cycle


def test_a_folders_table_of_its_files_is_no_circle():
    files = {
        "__init__.py": "from lightning_bsscale.theory.rules import Linear",
        "cli/__init__.py": "from lightning_bsscale import __version__",
        "theory/rules/__init__.py": "from lightning_bsscale.theory.rules.linear import Linear",
        "theory/rules/linear.py": "from lightning_bsscale.theory.rules.rule import LearningRateRule",
        "theory/rules/rule.py": "import math",
    }
    assert not import_cycles({PurePosixPath(path): source for path, source in files.items()})


@pytest.mark.parametrize(
    ("writer", "writes", "name"),
    [
        (ACCUMULATION, attribute_writes, "accumulate_grad_batches"),
        (STOP, attribute_writes, "should_stop"),
        (MICRO_BATCHES, attribute_writes, "training_step"),
        (MICRO_BATCHES, attribute_writes, "backward"),
        (SCHEDULERS, attribute_writes, "frequency"),
        (LEARNING_RATE, key_writes, "lr"),
        *((HYPERPARAMETERS, key_writes, key) for key in ("weight_decay", "betas", "momentum", "dampening")),
    ],
)
def test_one_file_writes(writer, writes, name):
    assert not [f"{path}:{line}" for path, source in FILES.items() if path != writer for line in writes(source, name)]


@pytest.mark.parametrize(
    "source",
    [
        "trainer.accumulate_grad_batches = 2",
        "self.trainer.accumulate_grad_batches *= 2",
        "trainer.accumulate_grad_batches: int = 2",
        "a, (b, trainer.accumulate_grad_batches) = 1, (2, 3)",
        "del trainer.accumulate_grad_batches",
        "setattr(trainer, 'accumulate_grad_batches', 2)",
        "object.__setattr__(trainer, 'accumulate_grad_batches', 2)",
        "for trainer.accumulate_grad_batches in range(3): pass",
    ],
)
def test_a_second_writer_of_an_attribute_is_flagged(source):
    assert attribute_writes(source, "accumulate_grad_batches")
    assert attribute_writes(source.replace("accumulate_grad_batches", "frequency"), "frequency")


@pytest.mark.parametrize(
    "source",
    [
        "group['lr'] = 1.0",
        "group['lr'] *= 2",
        "for g in optimizer.param_groups:\n    g['lr'], x = 1, 2",
        "group.update(lr=1.0)",
        "group.update({'lr': 1.0})",
        "group.setdefault('lr', 1.0)",
        "del group['lr']",
    ],
)
def test_a_second_writer_of_the_rate_is_flagged(source):
    assert key_writes(source, "lr")


def test_reading_is_not_writing():
    assert not attribute_writes("x = trainer.accumulate_grad_batches", "accumulate_grad_batches")
    assert not key_writes("x = group['lr']\ny = {'lr': 1}\nz['momentum'] = group['lr']", "lr")


def test_collectives_are_in_one_file():
    assert not [
        f"{path}:{line}" for path, source in FILES.items() if path != COLLECTIVE for line in collectives(source)
    ]


@pytest.mark.parametrize(
    "source",
    [
        "import torch.distributed as dist",
        "from torch import distributed",
        "from torch.distributed import all_reduce",
        "from torch.distributed.nn.functional import all_reduce",
        "torch.distributed.barrier()",
        "trainer.strategy.barrier()",
        "trainer.strategy.broadcast(x)",
        "trainer.strategy.reduce(x)",
        "module.all_gather(x)",
    ],
)
def test_a_collective_elsewhere_is_flagged(source):
    assert collectives(source)


def test_other_reductions_are_no_collectives():
    assert not collectives("import functools\nfunctools.reduce(f, x)\ntorch.broadcast_to(x, y)")


def test_functions_are_short():
    assert not [f"{path}: {line}" for path, source in FILES.items() for line in long_functions(source)]


def test_examples_are_short():
    lines = {e.name: e.read_text(encoding="utf-8").count("\n") for e in (ROOT / "examples").rglob("*.py")}
    assert lines
    assert max(lines.values()) <= MAX_EXAMPLE_LINES, lines


def test_long_functions_are_flagged():
    body = "    x = 1\n"
    assert long_functions("def f():\n" + body * MAX_FUNCTION_LINES)
    assert not long_functions("def f():\n" + body * (MAX_FUNCTION_LINES - 1))
    assert long_functions("class A:\n def f(self):\n" + "  x = 1\n" * MAX_FUNCTION_LINES)
    documented = "def f():\n" + '    """Sentence.\n' + "    line\n" * 80 + '    """\n'
    assert not long_functions(documented + body * (MAX_FUNCTION_LINES - 1))
    assert long_functions(documented + body * MAX_FUNCTION_LINES)


def test_no_file_is_a_drawer_for_everything():
    assert not [path for path in FILES if path.name in FORBIDDEN_FILE_NAMES]
