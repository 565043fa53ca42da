"""Partitions: how the rows of one data set become silos, written as text.

    iid(silos=8)                     equal shares of everything
    dirichlet(alpha=0.1, silos=10)   each label's rows by shares drawn from a Dirichlet distribution
    shards(labels=2, silos=10)       each silo owns that many labels
    by(column="domain")              one silo for each value of a column

A partition is cut once for all splits: the shares of a label, or its owners, are the same in train,
validation and test. Each row goes to exactly one silo, so that the silos' test rows together are the
whole test split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from fedmerge.errors import ConfigError, RuleError, nearest
from fedmerge.silo.columns import Rows, column_values
from fedmerge.silo.dealing import Assignment, Shares, deal, generator
from fedmerge.silo.entries import entry_names, load_entry
from fedmerge.text import build, parse_call, render

GROUP = "fedmerge.partitions"
"""Entry point group: name -> function that makes a `Partition` from literals."""


class Partition(Protocol):
    """Cuts all splits of a data set into silos."""

    def __call__(self, splits: Mapping[str, Rows], label: str, seed: int) -> Assignment:
        """Assign rows to silos.

        Args:
            splits: "train", "validation" and "test"; the latter two may be empty.
            label: column of the label, "" without one.
            seed: equal seeds and rows give equal silos.

        Returns:
            For each silo and split the numbers of its rows.
        """
        ...


@dataclass(frozen=True)
class Iid:
    """Equal shares of shuffled rows; sizes differ by one row at most.

    Args:
        silos: number of silos.

    Raises:
        ConfigError: when made with a number below 1; when called with fewer train rows than silos.

    Example:
        >>> rows = [{"text": str(number)} for number in range(4)]
        >>> {silo: len(of["train"]) for silo, of in Iid(silos=2)({"train": rows}, "", seed=0).items()}
        {'silo-00': 2, 'silo-01': 2}
    """

    silos: int = 8

    def __post_init__(self) -> None:
        _whole(self, "silos")

    def __str__(self) -> str:
        return render("iid", asdict(self))

    def __call__(self, splits: Mapping[str, Rows], label: str, seed: int) -> Assignment:
        """Assign rows to silos; see `Partition`."""
        groups = {split: {"": list(range(len(rows)))} for split, rows in splits.items()}
        return deal(groups, {"": np.full(self.silos, 1 / self.silos)}, str(self), seed)


@dataclass(frozen=True)
class Dirichlet:
    """Skewed labels: the rows of each label are shared out by shares drawn from Dirichlet(alpha, ..., alpha).

    A silo that the draw leaves without train rows takes one from the silo with most.

    Args:
        alpha: concentration, above 0: 0.1 gives a label to few silos, 100 to all of them alike.
        silos: number of silos.

    Raises:
        ConfigError: a knob is out of range; called without a label column, or with fewer
            train rows than silos.

    Reference:
        Hsu, Qi, Brown: "Measuring the Effects of Non-Identical Data Distribution for Federated Visual
        Classification", 2019, arXiv:1909.06335.
    """

    alpha: float = 0.1
    silos: int = 10

    def __post_init__(self) -> None:
        _whole(self, "silos")
        # Beyond these bounds a label has one owner, or equal shares, and nothing changes any more.
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if not number or not 1e-6 <= self.alpha <= 1e6:
            raise ConfigError(f"data.partition = {str(self)!r}: alpha must lie between 1e-6 and 1e6")

    def __str__(self) -> str:
        return render("dirichlet", asdict(self))

    def __call__(self, splits: Mapping[str, Rows], label: str, seed: int) -> Assignment:
        """Assign rows to silos; see `Partition`."""
        groups = _by_label(splits, label, self)
        shares = {
            name: generator(seed, "shares", name).dirichlet(np.full(self.silos, float(self.alpha)))
            for name in _names(groups)
        }
        return deal(groups, shares, str(self), seed)


@dataclass(frozen=True)
class Shards:
    """Each silo owns a few labels; a label's rows are shared equally among its owners.

    Owners are dealt so that no label has two owners more than another, and none is without.

    Args:
        labels: labels of each silo, all different.
        silos: number of silos; labels times silos must reach the number of labels in the data.

    Raises:
        ConfigError: a knob is out of range; called without a label column, with labels left over, or with
            fewer train rows than silos.

    Reference:
        McMahan et al.: "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017,
        arXiv:1602.05629 (there: two shards of rows sorted by label).
    """

    labels: int = 2
    silos: int = 10

    def __post_init__(self) -> None:
        _whole(self, "labels")
        _whole(self, "silos")

    def __str__(self) -> str:
        return render("shards", asdict(self))

    def __call__(self, splits: Mapping[str, Rows], label: str, seed: int) -> Assignment:
        """Assign rows to silos; see `Partition`."""
        groups = _by_label(splits, label, self)
        owned = self._owned(_names(groups), seed)
        shares = {name: column / column.sum() for name, column in zip(_names(groups), owned.T, strict=True)}
        return deal(groups, shares, str(self), seed)

    def _owned(self, names: Sequence[str], seed: int) -> Shares:
        """1 where a silo owns a label: `(silos, labels)`."""
        if self.labels > len(names) or self.labels * self.silos < len(names):
            raise ConfigError(
                f"data.partition = {str(self)!r}: the data has {len(names)} labels; labels must be at "
                "most that, and labels times silos at least that"
            )
        draw = generator(seed, "owners")
        owned = np.zeros((self.silos, len(names)))
        for silo in owned:
            fewest_first = np.lexsort((draw.random(len(names)), owned.sum(axis=0)))
            silo[fewest_first[: self.labels]] = 1
        return owned


@dataclass(frozen=True)
class By:
    """One silo for each value of a column, in all splits.

    Args:
        column: its values, as text, are the silos' names.
        least: silos with fewer train rows are left out.

    Raises:
        ConfigError: a knob is out of range; called on rows without the column or without a value in it.
    """

    column: str
    least: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.column, str) or not self.column:
            raise ConfigError(f"data.partition = {str(self)!r}: column must be the name of a column")
        _whole(self, "least", 0)

    def __str__(self) -> str:
        return render("by", asdict(self), {"least": 0})

    def __call__(self, splits: Mapping[str, Rows], label: str, seed: int) -> Assignment:
        """Assign rows to silos; see `Partition`."""
        silos: Assignment = {}
        for split, rows in splits.items():
            values = column_values(rows, self.column, f"data.partition = {str(self)!r}, {split} split")
            for number, name in enumerate(values):
                silos.setdefault(name, {each: [] for each in splits})[split].append(number)
        return {name: silos[name] for name in sorted(silos) if len(silos[name]["train"]) >= self.least}


PARTITIONS: dict[str, Callable[..., Partition]] = {
    "by": By,
    "dirichlet": Dirichlet,
    "iid": Iid,
    "shards": Shards,
}
"""Name -> what makes the partition; packages add theirs by the entry point group fedmerge.partitions."""


def parse_partition(text: str) -> Partition:
    """The partition that a text names.

    Raises:
        ConfigError: the text can't be read, or a name or knob is unknown or out of range.

    Example:
        >>> parse_partition("dirichlet(silos=4)")
        Dirichlet(alpha=0.1, silos=4)
        >>> str(parse_partition("by('domain')"))
        "by(column='domain')"
    """
    try:
        call = parse_call(text, "partition")
    except RuleError as error:
        raise ConfigError(f"data.partition: {error}") from None
    known = {*PARTITIONS, *entry_names(GROUP)}
    if call.name not in known:
        raise ConfigError(f"data.partition: no partition {call.name!r}; {nearest(call.name, known)}")
    maker = PARTITIONS.get(call.name) or load_entry(GROUP, call.name, "data.partition")
    partition: Partition = build(call, {call.name: maker}, "partition", ConfigError)
    return partition


def _by_label(
    splits: Mapping[str, Rows], label: str, partition: Partition
) -> dict[str, dict[str, list[int]]]:
    """Split -> label -> numbers of its rows."""
    if not label:
        raise ConfigError(f"data.partition = {str(partition)!r} needs data.label, the column to go by")
    groups: dict[str, dict[str, list[int]]] = {split: {} for split in splits}
    for split, rows in splits.items():
        for number, name in enumerate(column_values(rows, label, f"data.partition, {split} split")):
            groups[split].setdefault(name, []).append(number)
    return groups


def _names(groups: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return sorted({name for by_name in groups.values() for name in by_name})


def _whole(partition: Partition, knob: str, least: int = 1) -> None:
    value = getattr(partition, knob)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(
            f"data.partition = {str(partition)!r}: {knob} must be an integer of at least {least}"
        )
