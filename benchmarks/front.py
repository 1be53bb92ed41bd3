"""Compare steps and loss at equal examples: fixed batches at their best learning rates, and the scaler.

A byte-level transformer (about 119,000 parameters, 64 bytes of context) reads 32,000 sequences, about 2 million bytes,
of the Python standard library's own source, once, through the real Lightning Trainer: AdamW (.9, .95), weight decay .1,
clipping at norm 1.0, warmup over 3 % of the planned steps and cosine to 5 % in the user's own scheduler. Every run sees
the same number of examples; only the batch, and so the number of optimizer steps, differs. A seed fixes the initial
weights, which sequences are read, and their order, whatever the batch, so differences are computed per seed.

Each fixed batch B runs at a base learning rate of 0.004 x sqrt(B / 4) times 0.5, 0.7 and 1.0 (from 12 on also 0.35,
because 0.5 was the best of the three), and its row is the learning rate with the lowest mean loss. `BatchSizeScaler()`,
at its defaults, starts from batch 4 at the learning rates of batch 4. Its main row uses the one that was best for fixed
4: the callback is added to a tuned run, with nothing tuned for it. The table lists every other learning rate as well.
The loss is in nats per byte over 4,096 held-out sequences, the same for every run, from files that no run trains on. A
fixed batch B is a loader of batch B. Fixed 12 allows a comparison at about equal steps.

Finished runs are lines of results/front.jsonl and are not repeated, so the command may be stopped and started again at
any time. The text, and so the third digit, depends on the version of Python: its hash is recorded.

    python benchmarks/front.py --workers 2            # make all missing runs, then the table
    python benchmarks/front.py --only scaler --seeds 2
    python benchmarks/front.py --table                # only write the table
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import logging
import math
import multiprocessing
import os
import statistics
import sys
import sysconfig
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from machine import describe, mean_and_error
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

RESULTS = Path(__file__).parent / "results"
TASK: dict[str, Any] = {
    "version": 2,
    "context": 64,
    "width": 64,
    "layers": 2,
    "heads": 4,
    "sequences": 32_000,
    "held_out": 4_096,
    "held_out_files": "each 20th",
    "base_rate": 4e-3,
    "betas": (0.9, 0.95),
    "weight_decay": 0.1,
    "clip": 1.0,
    "warmup": 0.03,
    "final": 0.05,
}
START = 4
BATCHES = (4, 8, 12, 16, 32)
NAMES = (*(f"fixed{batch}" for batch in BATCHES), "scaler")
# Three each, and a fourth, lower one for the larger batches, whose best of the three was the lowest.
RATES = {batch: (0.5, 0.7, 1.0) if batch <= 8 else (0.35, 0.5, 0.7, 1.0) for batch in BATCHES}
# Tests, third-party packages, and two folders of generated tables and prose.
SKIPPED_FOLDERS = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "__pycache__",
    "encodings",
    "pydoc_data",
}


@functools.cache
def corpus() -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Read the standard library's source and cut it into sequences.

    Returns:
        The training and the held-out sequences (one row each, one byte longer than the context, so that inputs and
        targets are shifts of the same row), and the record of the text: files, bytes and hash.
    """
    root = Path(sysconfig.get_path("stdlib"))
    files = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)
        and not path.relative_to(root).parts[0].startswith(("config-", "_sysconfigdata"))
    )
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for index, name in enumerate(files):
        parts[index % 20 == 10].append((root / name).read_bytes())
    digest = hashlib.sha256(b"".join(parts[0]) + b"".join(parts[1])).hexdigest()
    length = TASK["context"] + 1
    rows = []
    for part in parts:
        flat = torch.frombuffer(bytearray(b"".join(part)), dtype=torch.uint8).long()
        rows.append(flat[: len(flat) // length * length].view(-1, length))
    chosen = torch.randperm(len(rows[1]), generator=torch.Generator().manual_seed(0))[: TASK["held_out"]]
    record = {"files": len(files), "bytes": sum(len(text) for part in parts for text in part), "sha256": digest}
    return rows[0], rows[1][chosen], record


class Sequences(Dataset[Tensor]):
    """Sequences in a fixed order, where a batch is one slice."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows[index]

    def __getitems__(self, indices: list[int]) -> Tensor:
        return self.rows[indices[0] : indices[-1] + 1]


def as_is(batch: Tensor) -> Tensor:
    """Collate nothing, because `Sequences` returns whole batches.

    Args:
        batch: The batch.

    Returns:
        The same batch.
    """
    return batch


class Block(nn.Module):
    """Attention and a feed-forward layer, each with pre-normalisation and a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = nn.Sequential(
            nn.Linear(width, 3 * width, bias=False), nn.GELU(), nn.Linear(3 * width, width, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        size, length, width = x.shape
        qkv = self.qkv(self.norm_attention(x)).view(size, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(size, length, width))
        return x + self.feed(self.norm_feed(x))


class ByteModel(pl.LightningModule):
    """The language model, its optimizer, and its own warmup and cosine schedule on steps."""

    task = TASK

    def __init__(self, rate: float) -> None:
        super().__init__()
        width = self.task["width"]
        self.rate = rate
        self.examples = 0
        self.embed = nn.Embedding(256, width)
        self.position = nn.Parameter(torch.empty(self.task["context"], width))
        self.blocks = nn.Sequential(*(Block(width, self.task["heads"]) for _ in range(self.task["layers"])))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)
        for name, weight in self.named_parameters():
            if name.startswith("blocks") and weight.ndim == 2:
                residual = name.endswith(("out.weight", "feed.2.weight"))
                nn.init.normal_(
                    weight, std=weight.shape[1] ** -0.5 / (math.sqrt(2 * self.task["layers"]) if residual else 1)
                )
        nn.init.normal_(self.embed.weight, std=0.1)
        nn.init.normal_(self.position, std=0.02)
        nn.init.normal_(self.head.weight, std=0.5 * width**-0.5)

    def loss(self, rows: Tensor) -> Tensor:
        """Compute the mean loss of the next byte.

        Args:
            rows: Sequences one byte longer than the context.

        Returns:
            The loss in nats per byte.
        """
        x = self.blocks(self.embed(rows[:, :-1]) + self.position)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.examples += len(batch)
        return self.loss(batch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.parameters(),
            lr=self.rate,
            betas=self.task["betas"],
            weight_decay=self.task["weight_decay"],
            fused=True,
        )
        return warmup_and_cosine(optimizer, int(self.trainer.estimated_stepping_batches))


def warmup_and_cosine(optimizer: torch.optim.Optimizer, steps: int) -> dict[str, Any]:
    """Add the task's schedule.

    Args:
        optimizer: The optimizer.
        steps: Steps of the training.

    Returns:
        What `configure_optimizers` returns.
    """
    warmup = max(1, round(TASK["warmup"] * steps))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, steps - warmup))
        return float(TASK["final"] + (1 - TASK["final"]) * 0.5 * (1 + math.cos(math.pi * progress)))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def key_of(job: dict[str, Any]) -> str:
    """Return a run's key: its name, learning rate and seed, and a hash of everything that its result depends on.

    Args:
        job: The run's settings.

    Returns:
        The key of its line in the results.
    """
    everything = json.dumps({"task": TASK, "text": corpus()[2], "job": job}, sort_keys=True)
    return f"{job['name']}@{job['rate']:g}/{job['seed']}/{hashlib.sha256(everything.encode()).hexdigest()[:10]}"


def finished(path: Path) -> dict[str, dict[str, Any]]:
    """Read the finished runs.

    Args:
        path: The results file.

    Returns:
        Records by key. A line cut off by a kill is skipped, and its run is repeated.
    """
    records = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        records[record["key"]] = record
    return records


def package_hash() -> str:
    """Hash the package's source, so that a table never mixes two versions of the scaler unnoticed.

    Returns:
        The first ten digits.
    """
    import lightning_bsscale

    root = Path(lightning_bsscale.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for part in ("theory", "gradients", "callbacks") for path in (root / part).rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:10]


def train(job: dict[str, Any]) -> dict[str, Any]:
    """Make one run, and validate at its end.

    Args:
        job: The name, batch, factor on the base learning rate, and seed.

    Returns:
        The record of the run.
    """
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    rows, held_out, text = corpus()
    generator = torch.Generator().manual_seed(job["seed"])
    order = torch.randperm(len(rows), generator=generator)[: job.get("sequences", TASK["sequences"])]
    loader = DataLoader(Sequences(rows[order]), batch_size=job["batch"], collate_fn=as_is)
    torch.manual_seed(job["seed"])
    model = ByteModel(TASK["base_rate"] * math.sqrt(job["batch"] / START) * job["rate"])
    callbacks: list[Any] = []
    package = ""
    if job["name"] == "scaler":
        package = package_hash()
        from lightning_bsscale import BatchSizeScaler

        callbacks.append(BatchSizeScaler())
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=callbacks,
        gradient_clip_val=TASK["clip"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    started = time.perf_counter()
    trainer.fit(model, loader)
    seconds = time.perf_counter() - started
    model.eval()
    with torch.no_grad():
        losses = [model.loss(part).item() * len(part) for part in held_out.split(256)]
    record = {
        **job,
        "learning_rate": model.rate,
        "val_loss": sum(losses) / len(held_out),
        "optimizer_steps": trainer.global_step,
        "examples": model.examples,
        "seconds": round(seconds, 2),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "text": text,
        "machine": describe(),
    }
    for scaler in callbacks:
        record["package"] = package
        record["final_batch"] = scaler.batch_size
        record["growths"] = [
            {
                "examples": made.situation.examples_seen,
                "batch": made.batch_size,
                "lr_scale": made.lr_scale,
                "noise_scale": made.situation.noise and made.situation.noise.noise_scale,
                "low": made.situation.noise and made.situation.noise.low,
            }
            for made in scaler.decisions
            if made.is_change
        ]
    return record


def jobs(
    seeds: int, only: set[str], rates: tuple[float, ...] = (), sequences: int | None = None
) -> list[dict[str, Any]]:
    """List the runs, seed by seed, so that an unfinished file is balanced.

    Args:
        seeds: Number of seeds.
        only: Names to keep; empty keeps all.
        rates: Factors on the base learning rate; empty uses those of each batch.
        sequences: Number of sequences to read; None for the task's own.

    Returns:
        The settings of each run.
    """
    longer = {} if sequences is None else {"sequences": sequences}
    return [
        {"name": name, "batch": batch, "rate": rate, "seed": seed, **longer}
        for seed in range(seeds)
        for rate in sorted(rates or set().union(*RATES.values()), reverse=True)
        for name, batch in zip(NAMES, (*BATCHES, START), strict=True)
        if (not only or name in only) and (rates or rate in RATES[batch])
    ]


def worker(job: dict[str, Any], path: Path) -> dict[str, Any] | None:
    """Make one run in a worker process, unless another command has finished it meanwhile.

    Args:
        job: The run's settings.
        path: The results file.

    Returns:
        The record, or None if the run was already finished.
    """
    key = key_of(job)
    if key in finished(path):
        return None
    record = {"key": key, **train(job)}
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")
    return record


def end_with_parent() -> None:
    """End a worker process if the command is killed, instead of working through the queue."""

    def watch(parent: Any) -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, args=(multiprocessing.parent_process(),), daemon=True).start()


def run_all(todo: list[dict[str, Any]], path: Path, workers: int) -> int:
    """Make the missing runs in worker processes of one thread each.

    Args:
        todo: All requested runs.
        path: The results file.
        workers: Number of processes.

    Returns:
        The number of runs that failed.
    """
    done = finished(path)
    missing = [job for job in todo if key_of(job) not in done]
    print(f"{len(todo) - len(missing)} of {len(todo)} runs are in {path}; {len(missing)} to make", flush=True)
    failed = 0
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=end_with_parent) as pool:
        futures = {pool.submit(worker, job, path): job for job in missing}
        for count, future in enumerate(as_completed(futures), 1):
            job = futures[future]
            label = f"[{count}/{len(missing)}] {job['name']}@{job['rate']:g} seed {job['seed']}"
            try:
                record = future.result()
            except Exception as error:  # one failed run must not end the others
                failed += 1
                print(f"{label}: FAILED: {error!r}", flush=True)
                continue
            if record is not None:
                print(
                    f"{label}: loss {record['val_loss']:.4f}, {record['optimizer_steps']} steps, {record['seconds']} s",
                    flush=True,
                )
    return failed


def summarize(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Turn runs into rows and comparisons.

    Args:
        records: Finished runs of one task.

    Returns:
        The rows (one per name and learning rate), the best learning rate of each name, and the paired comparisons of
        the scaler.
    """
    groups: dict[tuple[str, float], dict[int, dict[str, Any]]] = {}
    for record in records:
        groups.setdefault((record["name"], record["rate"]), {})[record["seed"]] = record
    losses = {key: {seed: run["val_loss"] for seed, run in group.items()} for key, group in groups.items()}
    steps = {key: statistics.fmean(run["optimizer_steps"] for run in group.values()) for key, group in groups.items()}
    best: dict[str, float] = {}
    for name in {name for name, _ in groups}:
        # Compare over common seeds, so that no learning rate wins by lucky seeds; ignore those with few seeds.
        rates = [key for key in groups if key[0] == name]
        most = max(len(groups[key]) for key in rates)
        rates = [key for key in rates if 2 * len(groups[key]) >= most]
        common = set.intersection(*(set(groups[key]) for key in rates)) or set().union(*(groups[key] for key in rates))
        best[name] = min(rates, key=lambda key: statistics.fmean(losses[key].get(s, math.inf) for s in common))[1]

    def paired(key: tuple[str, float], other: tuple[str, float]) -> dict[str, Any]:
        seeds = sorted(groups[key].keys() & groups[other].keys())
        mean, error = mean_and_error([losses[key][seed] - losses[other][seed] for seed in seeds])
        return {
            "run": f"{key[0]}@{key[1]:g}",
            "against": f"{other[0]}@{other[1]:g}",
            "difference": mean,
            "error": error,
            "seeds": len(seeds),
            "steps": steps[key],
            "steps_against": steps[other],
            "steps_ratio": steps[key] / steps[other],
        }

    rates_of = {name: [rate for other, rate in groups if other == name] for name in best}
    reference = (f"fixed{START}", best[f"fixed{START}"]) if f"fixed{START}" in best else None
    rows = []
    for key in sorted(groups, key=lambda key: (key[0] == "scaler", groups[key][min(groups[key])]["batch"], key[1])):
        group = groups[key]
        mean, error = mean_and_error(list(losses[key].values()))
        row = {
            "name": key[0],
            "rate": key[1],
            "best": best[key[0]] == key[1],
            "at_an_end": key[1] in (min(rates_of[key[0]]), max(rates_of[key[0]])),
            "learning_rate": next(iter(group.values()))["learning_rate"],
            "seeds": len(group),
            "loss": mean,
            "error": error,
            "steps": steps[key],
            "examples": statistics.fmean(run["examples"] for run in group.values()),
            "seconds": statistics.fmean(run["seconds"] for run in group.values()),
        }
        if reference is not None:
            row["against_start"] = paired(key, reference)
        if key[0] == "scaler":
            row["final_batches"] = sorted(run["final_batch"] for run in group.values())
            row["packages"] = sorted({run["package"] for run in group.values()})
        rows.append(row)
    comparisons = []
    fixed = [(name, best[name]) for name in best if name != "scaler"]
    for key in [key for key in sorted(groups) if key[0] == "scaler"]:
        by_steps = sorted(fixed, key=lambda other: abs(math.log(steps[other] / steps[key])))
        comparisons += [
            {**paired(key, other), "nearest": other == by_steps[0]} for other in sorted(fixed, key=lambda k: -steps[k])
        ]
    return {"rows": rows, "best": best, "comparisons": comparisons}


def signed(value: float, error: float) -> str:
    """Format a difference.

    Args:
        value: The difference.
        error: Its standard error.

    Returns:
        Both numbers, the difference with its sign.
    """
    return f"{value:+.4f} ± {error:.4f}"


def markdown(summary: dict[str, Any], about: dict[str, Any]) -> str:
    """Write the tables.

    Args:
        summary: The result of `summarize`.
        about: The records of the text and the machine.

    Returns:
        Markdown tables.
    """
    text, machine = about["text"], about["machine"]
    lines = [
        "# Steps against loss at equal examples",
        "",
        f"Byte-level transformer ({about['parameters']:,} parameters), {TASK['sequences']:,} sequences of"
        f" {TASK['context']} bytes in one epoch. Text: {text['bytes']:,} bytes of {text['files']} files,"
        f" sha256 {text['sha256'][:16]}…."
        f" Python {machine['python']}, torch {machine['torch']}, lightning {machine['lightning']},"
        f" {machine['processor']}, {machine['threads']} thread a run. ± is one standard error over seeds; differences"
        " are paired by seed. Seconds were taken beside other work on the same machine.",
        "",
        f"| run | rate (× base) | val loss | against fixed {START} at its best | steps | examples | seconds | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in summary["rows"]:
        against = row.get("against_start")
        difference = "–"
        if against and against["run"] != against["against"]:
            difference = signed(against["difference"], against["error"])
        name = f"**{row['name']}**{' †' if row['at_an_end'] else ''}" if row["best"] else row["name"]
        lines.append(
            f"| {name} | {row['learning_rate']:.2e} (×{row['rate']:g}) | {row['loss']:.4f} ± {row['error']:.4f}"
            f" | {difference} | {row['steps']:.0f} | {row['examples']:.0f} | {row['seconds']:.1f} | {row['seeds']} |"
        )
    lines += [
        "",
        "Bold: the best of a batch's rates, by the mean over seeds. †: that is the lowest or the highest one tried.",
        "",
    ]
    start_rate = summary["best"].get(f"fixed{START}")
    if summary["comparisons"]:
        lines += [
            "## The scaler against each fixed batch at its best rate",
            "",
            f"The main rows are at the rate that was best for fixed {START} (×{start_rate:g}): nothing is tuned for the"
            " scaler. Bold: the fixed batch with the nearest number of steps.",
            "",
            "| scaler | against | loss difference | steps | steps against | ratio | seeds |",
            "|---|---|---|---|---|---|---|",
        ]
        for row in summary["comparisons"]:
            against = f"**{row['against']}**" if row["nearest"] else row["against"]
            main = " (main)" if row["run"] == f"scaler@{start_rate:g}" else ""
            best = " (its best)" if row["run"] == f"scaler@{summary['best']['scaler']:g}" else ""
            lines.append(
                f"| {row['run']}{main}{best} | {against} | {signed(row['difference'], row['error'])}"
                f" | {row['steps']:.0f} | {row['steps_against']:.0f} | {row['steps_ratio']:.2f} | {row['seeds']} |"
            )
        packages = sorted({name for row in summary["rows"] for name in row.get("packages", ())})
        if len(packages) > 1:
            lines += [
                "",
                f"Caution: these scaler runs mix {len(packages)} versions of the package ({', '.join(packages)}).",
            ]
    return "\n".join(lines) + "\n"


def write_table(path: Path) -> None:
    """Write results/front.json and results/front.md from the finished runs, and print the latter.

    Args:
        path: The results file.
    """
    current = corpus()[2]
    records = [
        record
        for key, record in finished(path).items()
        if key == key_of({name: record[name] for name in ("name", "batch", "rate", "seed")})
    ]
    if not records:
        sys.exit(f"No finished run of this task and this text ({current['sha256'][:16]}) in {path}.")
    about = {name: records[0][name] for name in ("text", "machine", "parameters")}
    summary = {"task": TASK, **about, **summarize(records)}
    path.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    table = markdown(summary, about)
    path.with_suffix(".md").write_text(table)
    print(table)


def main() -> int:
    """Make the missing runs, then write the table.

    Returns:
        The exit status: 1 if a run failed.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each (default: 2)")
    parser.add_argument("--seeds", type=int, default=8, help="number of seeds (default: 8)")
    parser.add_argument("--only", default="", help=f"comma-separated names: {', '.join(NAMES)}")
    parser.add_argument("--rates", default="", help="factors on the base learning rate (default: those of each batch)")
    parser.add_argument("--sequences", type=int, help=f"sequences to read (default: {TASK['sequences']}); with --out")
    parser.add_argument("--out", type=Path, default=RESULTS / "front.jsonl", help="file of finished runs")
    parser.add_argument(
        "--redo", action="store_true", help="first delete the runs selected by --only, --seeds and --rates"
    )
    parser.add_argument("--table", action="store_true", help="only write and print the table of the finished runs")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    if not options.table:
        only = {name.strip() for name in options.only.split(",") if name.strip()}
        unknown = only.difference(NAMES)
        if unknown:
            parser.error(f"--only has {', '.join(sorted(unknown))}, but the names are {', '.join(NAMES)}")
        rates = tuple(float(rate) for rate in options.rates.split(",") if rate)
        todo = jobs(options.seeds, only, rates, options.sequences)
        if options.redo:
            keys = {key_of(job) for job in todo}
            kept = [json.dumps(record) for key, record in finished(options.out).items() if key not in keys]
            options.out.write_text("".join(f"{line}\n" for line in kept))
        failed = run_all(todo, options.out, options.workers)
    write_table(options.out)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
