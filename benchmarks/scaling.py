"""Count the callback's messages on many ranks, and model what a larger window saves there.

Counts: `BatchSizeScaler` trains through the real Trainer under DDP (gloo, processes on this machine) on 1, 2 and 4
ranks, with models of 10^4 to 10^7 parameters and windows that grow from 1 to 4 micro-batches per rank. Every collective
called from Python is counted, with its bytes and its caller. The package must make one all_reduce of 23 float64 numbers
for each measured window and two of 2 and 3 at the start, all from gradients/reduce.py, for any number of ranks and
parameters. Lightning must make as many calls as without the callback. Otherwise the exit status is 1.

Times: steps of plain torch DDP, with the gradient sent in one piece after the last backward pass, at 2 and 4 ranks,
four sizes and four windows; and the same steps with nothing sent, which gives the computation for each number of ranks
(they share this machine's memory). The model of step_time.py is fitted to 2 ranks at window 1, at three of the sizes,
and its error is reported at all other points. It is then applied to other machines, under stated assumptions. This
command writes the tables and the figure of docs/scaling.md.

    python benchmarks/scaling.py                 # about 5 minutes on 4 cores
    python benchmarks/scaling.py --only counts   # count the messages only, and keep the times that are there
    python benchmarks/scaling.py --table         # tables, figure and page from the existing JSON
    python benchmarks/scaling.py --check         # change nothing; exit with 1 if the page is out of date
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import step_time
import torch
from lightning.pytorch.strategies import DDPStrategy
from machine import describe
from ranks import run_ranks
from scaling_tables import counts_table, errors_table, savings_tables
from timed_steps import measure_steps
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_bsscale import BatchSizeScaler, Decision, Limits, Policy, Situation

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
PAGE, FIGURE = ROOT / "docs" / "scaling.md", ROOT / "docs" / "scaling.svg"
RANKS = (1, 2, 4)
PARAMETERS = (10**4, 10**5, 10**6, 10**7)
FITTED = (10**5, 10**6, 10**7)
TIMED = (10**5, 10**6, 3 * 10**6, 10**7)
LAYERS, EXAMPLES, EPOCHS, BATCHES = 4, 4, 2, 60
START = [["all_reduce", 2, "torch.float64"], ["all_reduce", 4, "torch.float64"]]
WINDOW = ["all_reduce", 23, "torch.float64"]
COLLECTIVES = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "gather_object",
    "monitored_barrier",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
    "scatter_object_list",
    "send",
    "recv",
)


class Stairs(Policy):
    """Use 1, then 2, then 4 micro-batches per rank, by the number of steps made."""

    def decide(self, situation: Situation, limits: Limits) -> Decision:
        steps = situation.optimizer_steps
        wanted = 1 if steps < 16 else 2 if steps < 32 else 4
        return Decision(batch_size=wanted * limits.granularity, reason=f"step {steps}")


class Model(pl.LightningModule):
    """A few square layers with about the given number of parameters."""

    def __init__(self, parameters: int) -> None:
        super().__init__()
        width = self.width = round((parameters / LAYERS) ** 0.5)
        self.net = nn.Sequential(*(nn.Linear(width, width, bias=False) for _ in range(LAYERS)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return (self.net(batch[0]) - 1).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def watch_collectives(calls: list[tuple[str, int, str, str]]) -> None:
    """Replace torch's collectives in this process by ones that also record name, elements, type and the caller's file.

    Args:
        calls: The list to record them in.
    """

    def noting(name: str, function: Any) -> Any:
        def noted(*args: Any, **kwargs: Any) -> Any:
            tensor = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
            size, kind = (0, "") if tensor is None else (tensor.numel(), str(tensor.dtype))
            calls.append((name, size, kind, sys._getframe(1).f_code.co_filename))
            return function(*args, **kwargs)

        return noted

    for name in COLLECTIVES:
        setattr(distributed, name, noting(name, getattr(distributed, name)))


def train(ranks: int, parameters: int, callbacks: list[pl.Callback]) -> tuple[int, int]:
    """Train once.

    Args:
        ranks: Number of processes in the group.
        parameters: The approximate number of parameters.
        callbacks: Callbacks for the Trainer.

    Returns:
        The number of optimizer steps, and the exact number of parameters.
    """
    torch.manual_seed(0)
    model = Model(parameters)
    several = {"devices": ranks, "strategy": DDPStrategy(process_group_backend="gloo")} if ranks > 1 else {}
    trainer = pl.Trainer(
        **several,
        accelerator="cpu",
        max_epochs=EPOCHS,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    rows = torch.randn(EXAMPLES * BATCHES * ranks, model.width)
    trainer.fit(model, DataLoader(TensorDataset(rows), batch_size=EXAMPLES))
    return trainer.global_step, sum(parameter.numel() for parameter in model.parameters())


def count(rank: int, ranks: int, sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    """Count the collectives of one rank.

    Args:
        rank: The rank of this process.
        ranks: Number of processes in the group.
        sizes: Numbers of parameters of the models.

    Returns:
        One record per model.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning_bsscale").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    calls: list[tuple[str, int, str, str]] = []
    watch_collectives(calls)
    records = []
    for size in sizes:
        calls.clear()
        train(ranks, size, [])
        without = sorted(name for name, *_ in calls)
        calls.clear()
        scaler = BatchSizeScaler(
            policy=Stairs(), lr_rule="none", warmup=0, measure_every=2, split=False, max_batch_size=10**6
        )
        steps, parameters = train(ranks, size, [scaler])
        ours = [call for call in calls if "lightning_bsscale" in Path(call[3]).parts]
        records.append(
            {
                "ranks": ranks,
                "parameters": parameters,
                "steps": steps,
                "final_batch": scaler.batch_size,
                "measured_windows": len(scaler.history),
                "calls": [list(call[:3]) for call in ours],
                "bytes": sum(elements * getattr(torch, kind[6:]).itemsize for _, elements, kind, _ in ours),
                "files": sorted({"/".join(Path(call[3]).parts[-2:]) for call in ours}),
                "others": sorted(call[0] for call in calls if call not in ours),
                "others_without": without,
            }
        )
    return records


def problems(by_rank: list[dict[str, Any]]) -> list[str]:
    """Compare the counts of one run's ranks with what is promised.

    Args:
        by_rank: One record per rank.

    Returns:
        A sentence for each broken promise.
    """
    found = []
    for rank, record in enumerate(by_rank):
        where = f"rank {rank} of {record['ranks']}, {record['parameters']:,} parameters"
        promised = [*START, *[WINDOW] * record["measured_windows"]] if record["ranks"] > 1 else []
        if record["calls"] != promised:
            kinds = sorted({f"{name} of {size} {kind}" for name, size, kind in record["calls"]})
            found.append(f"{where}: {len(record['calls'])} calls instead of {len(promised)}: {', '.join(kinds)}")
        if record["files"] not in ([], ["gradients/reduce.py"]):
            found.append(f"{where}: called from {record['files']}")
        if record["others"] != record["others_without"]:
            found.append(f"{where}: {len(record['others'])} other collectives, {len(record['others_without'])} without")
        if not record["measured_windows"] or record["final_batch"] <= EXAMPLES * record["ranks"]:
            found.append(f"{where}: nothing was measured or the batch did not grow, so this proves nothing")
    return found


def count_all() -> tuple[list[dict[str, Any]], list[str]]:
    """Count on each number of ranks.

    Returns:
        The first rank's records for each run, and the broken promises.
    """
    records, broken = [], []
    for ranks in RANKS:
        by_rank = run_ranks(count, ranks, ranks, PARAMETERS)
        for same in zip(*by_rank, strict=True):
            records.append(same[0])
            broken += problems(list(same))
    several = [record for record in records if record["ranks"] > 1]
    if len({json.dumps([record[key] for key in ("steps", "calls", "bytes")]) for record in several}) != 1:
        broken.append("calls or bytes depend on the number of ranks or parameters")
    return records, broken


def page_with(summary: dict[str, Any], text: str) -> str:
    """Put the tables into the page.

    Args:
        summary: The results.
        text: The page.

    Returns:
        The page with the parts between the markers replaced.
    """
    tables = {"counts": counts_table(summary), "errors": errors_table(summary), "model": savings_tables()}
    for name, table in tables.items():
        before, rest = text.split(f"<!-- {name}: python benchmarks/scaling.py -->\n")
        text = f"{before}<!-- {name}: python benchmarks/scaling.py -->\n\n{table}\n<!-- end -->"
        text += rest.split("<!-- end -->", 1)[1]
    return text


def write(summary: dict[str, Any], out: Path) -> None:
    """Write the tables and, for the results shown in the docs, the page and its figure.

    Args:
        summary: The results.
        out: The JSON file.
    """
    tables = [counts_table(summary), errors_table(summary), savings_tables()]
    text = "# Scale\n\n" + "\n".join(tables)
    out.with_suffix(".md").write_text(text)
    print(f"\n{text}")
    if out.resolve() == (RESULTS / "scaling.json").resolve():
        PAGE.write_text(page_with(summary, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        step_time.draw(FIGURE)


def main() -> int:
    """Count, time, fit, write.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["counts"], help="count the messages, and keep the times there are")
    parser.add_argument("--table", action="store_true", help="measure nothing: write from the existing JSON")
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if the page is out of date")
    parser.add_argument("--rounds", type=int, default=5, help="how often each step is timed (default: 5)")
    parser.add_argument("--seconds", type=float, default=0.3, help="minimum duration of each timing (default: 0.3)")
    parser.add_argument("--out", type=Path, default=RESULTS / "scaling.json", help="results; the table is beside it")
    options = parser.parse_args()
    if options.check or options.table:
        summary = json.loads(options.out.read_text())
        if options.check:
            text = PAGE.read_text(encoding="utf-8")
            is_same = page_with(summary, text) == text
            print("up to date" if is_same else "docs/scaling.md is out of date: run benchmarks/scaling.py --table")
            return int(not is_same)
        write(summary, options.out)
        return 0
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    counts, broken = count_all()
    print("\n".join(broken) or "messages: as expected", file=sys.stderr if broken else sys.stdout, flush=True)
    if broken or options.only:
        print(counts_table({"counts": counts}))
    if options.only and not broken:
        summary = {**json.loads(options.out.read_text()), "counts": counts}
        options.out.write_text(json.dumps(summary, indent=1) + "\n")
        write(summary, options.out)
    if broken or options.only:
        return int(bool(broken))
    measured = measure_steps(TIMED, options.rounds, options.seconds)
    summary = {
        "machine": {**describe(threads=1), "load_at_start": load, "load_at_end": os.getloadavg()[0]},
        "counts": counts,
        "timed": {"rounds": options.rounds, "seconds": options.seconds, "fitted_parameters": FITTED},
        "computation": measured["computation"],
        "check": step_time.check(measured, FITTED),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(summary, indent=1) + "\n")
    write(summary, options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
