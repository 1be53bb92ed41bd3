"""The command `probe`: from a task or a config to one sentence, a table, a picture and a JSON file."""

import contextlib
import io
import json
import re
from pathlib import Path

import pytest

from lightning_bsscale import NoiseScalePolicy
from lightning_bsscale.cli import main
from tests.helpers.probed_task import CONFIG, TASK

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Runs the command in a folder with a task and a config; returns status, output and errors."""
    (tmp_path / "probed_task.py").write_text(TASK)
    (tmp_path / "config.yaml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def run(*words, name="probe"):
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            status = main([name, *words])
        return status, out.getvalue(), errors.getvalue()

    return run


SHORT = ("--offsets", "3", "--multiples", "1", "2", "4", "--examples", "32", "--lr-rule", "linear")


@pytest.mark.parametrize(
    "source", [("--task", "probed_task:task"), ("--config", "config.yaml")], ids=["task", "config"]
)
def test_one_sentence_one_table_one_picture_one_json(command, source):
    status, out, errors = command(*source, *SHORT)
    assert status == 0, errors
    found = json.loads(Path("probe.json").read_text())
    assert set(found["critical_batch_ratio"]) == {"value", "low", "high"}
    assert [row["batch_size"] for row in found["branches"]] == [4, 8, 16]
    assert found["offsets"] == 3
    assert re.match(r"(The critical batch is about|Not resolved).*noise scale", out)
    assert "worth of an example" in out.splitlines()[2]
    assert Path("probe.png").stat().st_size > 5000
    assert "forecast: 3 offsets of 3 branches over 32 examples each" in errors
    status, again, errors = command(*source, *SHORT, "--json")
    assert json.loads(again) == found


@pytest.mark.parametrize(
    ("swing", "noise_is_known"),
    [(1e-5, True), (9.5e-4, True), (1e-5, False)],
    ids=["resolved", "open end", "open noise"],
)
def test_the_policy_and_the_plan_read_what_was_written(command, swing, noise_is_known):
    words = ("--task", "probed_task:task", *SHORT)
    assert command(*words)[0] == 0
    # The same command goes on from its file; here the branches had the losses of a critical batch of 11.
    lines = [json.loads(line) for line in Path("probe.jsonl").read_text().splitlines()]
    values = {name: value for line in lines for name, value in line.get("value", {}).items()}
    values["noise_scale"]["resolved"] = noise_is_known
    for line in lines:
        if "branch" in line:
            offset, size = line["branch"]
            line["loss"] = values["start_loss"] - 1 / (1 + size / 11) + swing * (offset - 1) * size
            line["earlier"] = [values["start_loss"] - share / (1 + 4 / 11) for share in (0.75, 0.625)][
                : size == 4 and 2
            ]
    Path("probe.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert command(*words)[0] == 0
    written = json.loads(Path("probe.json").read_text())
    ratio, critical, noise = (written[key] for key in ("critical_batch_ratio", "critical_batch_size", "noise_scale"))
    ends = (8, 16 if swing < 1e-4 else None)
    assert (critical["low"], critical["high"]) == ends
    assert (critical["value"] is None, noise["value"] is None) == (None in ends, not noise_is_known)
    assert ratio["low"] == pytest.approx(8 / noise["high"])

    plan = ("--probe", "probe.json", "--examples", "1M", "--at-batch", "4", "--json")
    status, out, errors = command(*plan, name="plan")
    if noise_is_known and None not in ends:
        assert NoiseScalePolicy(target_ratio="probe.json") == NoiseScalePolicy(target_ratio=ratio["value"])
        assert json.loads(out)["critical_batch"]["value"] == pytest.approx(critical["value"])
        return
    assert (status, ratio["value"]) == (1, None)
    refusal = (
        f"probe.json did not resolve critical_batch_ratio, got {ratio}. Probe for longer or with other multiples, or "
    )
    assert f"{refusal}pass --critical-batch or --ratio." in errors
    with pytest.raises(ValueError, match=re.escape(f"{refusal}give a number")):
        NoiseScalePolicy(target_ratio="probe.json")
    status, out, errors = command(*plan, "--ratio", "1", name="plan")
    assert json.loads(out)["noise_scale"] == noise if noise_is_known else "no resolved noise scale" in errors


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task", "probed_task"), "must be package.module:function"),
        (("--task", "nowhere:task"), "cannot be loaded: No module named 'nowhere'"),
        (("--task", "probed_task:wrong"), "must return (module, training loader, validation loader)"),
        (("--config", "missing.yaml"), "no such config: missing.yaml"),
        (("--task", "probed_task:task", "--ckpt", "none.ckpt"), "none.ckpt cannot be read"),
        (("--task", "probed_task:task", "--lr-rule", "cubic", *SHORT[:-2]), "lr_rule must be one of"),
    ],
)
def test_a_mistake_is_one_sentence(command, words, message):
    status, out, errors = command(*words)
    assert (status, out) == (1, "")
    assert message in errors
    assert "Traceback" not in errors


def test_the_pages_code_runs(capsys):
    text = (ROOT / "docs" / "probe.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    exec(compile(block, "docs/probe.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "the relative error asked for is reached" in printed
    assert "total, Hessian-weighted" in printed
