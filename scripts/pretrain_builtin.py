"""Pretrain the built-in base on the standard library's source and write it as package data.

    python scripts/pretrain_builtin.py --steps 3800 --out first
    python scripts/pretrain_builtin.py --steps 2800 --peak 2.5e-3 --seed 1 --threads 1 --start first

(one cycle of the learning rate, then a second one that starts from the first one's weights)

A byte-level causal transformer (transformers' LlamaConfig, ByT5's byte tokenizer) trained on
`fedmerge.silo.builtin.corpus.pretraining_documents(held_out=False)`: no file of a built-in silo is
among them. Writes weights in bf16, config, tokenizer, and `training.json` with the log, the hash of
the corpus and the bits per byte on the held-out tenth, measured on the weights as shipped.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

from fedmerge.silo.builtin.corpus import Document, corpus_hash, pretraining_documents

OUT = Path(__file__).parent.parent / "fedmerge" / "silo" / "builtin" / "base"
CONTEXT = 256
END = 1  # ByT5's </s>: a document ends with it
SHIFT = 3  # ByT5: byte b is token b + 3
SHAPE = {
    "vocab_size": 259,
    "hidden_size": 256,
    "intermediate_size": 640,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 2 * CONTEXT,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "eos_token_id": END,
    "bos_token_id": None,
}


def tokens(documents: list[Document]) -> torch.Tensor:
    """All documents as one row of byte tokens, each closed by the end token."""
    parts = []
    for document in documents:
        raw = np.frombuffer(document.text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
        parts += [raw.astype(np.int64) + SHIFT, np.array([END])]
    return torch.from_numpy(np.concatenate(parts))


def learning_rate(step: int, arguments: argparse.Namespace) -> float:
    """Linear warm-up, then a cosine down to a fiftieth of the peak."""
    if step < arguments.warmup:
        return arguments.peak * (step + 1) / arguments.warmup
    progress = (step - arguments.warmup) / max(1, arguments.steps - arguments.warmup)
    return arguments.peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


@torch.no_grad()
def bits_per_byte(model: torch.nn.Module, stream: torch.Tensor) -> float:
    """Mean bits per byte over windows of the context that do not overlap, each from an empty context."""
    rows = stream[: stream.numel() // CONTEXT * CONTEXT].view(-1, CONTEXT)
    nats = 0.0
    for batch in rows.split(32):
        logits = model(input_ids=batch).logits[:, :-1].float()
        nats += torch.nn.functional.cross_entropy(
            logits.reshape(-1, logits.shape[-1]), batch[:, 1:].reshape(-1), reduction="sum"
        ).item()
    return nats / math.log(2) / (rows.shape[0] * (CONTEXT - 1))


def optimizer_for(model: torch.nn.Module, arguments: argparse.Namespace) -> torch.optim.Optimizer:
    """AdamW; norms are not decayed."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=arguments.peak, betas=(0.9, 0.95), fused=True)


def train(
    model: torch.nn.Module, stream: torch.Tensor, held_out: torch.Tensor, arguments: argparse.Namespace
) -> list[dict[str, float]]:
    """The whole schedule; returns a log line every 200 steps."""
    draw = torch.Generator().manual_seed(arguments.seed)
    optimizer, log, began = optimizer_for(model, arguments), [], time.monotonic()
    window = torch.arange(CONTEXT + 1)
    for step in range(arguments.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, arguments)
        starts = torch.randint(stream.numel() - CONTEXT - 1, (arguments.batch,), generator=draw)
        batch = stream[starts[:, None] + window]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(input_ids=batch[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 200 == 0 or step == arguments.steps - 1:
            model.eval()
            line = {
                "step": step,
                "train_bits_per_byte": round(loss.item() / math.log(2), 4),
                "held_out_bits_per_byte": round(bits_per_byte(model, held_out[: 64 * CONTEXT]), 4),
                "seconds": round(time.monotonic() - began, 1),
            }
            model.train()
            log.append(line)
            sys.stderr.write(f"{line}\n")
    return log


def write(model: LlamaForCausalLM, folder: Path) -> None:
    """The model folder that `AutoModelForCausalLM` and `AutoTokenizer` load."""
    model.to(torch.bfloat16).save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)


def starting_model(start: Path | None) -> LlamaForCausalLM:
    """A model of the shape with random weights, or the one that lies in a folder."""
    if start is None:
        return LlamaForCausalLM(LlamaConfig(**SHAPE))
    return LlamaForCausalLM.from_pretrained(start, dtype=torch.float32).train()


def earlier_cycles(start: Path | None) -> list[dict[str, object]]:
    """Arguments and log of the cycles before this one."""
    if start is None:
        return []
    report = json.loads((start / "training.json").read_text(encoding="utf-8"))
    return [*report["cycles"]]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=5200)
    parser.add_argument("--warmup", type=int, default=50)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--peak", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--start", type=Path, help="a folder written earlier, to go on from its weights")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    seen, unseen = pretraining_documents(held_out=False), pretraining_documents(held_out=True)
    model = starting_model(arguments.start)
    log = train(model, tokens(seen), tokens(unseen), arguments)
    write(model, arguments.out)
    shipped = AutoModelForCausalLM.from_pretrained(arguments.out, dtype=torch.float32).eval()
    schedule = {key: value for key, value in vars(arguments).items() if key not in ("out", "start")}
    report = {
        "held_out_bits_per_byte": round(bits_per_byte(shipped, tokens(unseen)), 4),
        "held_out_bytes": sum(len(document.text.encode()) for document in unseen),
        "parameters": sum(p.numel() for p in shipped.parameters()),
        "corpus_sha256": corpus_hash(seen),
        "held_out_sha256": corpus_hash(unseen),
        "corpus_bytes": sum(len(document.text.encode("utf-8", "surrogatepass")) for document in seen),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cycles": [*earlier_cycles(arguments.start), {"arguments": schedule, "log": log}],
    }
    (arguments.out / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    sys.stderr.write(f"held out: {report['held_out_bits_per_byte']} bits per byte\n")


if __name__ == "__main__":
    main()
