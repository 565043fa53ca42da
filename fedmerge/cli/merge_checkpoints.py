"""Whole checkpoints on disk to one checkpoint, with bounded memory."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmerge.cli.manner import Outcome, count, size
from fedmerge.cli.memory import parse_memory, working
from fedmerge.cli.merging import Request, geometry_rows, percent, table, versions
from fedmerge.errors import ConfigError, WireError

if TYPE_CHECKING:
    from fedmerge.checkpoints import CheckpointReport, Task


def run(request: Request) -> Outcome:
    """Merge checkpoints, or say what that would take."""
    from fedmerge.checkpoints import Policy, prepare
    from fedmerge.wire.checkpoint import open_checkpoint

    fetch = not request.dry_run
    base = open_checkpoint(request.base, fetch=fetch)
    models = {model: open_checkpoint(model, fetch=fetch) for model in request.models}
    if len(models) != len(request.models):
        raise ConfigError("a fine-tune is named twice; a larger weight counts it more")
    _check_output(request, [base.folder, *(checkpoint.folder for checkpoint in models.values())])
    total, left = working(request.memory)
    task = prepare(
        models, base, weights=request.weights, rule=request.rule, names=request.names, memory=left,
        policy=Policy(request.missing, request.extra), device=_device(request.device), kernel=request.kernel,
    )  # fmt: skip
    if request.dry_run:
        return _told(request, task, total)
    _check_disk(request, task)
    return _merged(request, task)


def _merged(request: Request, task: Task) -> Outcome:
    from fedmerge.checkpoints import merge_checkpoints
    from fedmerge.cli.progress import working as progress

    assert request.output is not None
    with progress("merging", len(task.base.entries)) as watch:
        report = merge_checkpoints(
            task,
            request.output,
            seed=request.seed,
            shard_bytes=parse_memory(request.shard_size),
            tokenizer=Path(request.tokenizer_from) if request.tokenizer_from else None,
            card=lambda report: _card(request, report),
            advance=watch.advance,
        )
    payload: dict[str, Any] = {
        "checkpoint": request.output.absolute(),
        "base_model": request.base,
        "rule": request.rule,
        "report": asdict(report),
    }
    lines = [*report.notes, *_change_lines(report)]
    told = (
        f"{count(len(report.models), 'fine-tune')} of {request.base} merged by {request.rule} in "
        f"{report.seconds:.0f} s: {request.output.absolute()} ({size(report.bytes_written)})"
    )
    return Outcome(payload, ["", table(_rows(report)), "", *lines, told])


def _rows(report: CheckpointReport) -> list[list[str]]:
    columns = {"norm": report.norms, "norm / base": report.relative}
    return geometry_rows(report.models, report.weights, columns, report.cosines)


def _change_lines(report: CheckpointReport) -> list[str]:
    return [
        f"the merge moves the base by {percent(report.change)} of its length; rounding to the base's dtype "
        f"takes {percent(report.rounding)} of that change"
    ]


def _told(request: Request, task: Task, total: int) -> Outcome:
    """What a merge would read, make and need, and what does not fit."""
    misfits, free = task.misfits, _free_disk(request)
    ways = Counter(treatment.way.value for treatment in task.treatments.values())
    payload = {
        "kind": "checkpoint", "models": request.models, "weights": request.shares, "base_model": request.base,
        "rule": request.rule, "tensors": len(task.base.entries), "ways": dict(ways),
        "bytes_read": task.bytes_read, "bytes_written": task.base.size, "free_disk": free,
        "memory": total, "working_memory": task.memory, "working_memory_used": task.peak, "misfits": misfits,
        "notes": task.notes, "fits": not misfits and free > task.base.size,
    }  # fmt: skip
    lines = [
        f"{count(len(task.clients), 'fine-tune')} of {request.base}: "
        f"{count(len(task.base.entries), 'tensor')}, {size(task.base.size)} each; rule {request.rule}",
        *(f"{number} {way}" for way, number in sorted(ways.items())),
        f"reads {size(task.bytes_read)} in all, writes {size(task.base.size)} ({size(free)} are free)",
        f"memory: {size(total - task.memory + min(task.peak, task.memory))} of {size(total)}",
        *task.notes,
    ]
    if free <= task.base.size:
        lines.append("does not fit: the disk")
    for name, wanted in sorted(misfits.items(), key=lambda item: -item[1])[:5]:
        lines.append(f"does not fit: {name!r} wants {size(wanted)}, {size(task.memory)} are left to work in")
    if len(misfits) > 5:
        lines.append(f"does not fit: {len(misfits) - 5} other tensors")
    return Outcome(payload, lines, status=0 if payload["fits"] else 1)


def _check_output(request: Request, sources: list[Path]) -> None:
    """Never write into what is read."""
    if request.output is None:
        return
    output = request.output.resolve()
    for source in sources:
        if output.is_relative_to(source.resolve()):
            raise ConfigError(f"-o {request.output} lies in {source}, which is read")


def _check_disk(request: Request, task: Task) -> None:
    free = _free_disk(request)
    if free <= task.base.size:
        raise WireError(
            f"{request.output}: the result takes {size(task.base.size)}, {size(free)} are free there"
        )


def _free_disk(request: Request) -> int:
    place = request.output.absolute() if request.output else Path.cwd()
    return shutil.disk_usage(next(path for path in (place, *place.parents) if path.is_dir())).free


def _device(name: str) -> str:
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name


def _card(request: Request, report: CheckpointReport) -> str:
    from fedmerge.wire.card import Card, card_text, public

    rows = _rows(report)
    chosen = {
        "base": request.base, "seed": request.seed, "tokenizer_from": request.tokenizer_from,
        "missing": request.missing if request.missing != "refuse" else "",
        "extra": request.extra if request.extra != "refuse" else "",
    }  # fmt: skip
    facts = {
        "rule": request.rule,
        "seed": str(request.seed),
        "length of the change over that of the base": percent(report.change),
        "share of the change that rounding took": percent(report.rounding),
    }
    card = Card(
        title=f"{len(report.models)} fine-tunes merged by {request.rule}",
        library="transformers",
        relation="merge",
        base=request.base,
        merged=request.models,
        command=request.recipe(**chosen),
        facts=facts | {f"note {place}": note for place, note in enumerate(report.notes, 1)},
        tables={"Merged models": [rows[0], *([public(row[0]), *row[1:]] for row in rows[1:])]},
        versions=versions("fedmerge", "torch", "safetensors"),
    )
    return card_text(card)
