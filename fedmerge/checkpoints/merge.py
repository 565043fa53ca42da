"""Whole checkpoints merged out of core: deltas of a base, a rule, and a new checkpoint, tensor by tensor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fedmerge.checkpoints.arithmetic import Arithmetic, Tally
from fedmerge.checkpoints.carried import carried, tokenizers_differ
from fedmerge.checkpoints.deltas import Deltas
from fedmerge.checkpoints.kernel import BYTES, chosen, served
from fedmerge.checkpoints.report import CheckpointReport, report_of
from fedmerge.checkpoints.task import Task
from fedmerge.checkpoints.together import Policy, check_fit, check_related, clients_of
from fedmerge.checkpoints.treatment import Treatment, Way, treat
from fedmerge.checkpoints.trim import split_trim
from fedmerge.errors import AdapterMismatch, ConfigError, RuleError
from fedmerge.rules import Rule, parse_rule
from fedmerge.rules.negation import check_there, negated_by
from fedmerge.wire.checkpoint import Checkpoint
from fedmerge.wire.checkpoint_writer import SHARD_BYTES, shards_of, write_checkpoint

REFUSE = Policy()


def prepare(
    models: Mapping[str, Checkpoint],
    base: Checkpoint,
    *,
    weights: Sequence[float] | None = None,
    rule: Rule | str = "fedavg()",
    names: Sequence[str] | None = None,
    memory: int = 2 << 30,
    policy: Policy = REFUSE,
    device: torch.device | str = "cpu",
    kernel: str = "auto",
) -> Task:
    """Check that fine-tunes fit their base and choose how each tensor is merged; nothing large is read.

    Args:
        models: what to call a fine-tune -> its headers.
        base: what they were trained from.
        weights: raw weights, one for each; None: all alike. Weight 0 drops a fine-tune.
        rule: how to merge.
        names: which random masks depend on; None: names out of the contents.
        memory: working bytes, over what the process takes already.
        policy: what becomes of tensors that not all have.
        device: where the rule runs; tiles travel there and back.
        kernel: "plain" for the composition of a rule's stages, "numba" for fused kernels, "auto" for these
            where they pay; the bits are the same.

    Returns:
        The task; its `misfits` say which tensors the memory is too small for.

    Raises:
        AdapterMismatch: checkpoints that do not belong together.
        RuleError: rule, weights or names that can't be used.

    Example:
        >>> import tempfile
        >>> from fedmerge.wire import checkpoint, tensorfile
        >>> def saved(folder, value):
        ...     Path(folder).mkdir()
        ...     tensorfile.write_tensors(Path(folder, "model.safetensors"), {"x": torch.full((2,), value)})
        ...     return checkpoint.open_checkpoint(folder)
        >>> with tempfile.TemporaryDirectory() as place:
        ...     base, one, two = (saved(f"{place}/{value}", value) for value in (1.0, 2.0, 5.0))
        ...     task = prepare({"one": one, "two": two}, base, weights=[3, 1])
        ...     report = merge_checkpoints(task, Path(place, "merged"))
        ...     checkpoint.open_checkpoint(f"{place}/merged").read("x").tolist()
        [2.75, 2.75]
    """
    if not models:
        raise AdapterMismatch("no fine-tune was given, expected at least one")
    rule = parse_rule(rule) if isinstance(rule, str) else rule
    clients = clients_of(models, weights, names)
    check_there(sorted(negated_by(rule)), [client.name for client in clients])
    notes: list[str] = []
    for client in clients:
        notes += check_fit(client.label, client.checkpoint, base, policy)
        check_related(client.label, client.checkpoint, base)
        differ = tokenizers_differ(base.folder, client.checkpoint.folder)
        if differ:
            notes.append(
                f"{client.label} has another {differ[0]} than the base, whose tokenizer is carried along"
            )
    treatments = treat(rule, base.entries.values())
    place = _device(device)
    values = len(clients) * sum(entry.coordinates for entry in base.entries.values())
    used = (
        chosen(kernel, place, values, memory) if served(_tiled(treatments)) else chosen("plain", place, 0, 0)
    )
    left = memory - BYTES if used == "numba" else memory
    return Task(base, clients, rule, treatments, left, place, used, tuple(notes), len(models) - len(clients))


def _tiled(treatments: Mapping[str, Treatment]) -> set[Rule]:
    """The rules that tiles are merged by, a trim before them apart."""
    rules = set()
    for treatment in treatments.values():
        if treatment.rule is not None and treatment.way in (Way.TILES, Way.TRIM):
            parts = split_trim(treatment.rule)
            rules.add(treatment.rule if parts is None else parts[1])
    return rules


def merge_checkpoints(
    task: Task,
    output: Path,
    *,
    seed: int = 0,
    shard_bytes: int = SHARD_BYTES,
    tokenizer: Path | None = None,
    card: Callable[[CheckpointReport], str] | None = None,
    advance: Callable[[str], None] = lambda name: None,
) -> CheckpointReport:
    """Write `base + rule(fine-tunes - base)`, each value rounded once to the base's dtype.

    The same bits whatever the memory and the order of the fine-tunes. The folder appears whole or not at all.

    Args:
        task: from `prepare`.
        output: a folder that does not exist, or an empty one.
        seed: of random masks.
        shard_bytes: largest file, unless a single tensor is larger.
        tokenizer: folder to take the tokenizer from; None: the base's.
        card: the README.md, from the report.
        advance: told each tensor's name when it is written.

    Returns:
        What happened.

    Raises:
        ConfigError: the memory is too small for a tensor.
        AdapterMismatch: NaN, Inf, or an overflow.
        WireError: a file that can't be read, or a folder that can't be written.
    """
    began = time.perf_counter()
    _check_memory(task)
    others = carried(task.base.folder, tokenizer)
    count = len(task.clients)
    tally = Tally(torch.zeros(count, count, dtype=torch.float64))
    arithmetic = Arithmetic(
        Deltas(task.base, task.clients), task.treatments, task.memory, seed, task.device, tally, task.kernel
    )
    shards = shards_of(task.base.entries.values(), shard_bytes)
    reports: list[CheckpointReport] = []

    def files() -> dict[str, bytes]:
        reports.append(report_of(task, tally, time.perf_counter() - began))
        return others | ({"README.md": card(reports[0]).encode()} if card else {})

    write_checkpoint(output, shards, lambda name: _watched(arithmetic, name, advance), files)
    return reports[0]


def _watched(arithmetic: Arithmetic, name: str, advance: Callable[[str], None]) -> Iterator[Tensor]:
    yield from arithmetic.values(name)
    advance(name)


def _check_memory(task: Task) -> None:
    misfits = task.misfits
    if misfits:
        name = max(misfits, key=lambda name: misfits[name])
        raise ConfigError(
            f"{name!r} of {len(task.clients)} fine-tunes wants {misfits[name]} bytes under "
            f"{task.treatments[name].rule} ({task.treatments[name].way.value}), {task.memory} are left "
            "to work in" + (f"; so do {len(misfits) - 1} other tensors" if len(misfits) > 1 else "")
        )


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise RuleError(f"device {device!r}: expected 'cpu', 'cuda' or 'cuda:1'") from error
