"""Silos: a source's rows, cut into splits and shared out by a partition.

    read_splits -> missing splits cut from train -> rows_per_label -> partition -> data.silos -> max_rows

Every choice is drawn from `data.seed` by the rows' numbers, so equal settings and files give equal silos.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedmerge.errors import ConfigError, nearest
from fedmerge.silo.columns import Row, Rows, checked, labels_of, required_columns
from fedmerge.silo.dealing import generator
from fedmerge.silo.entries import load_entry
from fedmerge.silo.partition import parse_partition
from fedmerge.silo.settings import DataSettings
from fedmerge.silo.sources import BUILTIN, SPLITS, chosen_names, read_splits

__all__ = [
    "Row",
    "Rows",
    "SiloData",
    "agreed_labels",
    "labels_of",
    "load_own",
    "load_silos",
    "pooled",
    "required_columns",
]

GROUP = "fedmerge.data"
"""Entry point group: name -> function of DataSettings that returns {silo name: SiloData}."""

_ENTRY = "entry:"


@dataclass(frozen=True)
class SiloData:
    """The rows of one silo.

    Args:
        name: of the silo.
        train: at least one row.
        validation: may be empty.
        test: may be empty.
    """

    name: str
    train: Rows
    validation: Rows
    test: Rows


def load_silos(settings: DataSettings) -> dict[str, SiloData]:
    """All silos of a simulation.

    Returns:
        Name -> rows, sorted by name; each silo has train rows, its other splits may be empty.

    Raises:
        ConfigError: the source, a column, the partition or a silo is missing or can't be used.

    Example:
        >>> silos = load_silos(DataSettings("builtin", silos="xml, asyncio"))
        >>> list(silos), sorted(silos["xml"].train[0])
        (['asyncio', 'xml'], ['name', 'silo', 'text'])
    """
    if settings.source.startswith(_ENTRY):
        silos = _chosen(_from_entry(settings), settings)
    else:
        partition = parse_partition(_partition_text(settings))
        splits = _prepared(settings)
        assigned = partition(splits, settings.label, settings.seed)
        silos = {
            name: SiloData(name, *([splits[split][number] for number in rows[split]] for split in SPLITS))
            for name, rows in assigned.items()
        }
        # The built-in source has taken data.silos already, for what to read.
        silos = silos if settings.source == BUILTIN else _chosen(silos, settings)
    if empty := [name for name, silo in sorted(silos.items()) if not silo.train]:
        raise ConfigError(
            f"{len(empty)} of {len(silos)} silos have no train rows: {', '.join(empty[:10])}; "
            "leave them out by data.silos, or by(column=..., least=1) in data.partition"
        )
    return {name: _capped(silos[name], settings.max_rows) for name in sorted(silos)}


def load_own(settings: DataSettings, node_config: Mapping[str, str | int | float | bool]) -> SiloData:
    """The rows of a deployed silo, from the source that its own node names.

    Args:
        settings: as sent by the server; source, partition and silos are not used: which data a silo opens
            is decided where the data lies.
        node_config: Flower's, with "silo" (name) and "data" (any `data.source`).

    Raises:
        ConfigError: a key is missing, or the source can't be used.
    """
    values = {key: str(node_config.get(key, "")).strip() for key in ("silo", "data")}
    if missing := [key for key, value in values.items() if not value]:
        raise ConfigError(
            f"this node's configuration lacks {' and '.join(missing)}; start it with flower-supernode "
            """--node-config 'silo="hospital-a" data="/srv/hospital-a.jsonl"'"""
        )
    name = values["silo"]
    own = dataclasses.replace(settings, source=values["data"], partition="", silos="")
    if own.source == BUILTIN:
        own = dataclasses.replace(own, silos=name)
    if own.source.startswith(_ENTRY):
        silo = _chosen(_from_entry(own), dataclasses.replace(own, silos=name))[name]
    else:
        splits = _prepared(own)
        silo = SiloData(name, *(splits[split] for split in SPLITS))
    return _capped(silo, own.max_rows)


def pooled(silos: Mapping[str, SiloData]) -> SiloData:
    """All silos' rows together, in the order of their names."""
    ordered = [silos[name] for name in sorted(silos)]
    return SiloData(
        "pooled", *([row for silo in ordered for row in getattr(silo, split)] for split in SPLITS)
    )


def agreed_labels(settings: DataSettings, cards: Iterable[Mapping[str, Any]]) -> list[str]:
    """The labels that all silos use, in the order of the head's outputs.

    Args:
        settings: `labels` is "a,b,c", or the path of a text file (a label a line) or JSON file (a list);
            "" takes the sorted union over the silos.
        cards: what silos say of themselves: "name", and "labels", a list or None where a silo doesn't tell.

    Returns:
        Labels as text; none where the data has no label column.

    Raises:
        ConfigError: the labels can't be read, a silo has a label outside of them, or none are known.

    Example:
        >>> cards = [{"name": "a", "labels": ["up"]}, {"name": "b", "labels": ["down"]}]
        >>> agreed_labels(DataSettings("rows.csv", label="direction"), cards)
        ['down', 'up']
    """
    if not settings.label:
        return []
    cards = list(cards)
    if not settings.labels:
        if silent := [str(card.get("name")) for card in cards if card.get("labels") is None]:
            raise ConfigError(f"data.labels is empty, and these silos don't tell theirs: {', '.join(silent)}")
        return sorted({label for card in cards for label in card["labels"]})
    labels = _listed_labels(settings.labels)
    for card in cards:
        if unknown := sorted(set(card.get("labels") or ()) - set(labels)):
            raise ConfigError(
                f"silo {card.get('name')!r} has the label {unknown[0]!r}, which data.labels lacks; "
                f"{nearest(unknown[0], labels)}"
            )
    return labels


def _listed_labels(text: str) -> list[str]:
    path = Path(text).expanduser()
    if text.endswith((".txt", ".json")) or ("," not in text and path.is_file()):
        labels = _labels_in(path)
    else:
        labels = [label.strip() for label in text.split(",")]
    if not all(labels) or len(set(labels)) < len(labels) or not labels:
        raise ConfigError(f"data.labels = {text!r}: expected labels that differ and are not empty")
    return labels


def _labels_in(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        labels = json.loads(text) if path.suffix == ".json" else text.splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"data.labels = {str(path)!r}: can't be read ({error})") from None
    if not isinstance(labels, list) or not all(isinstance(label, str | int) for label in labels):
        raise ConfigError(f"data.labels = {str(path)!r}: expected a JSON list of labels")
    return [str(label).strip() for label in labels if str(label).strip()]


def _partition_text(settings: DataSettings) -> str:
    text = settings.partition or ("by(column='silo')" if settings.source == BUILTIN else "")
    if not text:
        raise ConfigError(
            f"data.partition is empty, but data.source = {settings.source!r} doesn't say which silo has "
            "which row; set it to by(column='...'), iid(silos=8), dirichlet(alpha=0.1, silos=10) or "
            "shards(labels=2, silos=10)"
        )
    return text


def _prepared(settings: DataSettings) -> dict[str, Rows]:
    """All three splits: train shuffled, missing ones cut from it, rows_per_label applied."""
    found = read_splits(settings)
    order = generator(settings.seed, "order").permutation(len(found["train"]))
    train = [found["train"][number] for number in order]
    for split, share in (("test", settings.test), ("validation", settings.validation)):
        if split not in found:
            # Shares are of all train rows; a share above 0 gives at least one row.
            count = max(round(share * len(order)), 1 if share else 0)
            found[split], train = train[:count], train[count:]
    if not train:
        raise ConfigError(
            f"data.source = {settings.source!r} has {len(order)} rows: none is left to train on without "
            f"data.validation = {settings.validation} and data.test = {settings.test}"
        )
    return {**found, "train": _first_of_each_label(train, settings)}


def _first_of_each_label(rows: Rows, settings: DataSettings) -> Rows:
    if not settings.rows_per_label:
        return rows
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row[settings.label]] += 1
        if seen[row[settings.label]] <= settings.rows_per_label:
            kept.append(row)
    return kept


def _chosen(silos: Mapping[str, SiloData], settings: DataSettings) -> dict[str, SiloData]:
    names = chosen_names(settings) or list(silos)
    for name in names:
        if name not in silos:
            raise ConfigError(f"data.silos: no silo {name!r}; {nearest(name, silos)}")
    return {name: silos[name] for name in names}


def _capped(silo: SiloData, most: int) -> SiloData:
    return dataclasses.replace(silo, train=silo.train[:most]) if most else silo


def _from_entry(settings: DataSettings) -> dict[str, SiloData]:
    """The silos of another package's loader, in its own order of rows; checked like any other source."""
    if settings.partition:
        raise ConfigError(
            f"data.partition = {settings.partition!r}: expected nothing, {settings.source!r} gives silos"
        )
    name = settings.source.removeprefix(_ENTRY)
    silos = load_entry(GROUP, name, "data.source")(settings)
    if not isinstance(silos, Mapping) or not all(isinstance(silo, SiloData) for silo in silos.values()):
        raise ConfigError(f"data.source = {settings.source!r}: the loader must return {{name: SiloData}}")
    result = {}
    for name, silo in silos.items():
        where = f"data.source = {settings.source!r}, silo {name!r}"
        rows = (checked(getattr(silo, split), settings, f"{where}, {split} split") for split in SPLITS)
        result[str(name)] = SiloData(str(name), *rows)
    return result
