"""Write the numbers of README.md and docs/results.md from the benchmarks' results, so that none is typed by hand.

python benchmarks/readme.py            # write the parts between the two markers
python benchmarks/readme.py --check    # say whether they are up to date (a test does the same)
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- figures: python benchmarks/readme.py -->", "<!-- end of figures -->"


def read(name: str) -> dict[str, Any]:
    """Read the results of a benchmark.

    Args:
        name: The benchmark's name.

    Returns:
        The results.
    """
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def ran_on(machine: dict[str, Any]) -> str:
    """Name the machine and the versions that a result was taken with.

    Args:
        machine: The machine's record in the result.

    Returns:
        One phrase.
    """
    return (
        f"{machine['processor']} CPU, {machine['threads']} thread, torch {machine['torch']}, "
        f"lightning {machine['lightning']}, Python {machine['python']}"
    )


def front() -> list[str]:
    """Show every fixed batch at its best learning rate, and the scaler at the best one for its starting batch.

    Returns:
        Lines of Markdown.
    """
    found = read("front")["lm"]
    shown = [row for row in found["rows"] if row["is_main"] and row["name"].startswith("fixed")]
    shown.sort(key=lambda row: -row["steps"])
    shown += [row for row in found["rows"] if row["is_main"] and row["name"] == "scaler"]
    lines = [
        "**A small language model** ([`benchmarks/front.py`](front.md), with rivals and three other trainings):"
        f" a byte-level transformer ({found['parameters']:,} parameters) reads"
        f" {found['settings']['sequences']:,} sequences of the standard library's source once; AdamW, warmup"
        " and cosine in its own scheduler. Each fixed batch at its best learning rate of at least three; the scaler at"
        " its defaults, from batch 4 at the learning rate"
        f" that is best for batch 4. {shown[-1]['seeds']} seeds, paired; ± one standard error.",
        "",
        "| run | optimizer steps | validation loss (nats/byte) | difference to fixed 4 |",
        "|---|---|---|---|",
    ]
    for row in shown:
        name = "**`BatchSizeScaler()`** from 4" if row["name"] == "scaler" else f"fixed {row['name'][5:]}"
        against = row["against_start"]
        difference = "–" if row["name"] == "fixed4" else f"{against['difference']:+.4f} ± {against['error']:.4f}"
        loss = f"{row['loss']:.4f} ± {row['error']:.4f}"
        lines.append(f"| {name} | {row['steps']:,.0f} | {loss} | {difference} |")
    near = min(found["against_fixed"], key=lambda row: abs(math.log(row["steps_ratio"])))
    lines += [
        "",
        f"Against the fixed batch of about as many steps (fixed {near['against'][5:]}, {near['steps_against']:,.0f}"
        f" steps) the scaler's loss differs by {near['difference']:+.4f} ± {near['error']:.4f}. {front_times()}"
        f" ({ran_on(found['machine'])}.)",
    ]
    return lines


def front_times() -> str:
    """Compare the seconds of runs that were made for their seconds.

    Returns:
        A sentence.
    """
    path = RESULTS / "front_times_lm.jsonl"
    records = map(json.loads, path.read_text().splitlines() if path.exists() else ())
    seconds = {(record["name"], record["seed"]): record["seconds"] for record in records}
    pairs = [(seconds.get(("scaler", seed)), value) for (name, seed), value in seconds.items() if name == "fixed4"]
    ratios = [scaler / fixed for scaler, fixed in pairs if scaler is not None]
    if not ratios:
        return "Its seconds have not been measured with the present defaults."
    return (
        f"In {len(ratios)} pairs of runs on an otherwise idle machine it took {statistics.median(ratios):.2f} of fixed"
        f" 4's seconds ({min(ratios):.2f} to {max(ratios):.2f})."
    )


def paired(name: str, title: str, remark: str) -> list[str]:
    """Show a benchmark whose runs are paired by seed.

    Args:
        name: The benchmark's name.
        title: What was trained.
        remark: What to say of it.

    Returns:
        Lines of Markdown.
    """
    found = read(name)
    first = found["rows"][0]["name"]
    lines = [
        f"**{title}** (`benchmarks/{name}.py`, {found['rows'][0]['seeds']} seeds):",
        "",
        f"| run | optimizer steps | time | validation loss | difference to {first} | accuracy | difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        losses, accuracies = (
            "–" if row["name"] == first else f"{row[f'{key}_difference']:+.4f} ± {row[f'{key}_difference_error']:.4f}"
            for key in ("val_loss", "val_accuracy")
        )
        label = f"**{row['name']}**" if row["name"].startswith("scaler") else row["name"]
        time = f"{row['seconds']:.1f} s" if row["name"] == first else f"× {row['seconds_ratio']:.2f}"
        lines.append(
            f"| {label} | {row['optimizer_steps']:,.0f} | {time} | {row['val_loss']:.4f} ± {row['val_loss_error']:.4f}"
            f" | {losses} | {row['val_accuracy']:.4f} | {accuracies} |"
        )
    return [*lines, "", f"{remark} ({ran_on(found['machine'])}.)"]


def overhead() -> list[str]:
    """Show what watching costs.

    Returns:
        Lines of Markdown.
    """
    found = [
        read(name) for name in ("overhead_split", "overhead", "overhead_small", "overhead_ddp", "overhead_ddp_small")
    ]
    phrases = []
    for result in found:
        ratio, noise = result["ratios"]["monitor/bare"], result["ratios"]["bare/bare"]
        phrases.append(
            f"{ratio['median']:.3f} ({ratio['low']:.3f} to {ratio['high']:.3f}) with loader batches of"
            f" {result['milliseconds_per_loader_batch']:.0f} ms, where two equal runs differ by"
            f" {noise['median']:.3f} ± {noise['half_width']:.3f} ({result['pairs']} pairs)"
        )
    return [
        "**What watching costs** (`benchmarks/overhead.py`): time with `GradientNoiseScaleMonitor()` over time without,"
        f" for a transformer of {found[0]['parameter_tensors']} parameter tensors, median of interleaved pairs. A"
        f" single loader batch a step, one in {found[0]['measure_every']} of which is computed in two halves:"
        f" {phrases[0]}. Four a step,"
        f" from before that was possible: {phrases[1]}; {phrases[2]}. Under DDP on {found[3]['ranks']} processes of one"
        f" machine, of the same age: {phrases[3]}; {phrases[4]}. A window that is not measured has no hook."
        f" ({ran_on(found[0]['machine'])}.)"
    ]


def results() -> str:
    """Compose the tables of docs/results.md.

    Returns:
        Markdown.
    """
    parts = [
        paired(
            "digits",
            "Digits: a small CNN, SGD with momentum, 25 epochs",
            "Learning rates are not tuned. Lightning's own loop takes a good part of the time of so small a model, and"
            " every loader batch still passes through it.",
        ),
        paired(
            "deep",
            "A deep, narrow network, AdamW, 25 epochs",
            "Each of its many small layers costs the same for 8 examples as for 64. Learning rates are not tuned.",
        ),
        front(),
        paired(
            "short_run",
            "A short run: an MLP on the digits, AdamW with cosine, 3 epochs",
            "There is nothing to gain in so few steps, and nothing is lost but the time to measure, which weighs most"
            " where a step takes two milliseconds.",
        ),
        overhead(),
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def summary() -> str:
    """Compose the README's table: what each training gained or lost, in one row.

    Returns:
        Markdown.
    """
    lines = [
        "| training | seeds | steps | time | loss, less that of the start batch |",
        "|---|---|---|---|---|",
    ]
    for name, title in (
        ("digits", "scikit-learn's digits, small CNN, SGD"),
        ("deep", "the digits, deep narrow network, AdamW"),
        ("short_run", "the digits, MLP, AdamW, 3 epochs"),
    ):
        first, *_, scaler = read(name)["rows"]
        lines.append(
            f"| {title} | {scaler['seeds']} | {first['optimizer_steps']:,.0f} → {scaler['optimizer_steps']:,.0f} | "
            f"× {scaler['seconds_ratio']:.2f} | {scaler['val_loss_difference']:+.4f} ± "
            f"{scaler['val_loss_difference_error']:.4f} |"
        )
    for name, title in (
        ("lm", "byte-level transformer, AdamW, 32,000 sequences"),
        ("lm_short", "the same, 12,000 sequences"),
        ("pieces", "text classification, sparse gradients, Adam"),
    ):
        rows = {row["name"]: row for row in read("front")[name]["rows"] if row["is_main"]}
        first, scaler = rows["fixed4"], rows["scaler"]
        seconds = [row.get("seconds") for row in (first, scaler)]
        time = "–" if None in seconds else f"× {seconds[1] / seconds[0]:.2f}"
        against = scaler["against_start"]
        lines.append(
            f"| {title} | {scaler['seeds']} | {first['steps']:,.0f} → {scaler['steps']:,.0f} | {time} | "
            f"{against['difference']:+.4f} ± {against['error']:.4f} |"
        )
    machine = read("digits")["machine"]
    note = f"Paired by seed; ± is one standard error. {ran_on(machine)}."
    return "\n".join([*lines, "", note])


PAGES = {ROOT / "README.md": summary, ROOT / "docs" / "results.md": results}


def main() -> int:
    """Write or check the pages.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if out of date")
    options = parser.parse_args()
    outdated = []
    for page, part in PAGES.items():
        text = page.read_text(encoding="utf-8")
        before, rest = text.split(BEGIN)
        written = f"{before}{BEGIN}\n\n{part()}\n\n{END}{rest.split(END)[1]}"
        if written != text:
            outdated.append(page.name)
            if not options.check:
                page.write_text(written, encoding="utf-8")
    if options.check:
        wrong = f"{', '.join(outdated)}: out of date, run python benchmarks/readme.py"
        print(wrong if outdated else "up to date")
        return int(bool(outdated))
    return 0


if __name__ == "__main__":
    sys.exit(main())
