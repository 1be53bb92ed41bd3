"""The report as a page: its structure, its size, and that no journal can put anything into it but text."""

import itertools
import json
import math
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import lightning_bsscale
from lightning_bsscale.journal import Journal, run_header
from lightning_bsscale.report.drawing import BOTTOM
from lightning_bsscale.report.figure import axes_of
from lightning_bsscale.report.metric_picture import APART
from lightning_bsscale.report.noise_picture import noise_figure
from lightning_bsscale.report.page import MOST_RUNS, make_page
from lightning_bsscale.report.read_run import read_run
from lightning_bsscale.theory import run
from lightning_bsscale.theory.events import MetricEvent, WindowEvent
from lightning_bsscale.theory.losses import LossEvent
from lightning_bsscale.theory.policies import Decision, NoiseScalePolicy, Reason
from tests.helpers.read_page import pictures, read_page
from tests.helpers.records import DECISION, MEASUREMENT
from tests.helpers.simulated import noise_of
from tests.helpers.simulated_run import Program
from tests.helpers.written_runs import settings_of, write_run

ROOT = Path(__file__).parents[2]
LARGEST_PAGE = 500_000
NAMES = ("BatchSizeScaler", "NoiseScalePolicy", "Sqrt")


def page_of(*paths):
    page = make_page([read_run(path) for path in paths])
    assert len(page.encode()) < LARGEST_PAGE
    return page


def texts(root, name):
    return [one.text for one in root.all(name)]


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run") / "run.jsonl", 800)


def test_a_run_from_headline_to_settings(journal):
    root = read_page(page_of(journal))
    (headline,) = texts(root, "h1")
    assert headline.startswith("The batch grew from 8 to ")
    assert texts(root, "title")[0] == headline
    assert texts(root, "h2") == [
        "Noise scale and batch",
        "Learning rate",
        "Decisions",
        "What the batch bought, and what it cost",
        "Where the time went",
        "Settings to reproduce it",
    ]
    assert [one.attributes["value"] for one in root.all("input")][3:] == ["examples", "steps", "seconds"]
    assert len(pictures(root)) == 3 * 3 + 2
    for figure in root.all("figure"):
        assert len(list(figure.all("table"))) == 1
        assert len(list(figure.all("figcaption"))) == 1


def test_the_same_journal_gives_the_same_bytes(journal):
    assert page_of(journal) == page_of(journal)


def test_the_policy_of_the_page_allows_its_own_style_and_script_alone(journal):
    page = page_of(journal)
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', page)[1].replace("&#39;", "'")
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert all(re.fullmatch(r"'sha256-[A-Za-z0-9+/]{43}='", rules[name]) for name in ("style-src", "script-src"))
    assert "http:" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "https:" not in page


def test_the_settings_are_code_that_makes_the_callback_again(journal):
    (code,) = texts(read_page(page_of(journal)), "code")
    scaler = eval(code, {name: getattr(lightning_bsscale, name) for name in NAMES})
    settings = read_run(journal).numbers
    made = scaler._options
    assert (made.policy, made.measure_every) == (NoiseScalePolicy(min_steps=500), settings.measure_every)
    assert made.warmup == settings.warmup_examples / settings.total_examples
    assert made.memory == settings.memory / settings.total_examples
    assert made.max_batch_size == settings.limits.max_batch_size


def test_a_page_needs_neither_torch_nor_matplotlib(journal, tmp_path):
    heavy = ("torch", "lightning", "matplotlib", "numpy", "torchmetrics")
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({heavy})); from lightning_bsscale.cli import main; "
        f"sys.exit(main(['report', {str(journal)!r}, '-o', {str(tmp_path / 'page.html')!r}]))"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page_of(journal)


# ---------------------------------------------------------------- journals of every kind


@pytest.fixture
def started():
    """Begins journals, which are open until the test has ended."""
    opened = []

    def start(path, settings):
        state = run.begin_run(settings, settings.plan.begin(epoch_batches=10, epoch_examples=40), epoch=0)
        opened.append(Journal(path, run_header(settings, state)))
        return opened[-1]

    yield start
    for journal in opened:
        journal.close()


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def written(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def with_header(path, journal, **changes):
    """A journal with other values in parts of its header."""
    header, *lines = lines_of(journal)
    for part, values in changes.items():
        header[part] |= values
    return written(path, [header, *lines])


def test_an_interrupted_run(journal, tmp_path):
    text = journal.read_text().splitlines(keepends=True)
    cut = tmp_path / "cut.jsonl"
    cut.write_text("".join(text[: len(text) // 2]) + text[-1][:40])
    (warned,) = (one for one in read_page(page_of(cut)).all("div") if one.attributes.get("class") == "warnings")
    assert "no end record" in warned.text
    assert "cut while it was written" in warned.text


def test_a_damaged_line_ends_what_is_shown(journal, tmp_path):
    text = journal.read_text().splitlines(keepends=True)
    text[100] = "{nonsense\n"
    damaged = tmp_path / "damaged.jsonl"
    damaged.write_text("".join(text))
    record = read_run(damaged)
    assert 0 < record.now.steps < read_run(journal).now.steps
    assert "line 101 is no JSON" in page_of(damaged)


def test_a_file_without_settings_is_refused(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text('{"event":"header","schema":2,"settings":{}}\n')
    with pytest.raises(ValueError, match="holds no settings of a run"):
        read_run(path)


def test_an_empty_run_says_why_it_is_empty(started, tmp_path):
    started(tmp_path / "empty.jsonl", settings_of(10))
    root = read_page(page_of(tmp_path / "empty.jsonl"))
    assert not pictures(root)
    assert texts(root, "h1") == ["Nothing was trained."]
    assert "before its first optimizer step" in root.text
    assert "The policy was not asked" in root.text


def test_a_monitor_of_several_ranks_has_no_decisions(started, tmp_path):
    settings = Program(ranks=4, decides=False).settings
    journal = started(tmp_path / "monitor.jsonl", settings)
    for index in range(8):
        journal.write(WindowEvent(start=index, length=1))
    root = read_page(page_of(journal.path))
    assert "A monitor measures and changes nothing" in root.text
    assert "4 ranks" in root.text
    assert read_run(journal.path).now.examples == 8 * settings.now.granularity


def decided(seen, before, after, reason, code=None):
    situation = replace(DECISION.situation, batch_size=before, examples_seen=float(seen), optimizer_steps=seen // 8)
    decision = Decision(batch_size=after, reason=reason, code=code, bound=2.0 * before, target=float(after))
    return replace(DECISION, situation=situation, decision=decision, batch_size=after, lr_scale=after / 8)


@pytest.mark.parametrize("share_of_changes", [0.0, 0.05, 1.0])
def test_a_thousand_decisions_stay_small(started, tmp_path, share_of_changes):
    dice, batch = random.Random(0), 8
    journal = started(tmp_path / "long.jsonl", settings_of(10_000))
    changes = 0
    for index in range(1000):
        journal.write(WindowEvent(start=index, length=batch // 4))
        after = 24 - batch if dice.random() < share_of_changes else batch
        changes += after != batch
        code = "grow" if after != batch else dice.choice(["unresolved", "close_enough"])
        journal.write(decided(8 * (index + 1), batch, after, f"{code} {index}", code))
        batch = after
    page = page_of(journal.path)
    root = read_page(page)
    if changes:
        assert f"The batch changed {changes:,} times." in root.text
        opened = [one for one in root.all("table") if one.all("caption") and "first and the last 6" in one.text]
        assert len(list(next(opened[0].all("tbody")).all("tr"))) == 12
    else:
        assert "The batch never changed." in root.text
    if share_of_changes < 1:
        why = next(one for one in root.all("figure") if one.attributes["id"] == "run-holds-figure")
        assert len(list(next(why.all("tbody")).all("tr"))) == 2
    assert len(page.encode()) < 250_000


def test_holds_are_counted_until_the_next_decision(started, tmp_path):
    journal = started(tmp_path / "holds.jsonl", settings_of(100))
    for seen, before, after, code in ((8, 8, 8, "a"), (32, 8, 8, "b"), (40, 8, 16, "grow"), (56, 16, 16, "a")):
        journal.write(WindowEvent(start=seen, length=2))
        journal.write(decided(seen, before, after, f"hold: {code}", code))
    for index in range(3):
        journal.write(WindowEvent(start=60 + index, length=2))
    record = read_run(journal.path)
    assert {code: (hold.runs, hold.examples) for code, hold in record.holds.items()} == {"a": (2, 48.0), "b": (1, 8.0)}
    (change,) = record.changes.items
    assert {code: hold.examples for code, hold in change.holds.items()} == {"a": 24.0, "b": 8.0}


def test_several_runs_are_compared(journal, tmp_path):
    fixed = write_run(tmp_path / "fixed.jsonl", 800, policy=Held())
    root = read_page(page_of(journal, fixed))
    assert texts(root, "h1") == ["2 runs compared"]
    assert len([one for one in pictures(root) if one.attributes["id"] == "front-picture"]) == 1
    assert {link.attributes["href"] for link in root.all("a")} == {"#run1-headline", "#run2-headline"}


def rows_of(root, caption):
    """The cells of the table with this caption, without its head."""
    (found,) = (one for one in root.all("table") if texts(one, "caption") == [caption])
    return [texts(row, "td") for row in next(found.all("tbody")).all("tr")]


def test_a_comparison_begins_with_who_ended_where(started, tmp_path):
    """Of a dry run it names the batch that was trained with; a training's own loss is not compared."""
    paths = []
    for name, acts, length, loss in (("fixed", False, 2, 0.5), ("grown", True, 4, 0.6)):
        journal = started(tmp_path / f"{name}.jsonl", replace(settings_of(100), acts=acts))
        journal.write(WindowEvent(start=0, length=2))
        journal.write(decided(8, 8, 16, "grow: enough", "grow"))
        for index in range(16 // length):
            journal.write(WindowEvent(start=index, length=length))
            journal.write(MetricEvent(name="val_loss", value=loss))
            journal.write(MetricEvent(name="a_train_loss", value=0.1))
        paths.append(journal.path)
    root = read_page(page_of(*paths))
    assert (
        "Run 1 ended with the smallest val_loss, 0.5, after 9 optimizer steps. "
        "Run 2 made the fewest, 5, and ended with 0.6."
    ) in texts(root, "p")[0]
    assert rows_of(root, "The runs in numbers") == [
        ["1", "8", "9", "72", "unknown", "-", "0.5", "fixed.jsonl"],
        ["2", "8 → 16", "5", "72", "unknown", "-", "0.6", "grown.jsonl"],
    ]
    headings = texts(root, "h2")
    assert headings.index("val_loss of each run") < headings.index("a_train_loss of each run")


def test_the_numbers_of_lines_that_end_together_are_apart(started, tmp_path):
    paths = []
    for index in range(MOST_RUNS):
        journal = started(tmp_path / f"{index}.jsonl", settings_of(100))
        for place in range(4):
            journal.write(WindowEvent(start=place, length=2))
            journal.write(MetricEvent(name="val_loss", value=1.0 if index else 1.0 + place))
        paths.append(journal.path)
    root = read_page(page_of(*paths))
    (picture,) = (one for one in pictures(root) if one.attributes["id"] == "metric-0-steps")
    numbers = [one for one in picture.all("text") if one.attributes.get("class") == "run-name"]
    assert {one.text for one in numbers} == {str(index + 1) for index in range(MOST_RUNS)}
    heights = sorted(float(one.attributes["y"]) for one in numbers)
    assert all(after - before >= APART - 0.1 for before, after in itertools.pairwise(heights))
    assert BOTTOM >= heights[-1] > heights[0] > 0


def test_a_single_run_that_grew_says_what_to_compare_it_with(journal, tmp_path):
    said = "To see whether the loss kept up, train once more with dry_run=True"
    held = write_run(tmp_path / "held.jsonl", 400, policy=Held())
    dry = with_header(tmp_path / "dry.jsonl", journal, settings={"acts": False})
    assert read_run(dry).changes.count
    assert said in page_of(journal)
    assert not any(said in page for page in (page_of(held), page_of(dry), page_of(journal, held)))


def test_a_bar_of_holds_has_the_reason_without_the_number_of_the_first(started, tmp_path):
    journal = started(tmp_path / "holds.jsonl", settings_of(100))
    for index, code in enumerate((Reason.FEW_STEPS, Reason.COOLING_DOWN, Reason.FEW_STEPS, Reason.COOLING_DOWN)):
        journal.write(decided(8 * index, 8, 8, code.with_number(f"at most {index} now"), code.code))
        journal.write(WindowEvent(start=index, length=2))
    page = page_of(journal.path)
    root = read_page(page)
    (bars,) = (one for one in pictures(root) if one.attributes["id"] == "run-holds-bars")
    assert sorted(texts(bars, "text")) == [
        "50 %: a larger batch would leave too few steps",
        "50 %: cooling down after the last change",
    ]
    assert "now" not in bars.text


def test_what_is_hardly_known_has_no_picture_and_no_average(started, tmp_path):
    """One resolved window of many is no line, and says nothing of the run."""
    for resolved, drawn in ((2, False), (30, True)):
        journal = started(tmp_path / f"{resolved}.jsonl", settings_of(200))
        for index in range(40):
            noise = noise_of(50.0, spread=0.1 if index < resolved else 5.0)
            assert noise.resolved is (index < resolved)
            journal.write(WindowEvent(start=index, length=2))
            journal.write(replace(MEASUREMENT, noise=noise, examples_seen=8 * (index + 1), optimizer_steps=index + 1))
        page = page_of(journal.path)
        assert ("worth of an example, on average" in page) is drawn
        assert ("What the batch bought" in page) is drawn


def test_what_is_counted_is_named_in_what_one_is_worth(journal, tmp_path):
    page = page_of(with_header(tmp_path / "run.jsonl", journal, profile={"unit": "tokens"}))
    assert "worth of a token, on average" in page
    assert "worth of an example" not in page


class Held:
    def decide(self, situation, limits):
        return Decision(batch_size=situation.batch_size, reason="hold: by hand")


def test_losses_are_compared_where_the_journals_have_them(started, tmp_path):
    paths = []
    for name, slope in (("one", 1.0), ("two", 0.5)):
        journal = started(tmp_path / f"{name}.jsonl", settings_of(100))
        for index in range(20):
            journal.write(WindowEvent(start=index, length=2))
            journal.write(MetricEvent(name="val_loss", value=3.0 - slope * index / 10))
        paths.append(journal.path)
    root = read_page(page_of(*paths))
    assert "val_loss of each run" in texts(root, "h2")
    assert {f"metric-0-{axis}" for axis in ("examples", "steps")} <= {one.attributes["id"] for one in pictures(root)}
    assert "val_loss" in texts(read_page(page_of(paths[0])), "h2")


def test_logged_losses_are_drawn_where_they_were_logged(started, tmp_path):
    """A loss may stand some steps after its place; one that the policy watches is drawn once."""
    journal = started(tmp_path / "run.jsonl", settings_of(100))
    for index in range(20):
        journal.write(WindowEvent(start=index, length=2, took=0.5))
        journal.write(LossEvent(name="train_loss", value=1.0, examples_seen=4.0 * index, optimizer_steps=index))
        journal.write(MetricEvent(name="val_loss", value=2.0))
        journal.write(LossEvent(name="val_loss", value=3.0, examples_seen=4.0 * index, optimizer_steps=index))
    run = read_run(journal.path)
    places = [(place.examples, place.steps) for place, _ in run.metrics["train_loss"].items]
    assert places == [(4.0 * index, index) for index in range(20)]
    assert [place.seconds for place, _ in run.metrics["train_loss"].items][1:] == [
        0.5 * index for index in range(1, 20)
    ]
    assert {value for _, value in run.metrics["val_loss"].items} == {2.0}
    assert {"train_loss", "val_loss"} <= set(texts(read_page(page_of(journal.path)), "h2"))


def test_a_target_is_drawn_as_its_share_of_the_bound(tmp_path):
    pages = {}
    for ratio in (1.0, 0.5):
        path = write_run(tmp_path / f"{ratio}.jsonl", 400, policy=NoiseScalePolicy(target_ratio=ratio, confidence=0.9))
        pages[ratio] = read_page(page_of(path))
    assert "target: 0.5 × the lower bound that decides (90 %)" in pages[0.5].text
    assert "target: " not in next(pages[1.0].all("figure")).text
    first = read_run(tmp_path / "0.5.jsonl").changes.items[0].record
    assert first.decision.target == pytest.approx(0.5 * first.decision.bound)


def limits_of(path):
    """The paths of the limit in the pictures of a report on each first axis, and its entries in legends."""
    root = read_page(page_of(path))
    paths = [one for one in root.all("path") if one.attributes.get("class") == "limit"]
    return [one for one in paths if len(one.attributes["d"]) > 10], root.text.count("largest batch that min_steps=")


def test_the_limit_by_min_steps_is_drawn_on_every_axis(tmp_path):
    path = write_run(tmp_path / "a.jsonl", 800, policy=NoiseScalePolicy(min_steps=100))
    drawn, entries = limits_of(path)
    assert (len(drawn), entries) == (3, 1)
    record = read_run(path)
    figure = noise_figure(record, "noise", 300, axes_of([record]))
    assert "A thin dashed line is the most that min_steps allows." in figure.pictures[0]
    # It begins at N / (2 M) = 16 examples, above the first batch; the axis is logarithmic.
    (batch, *_) = [one for one in read_page(page_of(path)).all("path") if one.attributes.get("class") == "batch"][1:]
    begin, start = (re.match(r"M([\d.]+) ([\d.]+)", one.attributes["d"]).groups() for one in (drawn[0], batch))
    assert begin[0] == start[0]
    assert record.changes.items[0].record.situation.batch_size == 8
    assert float(begin[1]) < float(start[1])


def test_a_limit_that_is_far_away_or_none_is_not_drawn(tmp_path):
    pictures_of = {}
    for steps in (0, 1):
        path = write_run(tmp_path / f"{steps}.jsonl", 60_00 if steps else 800, policy=NoiseScalePolicy(min_steps=steps))
        whole = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(whole[: len(whole) // 2]))  # before the budget's end, where any limit is passed
        pictures_of[steps] = limits_of(path)
    assert pictures_of == {0: ([], 0), 1: ([], 0)}


def test_the_most_runs_make_a_page_of_the_allowed_size(tmp_path):
    paths = [write_run(tmp_path / f"{index}.jsonl", 1500) for index in range(MOST_RUNS)]
    read_page(page_of(*paths))
    with pytest.raises(ValueError, match=f"1 to {MOST_RUNS} runs, got {MOST_RUNS + 1}"):
        make_page([read_run(paths[0])] * (MOST_RUNS + 1))


def test_long_reasons_do_not_make_a_page_too_large(started, tmp_path):
    journal = started(tmp_path / "long.jsonl", settings_of(10_000))
    for index in range(400):
        before, after = (8, 16) if index % 2 == 0 else (16, 8)
        journal.write(WindowEvent(start=index, length=before // 4))
        journal.write(decided(8 * (index + 1), before, after, f"{index} " + 400 * "'", f"code {index}"))
    read_page(page_of(*[journal.path] * MOST_RUNS))


# ---------------------------------------------------------------- hostile journals

EVIL = [
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "\"' onload=alert(1) x='",
    "<!-- --><![CDATA[ <?php ",
    "\u202eevil\u2066\u200f\x00\x1b[31m\ud800\u2028",
    "&lt;b&gt; &amp; &#x3c;script&#62;",
    "</title></style></svg></textarea><svg onload=alert(1)>",
    "x" * 5000,
]
SEEN = re.compile("[\u202e\u2066\u200f\x00\x1b\ud800\u2028]")


def attacked(value, evil, dice, keys=()):
    """Replace every text of a record that the reader accepts."""
    if isinstance(value, dict):
        return {key: attacked(item, evil, dice, (*keys, key)) for key, item in value.items()}
    if isinstance(value, list):
        return [attacked(item, evil, dice, keys) for item in value]
    free = isinstance(value, str) and value not in {"inf", "-inf", "nan"} and keys[-1] != "event"
    return evil if free else value


@pytest.mark.parametrize("evil", EVIL, ids=range(len(EVIL)))
def test_texts_of_a_journal_stay_texts(journal, tmp_path, evil):
    lines = [attacked(line, evil, random.Random(0)) for line in lines_of(journal)]
    lines[0]["profile"] = {"unit": evil}
    lines[0]["continues"] = {"path": evil, "id": evil}
    lines[0]["policy"]["options"] = {evil: evil, "more": [evil, {"class": evil, "options": None}]}
    lines[0]["schedule"] = {"class": evil, "options": {evil: 1}}
    lines[3:3] = [{"event": "metric", "name": evil, "value": 1.0}] * 3
    name = "<script>'\"&.jsonl"
    path = written(tmp_path / name, lines)
    for page in (page_of(path), page_of(path, path)):
        read_page(page)  # which knows every element and attribute that we write
        page.encode()
        assert not SEEN.search(page)
        assert name not in page


def test_settings_of_any_kind_are_shown(journal, tmp_path):
    for thing in (None, 3, "x", [], {}, {"class": [1]}, {"class": {}, "options": 5}, {"options": {"a": {"b": []}}}):
        lines = lines_of(journal)[:50]
        lines[0].update(policy=thing, lr_rule=thing, schedule=thing, profile=thing, continues=thing, id=thing)
        read_page(page_of(written(tmp_path / "any.jsonl", lines)))


EXTREMES = [0, 1e300, 1e308, -1e308, 5e-324, "inf", "-inf", "nan", 10**307, -1.0, 1e-300]
COUNTS = [0, 1, 10**18, 10**307]


def disturbed(value, dice, chance, floats):
    if isinstance(value, dict):
        return {key: disturbed(item, dice, chance, floats) for key, item in value.items()}
    if isinstance(value, list):
        return [disturbed(item, dice, chance, floats) for item in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or dice.random() > chance:
        return value
    return dice.choice(EXTREMES if isinstance(value, float) and floats else COUNTS)


@pytest.mark.parametrize("seed", range(40))
def test_numbers_of_a_journal_may_be_anything(journal, tmp_path, seed):
    dice = random.Random(seed)
    chance = dice.choice([0.001, 0.02, 0.3])
    first, *lines = lines_of(journal)
    if seed % 2:
        first = {**disturbed(first, dice, 0.05, floats=True), "schema": first["schema"]}
    path = written(tmp_path / "n.jsonl", [first, *(disturbed(line, dice, chance, floats=True) for line in lines)])
    try:
        record = read_run(path)
    except ValueError as error:
        assert "holds no settings" in str(error)  # noqa: PT017
        return
    page = make_page([record])
    read_page(page)
    for number in re.findall(r'(?: d| x1?| y1?| width| height| cx| cy)="([^"]*)"', page):
        assert "nan" not in number
        assert "inf" not in number
    assert math.isfinite(len(page))
