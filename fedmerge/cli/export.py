"""`fedmerge export`: a run's adapter, or any, with a model card for the Hub; or folded into its base."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedmerge.cli.manner import Outcome, count, size
from fedmerge.cli.merging import versions
from fedmerge.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from fedmerge.adapters import Adapter
    from fedmerge.wire.card import Card

RUN_CONFIG, RESULT = "config.toml", "result.json"
LARGEST_FILE = 1 << 24
_TOLD = {
    "rule": "strategy.rule", "space": "strategy.space", "server optimizer": "strategy.server-optimizer",
    "rounds": "run.rounds", "seed": "run.seed", "task": "task.kind", "data": "data.source",
}  # fmt: skip
"""What a card tells of a run -> the key of its run-config."""


@dataclass(frozen=True)
class Run:
    """What a run's folder says of its adapter; empty for an adapter that no run left behind."""

    config: Mapping[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] = field(default_factory=dict)


def export(
    source: Annotated[str, typer.Argument(help="A run's folder, an adapter's, or a Hub id.", metavar="RUN")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="A new or an empty folder.", show_default=False)
    ],
    fold: Annotated[
        bool, typer.Option("--fold", help="Write the whole model: the base with the adapter folded in.")
    ] = False,
    base: Annotated[
        str, typer.Option(help="The base's folder or Hub id; default: what the adapter names.")
    ] = "",
) -> Outcome:
    """Write an adapter for the Hub, with a model card, or fold it into its base."""
    from fedmerge.cli.merge import refuse_filled
    from fedmerge.wire.card import card_text
    from fedmerge.wire.files import load_adapter, save_adapter

    refuse_filled(output)
    folder, run = find(source)
    adapter = load_adapter(folder)
    named = base or adapter.metadata.get("base_model", "")
    card = card_text(_card(source, adapter, run, named, fold))
    payload: dict[str, Any] = {"output": output.absolute(), "base_model": named, "folded": fold}
    if fold:
        written = _fold(adapter, named, base, output, card)
        told = f"{named} with {source} folded in: {output.absolute()} ({size(written)})"
        return Outcome(payload | {"bytes_written": written}, [told])
    save_adapter(adapter, output, base_model=named, card=card)
    told = f"the adapter of {source} with its model card: {output.absolute()}"
    return Outcome(payload | {"tensors": len(adapter.tensors)}, [told])


def find(source: str) -> tuple[str, Run]:
    """The adapter's folder, and what a run says of it.

    Raises:
        CheckpointError: a run that left no adapter, or files of it that can't be read.
    """
    folder = Path(source)
    if not (folder / RUN_CONFIG).is_file():
        return source, Run()
    if not (folder / "adapter").is_dir():
        raise CheckpointError(f"{folder} is a run without an adapter: it did not end")
    result = folder / RESULT
    return str(folder / "adapter"), Run(
        _read(folder / RUN_CONFIG, tomllib.loads), _read(result, json.loads) if result.is_file() else {}
    )


def _read(path: Path, parse: Any) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise CheckpointError(f"{path} has {path.stat().st_size} bytes, at most {LARGEST_FILE} are read")
        found = parse(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}, expected a table")
    return found


def _fold(adapter: Adapter, named: str, given: str, output: Path, card: str) -> int:
    """Write the whole model; returns its bytes."""
    from fedmerge.checkpoints import fold
    from fedmerge.cli.progress import working
    from fedmerge.wire.checkpoint import open_checkpoint

    if not named:
        raise ConfigError("the adapter does not name its base: give --base")
    base = open_checkpoint(base_folder(named))
    _check_fingerprint(adapter, base.folder, given)
    with working("folding", len(base.entries)) as watch:
        fold(adapter, base, output, files={"README.md": card.encode()}, advance=watch.advance)
    return base.size


def base_folder(named: str) -> str | Path:
    """A base as `open_checkpoint` takes it: the built-in one by its name."""
    from fedmerge.silo.base import BUILTIN

    return BUILTIN if named == "builtin" else named


def _check_fingerprint(adapter: Adapter, folder: Path, given: str) -> None:
    """Refuse another base than the adapter was trained on; shapes may fit by chance.

    Raises:
        ConfigError: the adapter's fingerprint is not the base's.
    """
    from fedmerge.silo.fingerprint import fingerprint_of

    wanted = adapter.metadata.get("fingerprint", "")
    if wanted and (found := fingerprint_of(folder)) != wanted:
        raise ConfigError(
            f"the adapter was trained on the base with fingerprint {wanted[:12]}, but "
            f"{given or folder} has {found[:12]}"
        )


def _card(source: str, adapter: Adapter, run: Run, base: str, fold: bool) -> Card:
    from fedmerge.wire.card import Card

    told = adapter.metadata
    facts = {label: str(value) for label, value in told.items() if label in ("rule", "space", "private")}
    facts |= {
        label: str(value) for label, key in _TOLD.items() if (value := _at(run.config, key)) not in (None, "")
    }
    if adapter.lora is not None:
        facts["LoRA"] = f"rank {adapter.lora.rank}, alpha {adapter.lora.alpha:g}" + (
            ", rsLoRA" if adapter.lora.rslora else ""
        )
    if told.get("fingerprint"):
        facts["fingerprint of the base"] = told["fingerprint"]
    silos = run.result.get("silos") or []
    name = str(_at(run.config, "run.name") or Path(source).name)
    what = f"{name}: {count(len(silos), 'silo')} merged by fedmerge" if silos else f"{name}: a LoRA adapter"
    return Card(
        title=f"{what}, folded into its base" if fold else what,
        library="transformers" if fold else "peft",
        relation="merge" if fold else "adapter",
        base=base,
        command=["fedmerge", "export", source, *(["--fold"] if fold else []), "-o", "exported"],
        facts=facts,
        tables=_scores(run.result),
        versions=versions("fedmerge", "flwr", "torch", "transformers", "peft"),
    )


def _at(config: Mapping[str, Any], key: str) -> Any:
    """A value of the run-config, flat or in tables."""
    if key in config:
        return config[key]
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _scores(result: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """The run's table of scores."""
    if not result.get("candidates"):
        return {}
    from fedmerge.cli.table import score_table

    table = score_table(result)
    rows = [["", *table.columns]]
    for row in table.rows:
        rows.append([row.label, *("-" if score is None else f"{score:.4f}" for score in row.scores)])
    return {f"Scores: {table.title}": rows}
