"""Generated checkpoints: a base, fine-tunes that moved a little, and the process that measures a merge."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fedmerge.wire.checkpoint import Entry
from fedmerge.wire.checkpoint_writer import shards_of, write_checkpoint

SHAPES = {
    "model.embed_tokens.weight": (50, 8),
    "model.layers.0.q_proj.weight": (8, 8),
    "model.norm.weight": (8,),
}


def values(
    seed: int, shapes: Mapping[str, tuple[int, ...]] = SHAPES, scale: float = 1.0
) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=draw) * scale for name, shape in shapes.items()}


def save(
    folder: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, object] | None = None,
    shard_bytes: int = 10**9,
) -> Path:
    """A checkpoint as transformers writes it."""
    entries = [Entry(name, folder, tensor.dtype, tuple(tensor.shape), 0) for name, tensor in tensors.items()]
    files = {"config.json": json.dumps(dict(config or {"model_type": "llama"})).encode()}
    return write_checkpoint(
        folder, shards_of(entries, shard_bytes), lambda name: [tensors[name]], lambda: files
    )


def family(place: Path, count: int, dtype: torch.dtype = torch.float32, **options: int) -> list[Path]:
    """A base, the first of the folders, and its fine-tunes."""
    base = values(0)
    folders = [save(place / "base", {name: tensor.to(dtype) for name, tensor in base.items()}, **options)]
    for number in range(count):
        tuned = {name: base[name] + delta for name, delta in values(number + 1, scale=0.1).items()}
        folders.append(
            save(place / f"tune-{number}", {name: x.to(dtype) for name, x in tuned.items()}, **options)
        )
    return folders


def large_family(place: Path, count: int, rows: int, columns: int, layers: int) -> list[Path]:
    """bf16 checkpoints of any size, written row block by row block."""
    shapes = {f"model.layers.{layer}.mlp.weight": (rows, columns) for layer in range(layers)}
    return [
        _write_large(place / ("base" if not model else f"tune-{model}"), shapes, model)
        for model in range(count + 1)
    ]


def _write_large(folder: Path, shapes: Mapping[str, tuple[int, int]], model: int) -> Path:
    entries = [Entry(name, folder, torch.bfloat16, shape, 0) for name, shape in shapes.items()]

    def pieces(name: str):  # type: ignore[no-untyped-def]
        rows, columns = shapes[name]
        draw = torch.Generator().manual_seed(7)
        block = torch.randn(min(rows, 256), columns, generator=draw)
        moved = block + 0.05 * torch.randn(block.shape, generator=draw.manual_seed(model)) * (model > 0)
        for start in range(0, rows, len(block)):
            yield moved[: min(len(block), rows - start)].to(torch.bfloat16)

    return write_checkpoint(folder, shards_of(entries, 200 << 20), pieces, lambda: {"config.json": b"{}"})


PROCESS = """
import json, re, sys, psutil, torch
import fedmerge.checkpoints as checkpoints
from fedmerge.wire.checkpoint import open_checkpoint
rule, memory, out, base, *models = sys.argv[1:]
from pathlib import Path
torch.set_num_threads(1)
torch.randn(64, 64, dtype=torch.float64) @ torch.randn(64, 64, dtype=torch.float64)
before = psutil.Process().memory_info().rss
opened = {model: open_checkpoint(model) for model in models}
task = checkpoints.prepare(opened, open_checkpoint(base), rule=rule, memory=int(memory))
report = checkpoints.merge_checkpoints(task, Path(out))
# Not getrusage: its maximum counts the parent, from which this process was forked.
peak = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
found = {"before": before, "peak": peak, "over": peak - before}
print(json.dumps({**found, "planned": task.peak, "seconds": report.seconds}))
"""


def measured(rule: str, memory: int, out: Path, folders: list[Path]) -> dict[str, float]:
    """What a merge in a process of its own takes."""
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, rule, str(memory), *map(str, [out, *folders])],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


COMMAND = """
import atexit, re, sys
from pathlib import Path
def peak():
    print(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1], file=sys.stderr)
atexit.register(peak)
from fedmerge.cli import main
main()
"""


def commanded(*arguments: object) -> tuple[dict[str, object], int]:
    """What a command with `--json` printed, and its peak resident memory in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *map(str, arguments), "--json"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), 1024 * int(done.stderr.split()[-1])
