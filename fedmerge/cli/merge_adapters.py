"""Adapters on disk to one adapter on disk."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmerge.cli.manner import Outcome, count, size
from fedmerge.cli.merging import Request, geometry_rows, percent, table, versions
from fedmerge.errors import AdapterMismatch, ConfigError, WireError

if TYPE_CHECKING:
    from fedmerge.adapters import Adapter
    from fedmerge.adapters.geometry import Geometry
    from fedmerge.adapters.merge import Merged
    from fedmerge.wire.checkpoint import Checkpoint

DEFAULT_SPACE = "product()"
"""Adapters trained apart have no factors in common: the product of their mean factors has a relative error of
.93 against the mean of their updates. The updates themselves can be compared whatever the factors, and what a
rank can't hold of the merged one is told."""


def run(request: Request) -> Outcome:
    """Merge adapters, or say what that would take."""
    from fedmerge.cli.merge import check_heads, common_base
    from fedmerge.wire.files import load_adapter

    request = replace(request, space=request.space or DEFAULT_SPACE)
    loaded = [load_adapter(model, fetch=not request.dry_run) for model in request.models]
    base = common_base(request.models, loaded, request.base)
    check_heads(request.models, loaded)
    _check_together(request, loaded)
    start = _base_for_whole_weights(request, loaded, base)
    if request.dry_run:
        return _told(request, loaded, base)
    return _merged(request, loaded, base, start)


def _merged(
    request: Request, loaded: list[Adapter], base: str, start: tuple[Checkpoint, list[str]] | None
) -> Outcome:
    import fedmerge
    from fedmerge.adapters import geometry
    from fedmerge.checkpoints import less_base, plus_base

    assert request.output is not None
    deltas = less_base(loaded, start[1], start[0]) if start else loaded
    merged = fedmerge.merge(
        deltas,
        request.weights,
        finite=True,
        rule=request.rule,
        space=request.space,
        names=request.names,
        seed=request.seed,
        device=request.device,
        kernel=request.kernel,
    )
    adapter = merged.adapter
    if start:
        adapter = plus_base(adapter, {name: loaded[0].tensors[name].dtype for name in start[1]}, start[0])
    metadata = {key: text for key, text in adapter.metadata.items() if key != "round"}
    adapter = replace(adapter, metadata=metadata | {"rule": request.rule, "space": request.space})
    shape = geometry.compare(deltas, request.weights)
    rows = geometry_rows(
        request.models, request.shares, {"norm": shape.norms, "influence": shape.influence}, shape.cosines
    )
    card = _card(request, base, merged, shape, rows)
    fedmerge.save_adapter(adapter, request.output, base_model=base, card=card)
    payload = _payload(request, base, adapter, merged, shape)
    what = f"{count(len(loaded), 'adapter')} merged by {request.rule} in {request.space}"
    told = f"{what}: {request.output.absolute()}"
    return Outcome(payload, ["", table(rows), "", *energy_lines(merged, loaded), told])


def _payload(
    request: Request, base: str, adapter: Adapter, merged: Merged, shape: Geometry
) -> dict[str, Any]:
    """What `--json` tells of a merge."""
    return {
        "adapter": None if request.output is None else request.output.absolute(),
        "base_model": base,
        "rule": request.rule,
        "space": request.space,
        "weights": request.shares,
        "tensors": len(adapter.tensors),
        "rank": adapter.lora.rank if adapter.lora else None,
        "geometry": asdict(shape),
        "report": asdict(merged.report),
    }


def energy_lines(merged: Merged, loaded: Sequence[Adapter]) -> list[str]:
    """What a truncation left out, and what would leave out nothing."""
    report = merged.report
    if not report.discarded:
        return []
    worst = max(report.discarded, key=lambda name: report.discarded[name])
    share = report.discarded_total
    line = (
        f"rank {merged.rank} leaves out {percent(share)} of the merged update's energy "
        f"(at most {percent(report.discarded[worst])}, in {worst})"
    )
    if share < 0.01:
        return [line]
    full = sum(adapter.lora.rank for adapter in loaded if adapter.lora)
    return [f"{line}; --space 'product(rank={full})' keeps all of a mean, a rank between keeps more"]


def _check_together(request: Request, loaded: Sequence[Adapter]) -> None:
    """Raise where adapters do not fit each other, by the names that the user gave them."""
    from fedmerge.adapters.checks import check_together
    from fedmerge.adapters.spaces import parse_space

    mixed = parse_space(request.space).mixed_ranks
    counted = {
        model: adapter
        for model, adapter, weight in zip(request.models, loaded, request.shares, strict=True)
        if weight != 0
    }
    ranks = sorted({adapter.lora.rank for adapter in counted.values() if adapter.lora})
    if len(ranks) > 1 and not mixed:
        raise AdapterMismatch(
            f"the adapters have ranks {ranks}, which {request.space} can't join; product() can"
        )
    if counted:
        check_together(None, counted, mixed_ranks=mixed)


def _base_for_whole_weights(
    request: Request, loaded: Sequence[Adapter], base: str
) -> tuple[Checkpoint, list[str]] | None:
    """The base, and which whole weights (PEFT's modules_to_save) are to be taken as differences to it."""
    from fedmerge.adapters.checks import check_weights
    from fedmerge.checkpoints import wanting_base
    from fedmerge.rules import parse_rule
    from fedmerge.wire.checkpoint import open_checkpoint

    weights = [weight for weight in check_weights(request.weights, len(loaded)) if weight > 0]
    names = wanting_base(loaded[0], parse_rule(request.rule), weights)
    if not names:
        return None
    try:
        return open_checkpoint(request.base or base, fetch=bool(request.base) and not request.dry_run), names
    except (ConfigError, WireError) as error:
        raise AdapterMismatch(
            f"{names[0]!r} is a whole weight and no update; {request.rule} needs its difference to the base: "
            f"give --base, or a rule with fixed coefficients that sum to 1, such as fedavg() ({error})"
        ) from None


def _told(request: Request, loaded: Sequence[Adapter], base: str) -> Outcome:
    """What a merge would read, make and need."""
    from fedmerge.adapters.pairs import split_names

    ranks = sorted({adapter.lora.rank for adapter in loaded if adapter.lora})
    pairs, others = split_names(loaded[0].tensors)
    inputs = sum(tensor.nbytes for adapter in loaded for tensor in adapter.tensors.values())
    largest = max((tensor.nbytes for tensor in loaded[0].tensors.values()), default=0)
    place = request.output.absolute().parent if request.output else Path.cwd()
    free = shutil.disk_usage(next(path for path in (place, *place.parents) if path.is_dir())).free
    written = max(sum(tensor.nbytes for tensor in adapter.tensors.values()) for adapter in loaded)
    payload = {
        "kind": "adapter", "models": request.models, "weights": request.shares, "base_model": base,
        "rule": request.rule, "space": request.space, "ranks": ranks, "lora_pairs": len(pairs),
        "other_tensors": len(others), "bytes_read": inputs, "bytes_written": written,
        "free_disk": free, "fits": free > written,
    }  # fmt: skip
    lines = [
        f"{count(len(loaded), 'adapter')} of rank {', '.join(map(str, ranks)) or 'none'}: "
        f"{count(len(pairs), 'LoRA pair')}, {count(len(others), 'other tensor')}; base {base or 'not named'}",
        f"rule {request.rule}, space {request.space}, weights {', '.join(f'{w:g}' for w in request.shares)}",
        f"reads {size(inputs)}, writes about {size(written)} at the present rank ({size(free)} are free)",
        f"memory: the adapters, the result, and the work on one layer (factors of {size(largest)} at most)",
    ]
    return Outcome(payload, lines, status=0 if free > written else 1)


def _card(request: Request, base: str, merged: Merged, shape: Geometry, rows: Sequence[Sequence[str]]) -> str:
    from fedmerge.wire.card import Card, card_text, public

    report = merged.report
    facts = {"rule": request.rule, "space": request.space, "seed": str(request.seed)}
    if report.discarded:
        facts[f"energy left out at rank {merged.rank}"] = percent(report.discarded_total)
    if shape.sign_conflict is not None:
        facts["coordinates of the factors with opposite signs"] = percent(shape.sign_conflict)
    card = Card(
        title=f"{len(request.models)} adapters merged by {request.rule}",
        library="peft",
        relation="adapter",
        base=base,
        merged=request.models,
        command=request.recipe(space=request.space, base=request.base, seed=request.seed),
        facts=facts,
        tables={"Merged adapters": [rows[0], *([public(row[0]), *row[1:]] for row in rows[1:])]},
        versions=versions("fedmerge", "torch", "safetensors"),
    )
    return card_text(card)
