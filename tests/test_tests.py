"""The rules of this folder. Each has a twin: what it must flag."""

import ast
from pathlib import Path, PurePosixPath

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "lightning_bsscale"
MIRRORED = {"theory", "gradients", "callbacks"}
FILES = {PurePosixPath(path.relative_to(TESTS).as_posix()): path for path in TESTS.rglob("*.py")}


def imported_tests(source):
    """Names of the test modules that this source imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("tests.") and any(part.startswith(("test_", "conftest")) for part in name.split(".")):
                yield name


def is_out_of_place(path):
    """Whether this is a helper outside helpers/, or a test inside it."""
    if path.parts[0] == "helpers":
        return path.name.startswith("test_")
    return not path.name.startswith("test_") and path.name not in {"conftest.py", "__init__.py"}


def mirrors_nothing(path):
    """Whether this test is in a folder of the package's, and the package has no such file there."""
    if path.parts[0] not in MIRRORED or not path.name.startswith("test_"):
        return False
    file = PACKAGE / path.parent / path.name.removeprefix("test_")
    return not (file.exists() or file.with_suffix("").is_dir())


def test_no_test_imports_from_another():
    found = {path: [*imported_tests(file.read_text(encoding="utf-8"))] for path, file in FILES.items()}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize(
    "statement",
    [
        "from tests.theory.test_rules import noise_of",
        "from tests.theory import test_rules",
        "import tests.test_journal as journal",
        "def f():\n    from tests.conftest import torch_settings",
    ],
)
def test_an_import_from_a_test_is_found(statement):
    assert [*imported_tests(statement)]


def test_helpers_are_in_their_folder():
    assert not [path for path in FILES if is_out_of_place(path)]


@pytest.mark.parametrize("path", ["zoo.py", "distributed/worker.py", "helpers/test_zoo.py"])
def test_a_helper_elsewhere_is_found(path):
    assert is_out_of_place(PurePosixPath(path))


def test_tests_of_one_file_are_named_like_it():
    assert not [path for path in FILES if mirrors_nothing(path)]


@pytest.mark.parametrize(
    "path", ["callbacks/test_moments.py", "theory/test_momentum.py", "gradients/norms/test_scaler.py"]
)
def test_a_test_of_no_file_is_found(path):
    assert mirrors_nothing(PurePosixPath(path))
