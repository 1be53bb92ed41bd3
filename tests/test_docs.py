"""README: its code runs, its tables name what exists, its pictures are there."""

import inspect
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import lightning_bsscale
from lightning_bsscale import HoldIfWorse, Milestones
from lightning_bsscale.cli import main
from lightning_bsscale.theory.hyperparameters import scaled_values
from lightning_bsscale.theory.policies import POLICIES, policy_classes
from tests.helpers.training import QUIET, Regression, regression_loader

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


HOST = r"https://(?:github\.com|raw\.githubusercontent\.com)/lightning-bsscale/lightning-bsscale"
OWN_LINK = rf"{HOST}/(?:blob/|tree/)?main/(.+)"


def blocks(language):
    return [text for found, text in BLOCKS if found == language]


def test_python_blocks_run_in_order(capsys, monkeypatch):
    import lightning as L

    trainer_class = L.Trainer
    # The README's own lines, on a small problem and without files.
    monkeypatch.setattr(L, "Trainer", lambda **settings: trainer_class(**{**settings, **QUIET, "max_epochs": 2}))
    names = {"model": Regression(), "train_loader": regression_loader(400)}
    code = blocks("python")
    assert len(code) >= 4
    for number, text in enumerate(code):
        names["model"] = Regression()
        exec(compile(text, f"README block {number}", "exec"), names)
    printed = capsys.readouterr().out
    assert "noise scale" in printed
    assert "[90 %]" in printed
    assert "NoiseScale(" in printed
    assert "0.002" in printed


def test_yaml_blocks_make_the_callback():
    from tests.helpers.lightning_cli import callbacks_from

    (text,) = blocks("yaml")
    config = yaml.safe_load(text)
    (scaler,) = callbacks_from(config["trainer"]["callbacks"])
    assert scaler._options.max_batch_size == 512
    assert scaler._options.policy.target_ratio == 0.25


def test_the_page_of_policies():
    """Its code makes policies, its YAML a callback, and it has a section for each policy of the package."""
    from tests.helpers.lightning_cli import callbacks_from

    page = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8")
    code = dict.fromkeys(re.findall(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL))
    assert len(code) >= 4
    names = {}
    for number, text in enumerate(code):
        exec(compile(text, f"policies.md, block {number}", "exec"), names)
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    (scaler,) = callbacks_from(yaml.safe_load(text)["trainer"]["callbacks"])
    assert scaler._options.policy == HoldIfWorse(Milestones({0.3: 2, 0.6: 4}), "val_loss")
    sections = "\n".join(re.findall(r"^## (.+)", page, flags=re.MULTILINE))
    assert {f'"{name}"' for name in POLICIES} <= set(re.findall(r'"\w+"', sections))
    assert {cls.__name__ for cls in policy_classes()} <= set(re.findall(r"`(\w+)", sections))
    for section in page.split("\n## ")[1:]:
        assert "**Source.**" in section, section
        assert "**Not for**" in section, section


@pytest.mark.min_steps
def test_the_picture_of_policies_is_up_to_date():
    drawing = runpy.run_path(str(ROOT / "docs" / "draw_policies.py"))
    drawn = (ROOT / "docs" / "policies.svg").read_text(encoding="utf-8")
    for name, policy in drawing["PANELS"].items():
        assert name in drawn
        share = f"{drawing['steps_of'](*drawing['walk'](policy)):.0%} of the steps"
        assert share in drawn, f"{name}: {share}; run python docs/draw_policies.py"


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("bash")), flags=re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_commands_of_a_page_print_what_it_says(capsys):
    page = (ROOT / "docs" / "plan.md").read_text(encoding="utf-8")
    shown = re.findall(
        r"^```bash\npython -m lightning_bsscale (.*)\n```\n\n```text\n(.*?)^```$", page, flags=re.M | re.S
    )
    assert shown
    for words, expected in shown:
        assert main(words.split()) == 0
        assert capsys.readouterr().out == expected


def test_the_rule_of_ones_own_works():
    page = "also_scale.md"
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    names = {name: getattr(lightning_bsscale, name) for name in lightning_bsscale.__all__}
    for code in re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S):
        exec(compile(code, page, "exec"), names)
    (made,) = lightning_bsscale.BatchSizeScaler(also_scale=names["Epsilon"]())._options.also_scale_for(None)
    assert scaled_values(made, {"eps": 1e-8}, 4.0) == {"eps": 5e-9}


@pytest.mark.min_steps
@pytest.mark.parametrize("name", ["BatchSizeScaler", "NoiseScalePolicy", "GradientNoiseScaleMonitor"])
def test_options_table_is_the_constructor(name):
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8").split("## All options")[1]
    table = page.split(f"`{name}(...)`")[1].split("(...)`")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| `(.+?)` \|", table, flags=re.MULTILINE))
    parameters = inspect.signature(getattr(lightning_bsscale, name)).parameters
    assert rows == {key: repr(p.default).replace("'", '"') for key, p in parameters.items()}


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/decisions.md", "docs/plan.md", "docs/also_scale.md"]
)
def test_links_lead_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        own = re.fullmatch(OWN_LINK, target)
        if own:  # PyPI shows the README, where a relative link leads nowhere
            assert (ROOT / own[1]).exists(), target
        elif not target.startswith("http"):
            assert page != "README.md", target
            assert ((ROOT / page).parent / target).exists(), target


def test_figures_are_those_of_the_benchmarks():
    made = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr


def test_the_picture_of_the_package_is_up_to_date():
    drawing = runpy.run_path(str(ROOT / "docs" / "draw_architecture.py"))
    drawn = drawing["drawn_table"]((ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8"))
    assert drawn == drawing["table"](), "run python docs/draw_architecture.py"


def test_the_picture_follows_the_imports(tmp_path):
    drawing = runpy.run_path(str(ROOT / "docs" / "draw_architecture.py"))
    package = tmp_path / "lightning_bsscale"
    (package / "theory" / "rules").mkdir(parents=True)
    (package / "theory" / "rules" / "linear.py").touch()
    (package / "new.py").write_text("def f():\n    from lightning_bsscale.theory.rules import linear\n")
    drawing["table"].__globals__["ROOT"] = tmp_path
    expected = {"files": {"new": ["new.py"], "theory": ["theory/rules/linear.py"]}, "imports": {"new -> theory": 1}}
    assert drawing["table"]() == expected
    (package / "theory" / "rules" / "linear.py").write_text("import lightning_bsscale.new\n")
    with pytest.raises(SystemExit, match="in a circle"):
        drawing["draw"](drawing["table"]())


def test_readme_has_no_placeholder():
    assert not re.search(r"[A-Z]+_(OUTPUT|TABLE)", README)
