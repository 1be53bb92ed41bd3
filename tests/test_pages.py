"""The pages that teach: their code runs, their commands print what they say, their links and pictures are right."""

import io
import re
import runpy
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import yaml
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler
from lightning_bsscale.cli import main
from tests.helpers.lightning_cli import callbacks_from
from tests.helpers.training import QUIET, Regression, Scripted, fit, regression_loader

DOCS = Path(__file__).parents[1] / "docs"
TAUGHT = [
    "index",
    "quick_start",
    "noise_scale",
    "large_runs",
    "questions",
    "options",
    "how_to",
    "explanation",
    "glossary",
]
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
HERE = {"devices", "strategy", "accelerator"}  # settings of a Trainer for which this machine may have too little


def read(name):
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


class Transformer(torch.nn.Module):
    """Takes a dict and returns an output with a loss, as those of transformers do."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 2)

    def forward(self, input_ids, labels):
        return SimpleNamespace(loss=torch.nn.functional.mse_loss(self.layer(input_ids), labels))


class Model(Regression):
    def forward(self, inputs):
        return self.net(inputs)


def what_is_yours():
    """What the blocks of a page take as given."""
    data = regression_loader(64).dataset
    experiment = SimpleNamespace(defined=[], define_metric=lambda *names, **keys: experiment.defined.append(keys))
    return {
        "model": Model(),
        "train_loader": regression_loader(64),
        "transformer": Transformer(),
        "tokenized_loader": DataLoader([dict(input_ids=x, labels=y) for x, y in data], batch_size=4),
        "wandb_logger": SimpleNamespace(experiment=experiment),
    }


def run_page(name, monkeypatch, folder):
    """Run the page's Python in order, on small problems; return its names and what each block printed."""
    monkeypatch.chdir(folder)
    trainer_class = L.Trainer

    def small(**settings):
        kept = {key: value for key, value in settings.items() if key not in HERE}
        return trainer_class(**{**kept, **QUIET, "max_epochs": 1, "limit_train_batches": 20})

    monkeypatch.setattr(L, "Trainer", small)
    names, printed = {"torch": torch, **what_is_yours()}, []
    if name == "questions":  # it begins after a training
        names["scaler"] = BatchSizeScaler()
        small(callbacks=[names["scaler"]]).fit(names["model"], names["train_loader"])
    for number, (language, text) in enumerate(FENCE.findall(read(name))):
        if language == "python":
            with redirect_stdout(io.StringIO()) as said:
                exec(compile(text, f"{name}.md, block {number}", "exec"), names)
            printed.append(said.getvalue())
    return names, printed


@pytest.mark.parametrize("name", [name for name in TAUGHT if name not in {"glossary"}])
def test_its_python_runs(name, monkeypatch, tmp_path):
    names, printed = run_page(name, monkeypatch, tmp_path)
    if name == "quick_start":
        assert "The batch" in printed[0]
        assert names["trainer"].global_step > 0
    if name == "noise_scale":
        (shown,) = (text for language, text in FENCE.findall(read(name)) if language == "text")
        assert printed[0] == shown
        assert "NoiseScale(" in printed[1]
    if name == "options":
        (shown,) = (text for language, text in FENCE.findall(read(name)) if language == "text")
        assert shown in printed
    if name == "large_runs":
        assert (tmp_path / "small.jsonl").is_file()
    if name == "explanation":
        once, twice = map(float, printed[0].split())
        assert once == pytest.approx(twice)
    if name == "how_to":
        assert names["wandb_logger"].experiment.defined == [{"step_metric": "bsscale/examples_seen"}]
        assert "bsscale/examples_seen" in names["trainer"].callback_metrics
        assert names["ema"].planned == names["ema"].made > 0
        assert names["metric"].compute() > 0


def test_how_to_step_a_scheduler_with_a_number(monkeypatch, tmp_path):
    """timm's way: `step_update` gets each step of the plan once, although fewer are made."""
    names, _ = run_page("how_to", monkeypatch, tmp_path)
    monkeypatch.undo()
    stepped = []

    class Scheduler:
        optimizer = None

        def step_update(self, num_updates):
            stepped.append(num_updates)

        def state_dict(self):
            return {}

        load_state_dict = step = state_dict

    class Module(names["WithTimm"]):
        def configure_optimizers(self):
            scheduler = Scheduler()
            scheduler.optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
            return [scheduler.optimizer], [{"scheduler": scheduler, "interval": "step"}]

    scaler = BatchSizeScaler(policy=Scripted([8, 16]), warmup=0, max_micro_batch_size=None)
    trainer = fit(Module(Transformer()), names["tokenized_loader"], [scaler], max_epochs=2)
    assert trainer.global_step < 32
    assert stepped == list(range(1, 33))


def test_the_average_that_counts_planned_steps(monkeypatch, tmp_path):
    """After all steps the start is forgotten as if every planned step had been made."""
    names, _ = run_page("how_to", monkeypatch, tmp_path)
    monkeypatch.undo()
    scaler = BatchSizeScaler(policy=Scripted([8, 16]), warmup=0, max_micro_batch_size=None)
    ema = names["Ema"](scaler, decay=0.9)
    trainer = fit(Model(), regression_loader(64), [scaler, ema], max_epochs=2)
    assert trainer.global_step < 32 == scaler.planned_steps == ema.planned
    assert ema.made == trainer.global_step


@pytest.mark.parametrize("name", TAUGHT)
def test_its_yaml_makes_the_callback(name):
    for language, text in FENCE.findall(read(name)):
        if language == "yaml":
            (scaler,) = callbacks_from(yaml.safe_load(text)["trainer"]["callbacks"])
            assert scaler._options.policy.target_ratio == 0.5


def test_its_commands_print_what_they_say(capsys):
    shown = re.findall(
        r"^```bash\npython -m lightning_bsscale (.*)\n```\n\n```text\n(.*?)^```$", read("large_runs"), flags=re.M | re.S
    )
    assert shown
    for words, expected in shown:
        assert main(words.split()) == 0
        assert capsys.readouterr().out == expected


def anchors(text):
    """The anchors of a page's headings, as myst makes them."""
    headings = re.findall(r"^#{1,3} (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), flags=re.M)
    plain = (re.sub(r"[`*]|\[|\]\(.*?\)", "", one).strip().lower() for one in headings)
    return {re.sub(r"[^\w\- ]", "", one).replace(" ", "-") for one in plain}


@pytest.mark.parametrize("name", sorted(path.stem for path in DOCS.glob("*.md")))
def test_its_links_lead_somewhere(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", read(name))):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = DOCS / (path or f"{name}.md")
        assert file.exists(), target
        if anchor and file.suffix == ".md" and not anchor.startswith("lightning_bsscale."):  # Sphinx checks those
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


def test_changelog_and_citation_are_the_files_themselves():
    """Nothing of them is written twice, and the links of an included page lead to pages of the documentation."""
    for name, included in (("changelog", "CHANGELOG.md"), ("citation", "CITATION.cff")):
        found = re.findall(r"^```\{(?:include|literalinclude)\} (\S+)$", read(name), flags=re.MULTILINE)
        assert [(DOCS / path).resolve() for path in found] == [DOCS.parent / included]
        assert (DOCS.parent / included).is_file()
    (folder,) = re.findall(r"^:relative-docs: (\S+)$", read("changelog"), flags=re.MULTILINE)
    text = (DOCS.parent / "CHANGELOG.md").read_text(encoding="utf-8")
    links = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if not target.startswith("http")]
    assert links
    for target in links:
        path, _, anchor = target.partition("#")
        assert path.startswith(folder), target
        page = (DOCS / path.removeprefix(folder)).read_text(encoding="utf-8")
        assert not anchor or anchor in anchors(page), target


def test_every_page_is_in_the_contents():
    listed = [
        line
        for text in re.findall(r"^```\{toctree\}\n(.*?)^```$", read("index"), flags=re.M | re.S)
        for line in text.split()
    ]
    pages = {path.stem for path in DOCS.glob("*.md")} - {"index"}
    assert sorted(name for name in listed if name in pages) == sorted(pages)


def test_the_pictures_of_the_noise_scale_are_up_to_date():
    drawing = runpy.run_path(str(DOCS / "draw_noise_scale.py"))
    arrows, worth = ((DOCS / f"noise_scale_{name}.svg").read_text(encoding="utf-8") for name in ("arrows", "worth"))
    for line in "\n".join(drawing["labels"]()).split("\n"):
        assert f">{line}</text>" in arrows, f"{line}: run python docs/draw_noise_scale.py"
    for line in drawing["rows"]():
        assert f">{line}</text>" in worth, f"{line}: run python docs/draw_noise_scale.py"


def test_the_picture_and_the_table_of_rules_are_up_to_date():
    drawing = runpy.run_path(str(DOCS / "draw_rules.py"))
    drawn, page = (DOCS / "rules.svg").read_text(encoding="utf-8"), read("explanation")
    for name, row in drawing["table"]().items():
        assert f">{name} ({row.replace(' | ', ', ')})</text>" in drawn, f"{name}: run python docs/draw_rules.py"
        assert re.search(rf"^\| `{name}` \| .* \| {re.escape(row)} \|$", page, flags=re.MULTILINE), name
