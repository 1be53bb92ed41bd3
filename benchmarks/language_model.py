"""The language model of several benchmarks: a byte-level transformer, on the Python standard library's own source.

About 119,000 parameters and 64 bytes of context. The text, and so the third digit of a loss, depends on the version of
Python: its hash is part of every result.
"""

from __future__ import annotations

import functools
import hashlib
import math
import sysconfig
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

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
