"""Train a Hugging Face language model from random weights, with batches counted in tokens.

    python examples/hugging_face.py              # three epochs
    python examples/hugging_face.py --texts 300  # a quick look

Needs: pip install lightning-bsscale transformers. Nothing is downloaded: the model is tiny and new, the texts are
Python's help topics, and a token is a byte. For a model from the hub, put `AutoModelForCausalLM.from_pretrained(name)`
and its tokenizer in place of `make_model` and `encode`.
"""

import argparse
from pydoc_data.topics import topics
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, LlamaConfig, get_cosine_schedule_with_warmup

from lightning_bsscale import BatchSizeScaler

LONGEST, IGNORED = 96, -100  # bytes of a text; a label that is not predicted, in Hugging Face's models
Batch = dict[str, Tensor]


def make_model() -> torch.nn.Module:
    shape = dict(hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4)
    return AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=256, max_position_embeddings=LONGEST, **shape))


def encode(text: str) -> Tensor:
    return torch.tensor(list(text.encode()[:LONGEST]))


def collate(texts: list[Tensor]) -> Batch:
    ids = pad_sequence(texts, batch_first=True)
    mask = pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)}


def predicted_tokens(batch: Batch) -> int:
    """What the loss is a mean over: every token but the first of each text, without padding."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


class LanguageModel(pl.LightningModule):
    def __init__(self, rate: float = 1e-3) -> None:
        super().__init__()
        self.rate, self.model = rate, make_model()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        return self.model(**batch).loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val_loss", self.model(**batch).loss, batch_size=predicted_tokens(batch))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.rate)
        steps = int(self.trainer.estimated_stepping_batches)  # of your own plan; the callback keeps the schedule on it
        scheduler = get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_epochs", type=int, default=3)
    parser.add_argument("--texts", type=int, default=None, help="number of texts to train on (default: all)")
    parser.add_argument("--batch_size", type=int, default=4, help="texts of a loader batch")
    options = parser.parse_args()

    pl.seed_everything(0)
    lines = [line for name in sorted(topics) for line in topics[name].split("\n\n") if len(line) > 8]
    texts = [encode(lines[index]) for index in torch.randperm(len(lines)).tolist()]
    held_out, texts = texts[:200], texts[200:][: options.texts]
    scaler = BatchSizeScaler(batch_size_fn=predicted_tokens, loss_is_mean_over="batch_size_fn", unit="tokens")
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=options.max_epochs,
        gradient_clip_val=1.0,
        callbacks=[scaler],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(texts, batch_size=options.batch_size, shuffle=True, collate_fn=collate)
    trainer.fit(LanguageModel(), loader, DataLoader(held_out, batch_size=50, collate_fn=collate))
    print(f"{trainer.global_step} optimizer steps, {scaler.examples_seen:,} tokens predicted", end=", ")
    print(f"validation loss {trainer.callback_metrics['val_loss']:.3f} nats per byte")
    print(scaler.verdict())


if __name__ == "__main__":
    main()
