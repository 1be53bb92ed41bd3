"""What is built: sdist and wheel hold what they should and nothing else, and the metadata agree with each other."""

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

import lightning_bsscale
from tests.helpers.oldest_versions import oldest

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from hatchling import build; print(getattr(build, sys.argv[1])(sys.argv[2]))"


def build(kind, source, target):
    """What pip and `build` call, without an environment of its own."""
    command = [sys.executable, "-c", BUILD, f"build_{kind}", str(target)]
    made = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return target / made.stdout.split()[-1]


def files_below(folder, *patterns):
    found = (path for pattern in patterns for path in folder.rglob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix() for path in found if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The folder that the sdist unpacks to."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", ROOT, folder)) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    return unpacked


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    """Made from the sdist, as a release is; its files by name."""
    with zipfile.ZipFile(build("wheel", sdist, tmp_path_factory.mktemp("wheel"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def metadata(wheel):
    return email.message_from_bytes(next(text for name, text in wheel.items() if name.endswith("/METADATA")))


def test_the_wheel_is_the_package_and_nothing_else(wheel):
    info = f"lightning_bsscale-{lightning_bsscale.__version__}.dist-info/"
    package = {f"lightning_bsscale/{name}" for name in files_below(ROOT / "lightning_bsscale", "*")}
    assert {name for name in wheel if not name.startswith(info)} == package
    assert {"lightning_bsscale/py.typed", "lightning_bsscale/report/style.css"} <= package
    assert {name.removeprefix(info) for name in wheel if name.startswith(info)} == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
    }
    assert wheel[info + "licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    assert wheel[info + "entry_points.txt"].decode().split("\n")[:2] == [
        "[console_scripts]",
        "bsscale = lightning_bsscale.cli:main",
    ]
    assert b"Root-Is-Purelib: true" in wheel[info + "WHEEL"]


def test_the_sdist_holds_what_tests_and_docs_need(sdist):
    for folder in ("tests", "examples", "benchmarks", "lightning_bsscale", ".github"):
        kept = files_below(ROOT / folder, "*.py", "*.yaml", "*.yml", "*.ipynb", "*.sbatch", "*.md", "*.css", "*.js")
        assert kept
        assert kept <= files_below(sdist / folder, "*")
    assert {"conf.py", "index.md", "demo.png", "policies.svg"} <= files_below(sdist / "docs", "*")
    top = {"LICENSE", "Makefile", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CITATION.cff"}
    assert top | {"constraints.txt", "pyproject.toml"} <= {path.name for path in sdist.iterdir()}
    assert not {".venv", "runs", "dist", ".git"} & {path.name for path in sdist.iterdir()}


def test_the_metadata(metadata):
    assert metadata["Name"] == "lightning-bsscale"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip().startswith("# lightning-bsscale")
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL"))
    assert urls.keys() == {"Repository", "Documentation", "Changelog", "Issues"}
    required = {re.match(r"[\w-]+", line)[0] for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    assert required == {"lightning", "torch", "torchmetrics", "numpy"}


def test_versions_of_python_are_said_alike(metadata):
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(metadata.get_all("Classifier")))
    assert metadata["Requires-Python"] == f">={named[0]}"
    said = f"{named[0]} to {named[-1]}"
    for page in ("README.md", "CONTRIBUTING.md", "Makefile"):
        assert set(re.findall(r"3\.\d+ to 3\.\d+", (ROOT / page).read_text(encoding="utf-8"))) <= {said}, page
    assert said in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_one_address(metadata):
    """Links to the repository begin with the address that the metadata name."""
    urls = dict(url.split(", ") for url in metadata.get_all("Project-URL"))
    address = urls["Repository"]
    assert all(url.startswith(address) for url in urls.values())
    pages = [ROOT / name for name in ("README.md", "SECURITY.md", "CITATION.cff", "CONTRIBUTING.md", "CHANGELOG.md")]
    for page in [*pages, *(ROOT / ".github").rglob("*.yml")]:
        links = re.findall(r"https://github\.com/[\w./-]*lightning[-_]bsscale[\w./-]*", page.read_text("utf-8"))
        assert not [link for link in links if not link.startswith(address)], page
    # What a link into the repository names is there.
    for page in [*pages, *(ROOT / ".github").rglob("*.yml")]:
        for target in re.findall(rf"{address}/(?:blob|raw)/main/([\w./-]+)", page.read_text("utf-8")):
            assert (ROOT / target).exists(), f"{page.name}: {target}"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == lightning_bsscale.__version__
    headings = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert headings[0] == "Unreleased"
    # Before the first release there is no other heading, and no date.
    assert headings[1:2] == ([citation["version"]] if "date-released" in citation else [])


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.stem
)
def test_forms_for_issues(path):
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.stem == "config":
        assert form.keys() == {"blank_issues_enabled", "contact_links"}
        assert all(link.keys() == {"name", "url", "about"} for link in form["contact_links"])
        return
    assert form.keys() == {"name", "description", "labels", "body"}
    ids = [field["id"] for field in form["body"]]
    assert len(set(ids)) == len(ids)
    for field in form["body"]:
        assert field["type"] in {"textarea", "input"}
        assert field["attributes"]["label"]
        assert field["attributes"].keys() <= {"label", "description", "placeholder", "render"}
    assert any(field.get("validations", {}).get("required") for field in form["body"])


def test_the_oldest_versions_are_those_declared():
    declared = [
        "lightning!=2.6.2,!=2.6.3,<3,>=2.6",
        "torch>=2.7",
        "jsonargparse[signatures]>=4.51; extra == 'cli'",
        "jsonargparse[signatures]>=4.51; extra == 'test'",
        'pytest-timeout>=2.3.1; extra == "test"',
        "ruff==0.17.5; extra == 'dev'",
        "sphinx>=7.3; extra == 'docs'",
    ]
    assert oldest(declared, left_out={"dev", "docs"}) == [
        "jsonargparse==4.51",
        "lightning==2.6",
        "pytest-timeout==2.3.1",
        "torch==2.7",
    ]


def test_every_dependency_has_a_floor(metadata):
    lines = metadata.get_all("Requires-Dist")
    floors = {line.split("==")[0] for line in oldest(lines)}
    exact = {"ruff", "mypy"}
    assert {re.match(r"[\w-]+", line)[0].lower() for line in lines} - exact == floors
