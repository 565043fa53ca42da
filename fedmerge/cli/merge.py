"""`fedmerge merge`: adapters on disk to one adapter, or whole checkpoints to one checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmerge.cli.manner import Outcome, count
from fedmerge.cli.merging import Request, kind_of
from fedmerge.errors import AdapterMismatch, ConfigError
from fedmerge.study.admission import has_head, labels_of

if TYPE_CHECKING:
    from fedmerge.adapters import Adapter

_CHECKPOINTS = "whole checkpoints only"


def merge(
    models: Annotated[
        list[str],
        typer.Argument(help="Adapters, or whole fine-tunes: folders or Hub ids.", metavar="MODEL..."),
    ],
    *,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="A new or an empty folder.", show_default=False)
    ] = None,
    rule: Annotated[str, typer.Option(help="How to merge, such as 'ties(density=0.2)'.")] = "fedavg()",
    space: Annotated[
        str,
        typer.Option(
            help="Where adapters are compared; default: 'product()', the true updates of the weights."
        ),
    ] = "",
    weights: Annotated[str, typer.Option(help="A number for each, '120,80'; default: all alike.")] = "",
    names: Annotated[
        str, typer.Option(help="A name for each, which random masks depend on; default: from the contents.")
    ] = "",
    base: Annotated[
        str,
        typer.Option(help="Their base: for whole checkpoints a folder or Hub id; for adapters also a name."),
    ] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of rules that draw at random.")] = 0,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda' or 'cuda:1'.")] = "auto",
    kernel: Annotated[str, typer.Option(help="'plain' for the reference, 'auto' for the fastest.")] = "auto",
    memory: Annotated[
        str,
        typer.Option(
            help=f"'2GB': what the process may take ({_CHECKPOINTS}); default: half of what is free."
        ),
    ] = "",
    missing: Annotated[
        str,
        typer.Option(
            help=f"Of a tensor that a fine-tune lacks: 'refuse', or 'base': unchanged ({_CHECKPOINTS})."
        ),
    ] = "refuse",
    extra: Annotated[
        str, typer.Option(help=f"Of a tensor that the base lacks: 'refuse' or 'drop' ({_CHECKPOINTS}).")
    ] = "refuse",
    tokenizer_from: Annotated[
        str, typer.Option(help=f"Folder to take the tokenizer from; default: the base's ({_CHECKPOINTS}).")
    ] = "",
    shard_size: Annotated[str, typer.Option(help=f"Largest file written ({_CHECKPOINTS}).")] = "5GB",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be merged and what it needs; write nothing.")
    ] = False,
) -> Outcome:
    """Merge adapters or whole checkpoints that lie on disk, without any training."""
    if len(models) < 2:
        raise ConfigError(f"{count(len(models), 'adapter')} given, expected two or more")
    if output is None and not dry_run:
        raise ConfigError("no -o/--output is given: a new or an empty folder to write into")
    if output is not None:
        refuse_filled(output)
    request = Request(
        models=tuple(models),
        output=output,
        rule=rule,
        space=space,
        weights=parse_weights(weights, len(models)),
        names=parse_names(names, len(models)),
        base=base,
        seed=seed,
        device=device,
        kernel=kernel,
        memory=memory,
        missing=missing,
        extra=extra,
        tokenizer_from=tokenizer_from,
        shard_size=shard_size,
        dry_run=dry_run,
    )
    if kind_of(request) == "adapter":
        from fedmerge.cli import merge_adapters

        return merge_adapters.run(request)
    from fedmerge.cli import merge_checkpoints

    return merge_checkpoints.run(request)


def parse_names(text: str, models: int) -> list[str] | None:
    """Names from text, None where none are given.

    Raises:
        ConfigError: not as many as there are models, or one of them twice.

    Example:
        >>> parse_names("north, south", 2)
        ['north', 'south']
    """
    if not text.strip():
        return None
    names = [part.strip() for part in text.split(",")]
    if len(names) != models or len(set(names)) != models or not all(names):
        raise ConfigError(f"--names {text!r}: expected {models} different names with commas between")
    return names


def parse_weights(text: str, adapters: int) -> list[float] | None:
    """Weights as numbers, None where none are given.

    Raises:
        ConfigError: not numbers, or not as many as there are adapters.

    Example:
        >>> parse_weights("120, 80", 2)
        [120.0, 80.0]
    """
    if not text.strip():
        return None
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(
            f"--weights {text!r}: expected numbers with commas between, such as '120,80'"
        ) from None
    if len(numbers) != adapters:
        given = f"{count(len(numbers), 'weight')} for {count(adapters, 'adapter')}"
        raise ConfigError(f"--weights {text!r}: {given}, expected one for each")
    return numbers


def refuse_filled(folder: Path) -> None:
    """Never write into a folder that holds something.

    Raises:
        ConfigError: `folder` is a file, or a folder with anything in it.
    """
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise ConfigError(f"{folder}: there is something already; expected a new or an empty folder")


def common_base(names: Sequence[str], adapters: Sequence[Adapter], given: str = "") -> str:
    """The base model of all adapters; those that name none go along.

    Args:
        names: of the adapters, for the sentence.
        adapters: as loaded.
        given: what the base is called, where the same base has several names.

    Raises:
        AdapterMismatch: they were trained on different bases, so their deltas do not add up.
    """
    for key in ("fingerprint", "base_model"):
        told = {name: adapter.metadata.get(key, "") for name, adapter in zip(names, adapters, strict=True)}
        known = {name: value for name, value in told.items() if value}
        if len(set(known.values())) > 1 and not (given and key == "base_model"):
            listed = ", ".join(f"{name} on {value[:60]!r}" for name, value in known.items())
            raise AdapterMismatch(f"the adapters were trained on different bases: {listed}")
    return given or next(iter(known.values()), "")


def check_heads(names: Sequence[str], adapters: Sequence[Adapter]) -> None:
    """Refuse heads that were trained on other labels: they may fit, and no output would mean a label.

    Args:
        names: of the adapters, for the sentence.
        adapters: as loaded; those without a head, or that name no labels, go along.

    Raises:
        AdapterMismatch: two heads with other labels, or the same in another order.
    """
    told = {
        name: labels_of(adapter) for name, adapter in zip(names, adapters, strict=True) if has_head(adapter)
    }
    known = [(name, labels) for name, labels in told.items() if labels]
    for name, labels in known[1:]:
        first, expected = known[0]
        if labels != expected:
            raise AdapterMismatch(
                f"the heads were trained on different labels: {first} on {len(expected)} ({expected[0]!r} "
                f"first), {name} on {len(labels)} ({labels[0]!r} first)"
            )
