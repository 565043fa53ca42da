"""`fedmerge merge`: adapters on disk to one adapter on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedmerge.cli.evaluate import has_head, labels_of
from fedmerge.cli.manner import Outcome, count
from fedmerge.errors import AdapterMismatch, ConfigError

if TYPE_CHECKING:
    from fedmerge.adapters import Adapter


def merge(
    adapters: Annotated[list[str], typer.Argument(help="Adapter folders, or Hub ids.", metavar="ADAPTER...")],
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="A new or an empty folder.")],
    rule: Annotated[str, typer.Option(help="How to merge, such as 'ties(density=0.2)'.")] = "fedavg()",
    space: Annotated[str, typer.Option(help="Where: 'factors()' or 'product()'.")] = "factors()",
    weights: Annotated[str, typer.Option(help="A number for each, '120,80'; default: all alike.")] = "",
    base: Annotated[str, typer.Option(help="Their base, where they name one base differently.")] = "",
    seed: Annotated[int, typer.Option(min=0, help="Of rules that draw at random.")] = 0,
) -> Outcome:
    """Merge adapters that lie on disk, without any training."""
    if len(adapters) < 2:
        raise ConfigError(f"{count(len(adapters), 'adapter')} given, expected two or more")
    shares = parse_weights(weights, len(adapters))
    refuse_filled(output)
    import fedmerge

    loaded = [fedmerge.load_adapter(adapter) for adapter in adapters]
    base = common_base(adapters, loaded, base)
    check_heads(adapters, loaded)
    merged = fedmerge.merge(loaded, shares, rule=rule, space=space, seed=seed)
    metadata = {key: text for key, text in merged.adapter.metadata.items() if key != "round"}
    adapter = replace(merged.adapter, metadata=metadata | {"rule": rule, "space": space})
    fedmerge.save_adapter(adapter, output, base_model=base)
    payload = {
        "adapter": output.absolute(),
        "base_model": base,
        "rule": rule,
        "space": space,
        "weights": shares or [1.0] * len(adapters),
        "tensors": len(adapter.tensors),
        "report": asdict(merged.report),
    }
    told = f"{count(len(adapters), 'adapter')} merged by {rule} in {space}: {output.absolute()}"
    return Outcome(payload, [told])


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
