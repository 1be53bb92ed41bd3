"""Loss, steps and seconds on one GPU: fixed batches and the scaler, at equal tokens.

A byte-level transformer of about 10 million parameters, 256 bytes of context, reads 48 million bytes of the Python
source that is installed (standard library and site-packages), each once: AdamW (.9, .95), clipping at norm 1.0, warmup
and cosine, bf16-mixed. Fixed batches of 16, 32, 64 and 128 sequences at a learning rate of 0.001 sqrt(B / 16), and
`BatchSizeScaler()` at its defaults from batch 16. Nothing is tuned. The loss is in nats per byte of held-out files.

The command stops after `--minutes`, within a run if need be: it saves a checkpoint, and the next call resumes it.
Finished runs are lines of results/gpu.jsonl, and are not repeated. The text depends on what is installed: its hash is
recorded.

    python benchmarks/gpu.py --minutes 7              # again and again, until it says that all runs are finished
    python benchmarks/gpu.py --table                  # only write the table
    python benchmarks/gpu.py --device cpu --bytes 200000 --layers 1 --width 32 --out out.jsonl   # a quick trial
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import sys
import sysconfig
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from front import RESULTS, finished
from language_model import TASK, ByteModel, Sequences, as_is
from machine import describe
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_bsscale import BatchSizeScaler

START, BASE_RATE = 16, 1e-3
RUNS = {**{f"fixed {batch}": batch for batch in (16, 32, 64, 128)}, "scaler from 16": START}


class Model(ByteModel):
    """The language model of benchmarks/front.py, in another size."""


def text(bytes_wanted: int, context: int) -> tuple[Tensor, Tensor, str]:
    """Read installed Python source, and cut it into sequences.

    Args:
        bytes_wanted: Bytes to train on.
        context: Bytes of a sequence.

    Returns:
        The training and the held-out sequences (one byte longer than the context), and the hash of both.
    """
    paths = sysconfig.get_paths()
    files = sorted({path for key in ("stdlib", "purelib") for path in Path(paths[key]).rglob("*.py") if path.is_file()})
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    parts, sizes = ([], []), [0, 0]
    wanted = (bytes_wanted, 4_096 * (context + 1))
    for number, index in enumerate(order):
        part = int(number % 20 == 10)
        if sizes[part] < wanted[part]:
            parts[part].append(files[index].read_bytes())
            sizes[part] += len(parts[part][-1])
    if sizes[0] < wanted[0]:
        sys.exit(f"--bytes {bytes_wanted:,} is more than the {sizes[0]:,} bytes of Python source installed here.")
    flat = [b"".join(part)[:size] for part, size in zip(parts, wanted, strict=True)]
    rows = []
    for part in flat:
        whole = torch.frombuffer(bytearray(part), dtype=torch.uint8)
        rows.append(whole[: len(whole) // (context + 1) * (context + 1)].view(-1, context + 1).long())
    shuffled = rows[0][torch.randperm(len(rows[0]), generator=torch.Generator().manual_seed(0))]
    return shuffled, rows[1], hashlib.sha256(flat[0] + flat[1]).hexdigest()[:16]


class Deadline(pl.Callback):
    """Saves a checkpoint and stops when the time is up; sums up the seconds and examples over all parts of a run."""

    def __init__(self, path: Path, until: float) -> None:
        self.path, self.until = path, until
        self.seconds, self.started, self.examples, self.is_cut = 0.0, 0.0, 0, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Tensor, index: int) -> None:
        self.examples += len(batch)
        if time.monotonic() > self.until and not trainer.fit_loop._should_accumulate():
            self.is_cut = trainer.should_stop = True
            trainer.save_checkpoint(self.path)

    def total(self) -> float:
        """Return the seconds of training so far.

        Returns:
            The seconds of all parts of the run.
        """
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return self.seconds + time.perf_counter() - self.started

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.total(), "examples": self.examples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.examples = state_dict["seconds"], state_dict["examples"]


def train(name: str, key: str, options: argparse.Namespace, until: float) -> dict[str, Any] | None:
    """Make or resume one run.

    Args:
        name: The run.
        key: Its key, which names its checkpoint.
        options: The command's options.
        until: When to stop.

    Returns:
        The record, or None if the time was up.
    """
    batch = RUNS[name]
    rows, held_out, digest = text(options.bytes, options.context)
    part = options.out.with_name(f"{options.out.stem}-{hashlib.sha256(key.encode()).hexdigest()[:10]}.ckpt")
    torch.manual_seed(0)
    model, deadline, scaler = Model(BASE_RATE * math.sqrt(batch / START)), Deadline(part, until), BatchSizeScaler()
    callbacks = [scaler, deadline] if name.startswith("scaler") else [deadline]
    trainer = pl.Trainer(
        accelerator=options.device,
        devices=1,
        precision="bf16-mixed" if options.device == "gpu" else "32-true",
        max_epochs=1,
        callbacks=callbacks,
        gradient_clip_val=TASK["clip"],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(Sequences(rows), batch_size=batch, collate_fn=as_is, pin_memory=options.device == "gpu")
    trainer.fit(model, loader, ckpt_path=part if part.exists() else None, weights_only=False)
    if deadline.is_cut:
        return None
    seconds = deadline.total()
    model.to("cuda" if options.device == "gpu" else "cpu").eval()
    with torch.no_grad():
        losses = [model.loss(rows.to(model.device)).item() * len(rows) for rows in held_out.split(64)]
    part.unlink(missing_ok=True)
    device = torch.cuda.get_device_name() if options.device == "gpu" else "CPU"
    return {
        "key": key,
        "name": name,
        "val_loss": sum(losses) / len(held_out),
        "optimizer_steps": trainer.global_step,
        "examples": deadline.examples,
        "seconds": round(seconds, 2),
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "growths": [(made.situation.examples_seen, made.batch_size) for made in scaler.decisions if made.is_change],
        "text": digest,
        "device": device,
        "machine": describe(),
    }


def table(records: list[dict[str, Any]]) -> str:
    """Write the table.

    Args:
        records: The finished runs.

    Returns:
        A Markdown page.
    """
    first = records[0]
    machine = first["machine"]
    lines = [
        "# One GPU: loss, steps and seconds at equal tokens",
        "",
        f"Byte-level transformer, {first['parameters']:,} parameters, one seed. {first['device']}, Python"
        f" {machine['python']}, torch {machine['torch']}, lightning {machine['lightning']}; text {first['text']}.",
        "",
        "| run | val loss | optimizer steps | sequences | seconds |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {run['name']} | {run['val_loss']:.4f} | {run['optimizer_steps']} | {run['examples']}"
        f" | {run['seconds']:.0f} |"
        for run in sorted(records, key=lambda run: list(RUNS).index(run["name"]))
    ]
    return "\n".join(lines) + "\n"


def main() -> int:
    """Make missing runs until the time is up, and write the table of the finished ones.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=7.0, help="stop after this time (default: 7)")
    parser.add_argument("--device", default="gpu", choices=("gpu", "cpu"), help="where to train (default: gpu)")
    parser.add_argument("--bytes", type=int, default=48_000_000, help="bytes to train on (default: 48,000,000)")
    parser.add_argument("--context", type=int, default=256, help="bytes of a sequence (default: 256)")
    parser.add_argument("--width", type=int, default=384, help="width of the model (default: 384)")
    parser.add_argument("--layers", type=int, default=7, help="layers of the model (default: 7)")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.jsonl", help="file of finished runs")
    parser.add_argument("--table", action="store_true", help="only write and print the table of the finished runs")
    options = parser.parse_args()
    until = time.monotonic() + 60 * options.minutes
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")
    sizes = {name: getattr(options, name) for name in ("context", "width", "layers")}
    Model.task = {**TASK, **sizes, "heads": max(1, options.width // 64)}
    settings = json.dumps({**sizes, "bytes": options.bytes, "device": options.device, "rate": BASE_RATE})
    keys = {name: f"{name} {settings}" for name in RUNS}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for name, key in keys.items():
        if options.table or key in finished(options.out):
            continue
        record = train(name, key, options, until)
        if record is None:
            print(f"{name}: cut at {options.minutes:g} minutes; call again to resume it", flush=True)
            break
        with options.out.open("a") as file:
            file.write(json.dumps(record) + "\n")
        print(
            f"{name}: loss {record['val_loss']:.4f}, {record['optimizer_steps']} steps, {record['seconds']} s",
            flush=True,
        )
    done = [record for key, record in finished(options.out).items() if key in keys.values()]
    print(f"{len(done)} of {len(RUNS)} runs are finished")
    if done:
        options.out.with_suffix(".md").write_text(table(done))
        print(table(done))
    return 0


if __name__ == "__main__":
    sys.exit(main())
