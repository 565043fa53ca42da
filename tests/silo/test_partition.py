from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.errors import ConfigError
from fedmerge.silo.dealing import Assignment, generator
from fedmerge.silo.partition import By, Dirichlet, Iid, Partition, Shards, parse_partition

Splits = dict[str, list[dict[str, Any]]]


def rows_of(labels: list[int]) -> list[dict[str, Any]]:
    return [{"label": f"l{label}", "number": number} for number, label in enumerate(labels)]


def balanced(labels: int, train: int, other: int) -> Splits:
    sizes = {"train": train, "validation": other, "test": other}
    return {
        split: rows_of([label for label in range(labels) for _ in range(size)])
        for split, size in sizes.items()
    }


labels = st.lists(st.integers(0, 6), max_size=60)
data = st.builds(
    lambda train, validation, test: {
        "train": rows_of([*range(7), *train]),
        "validation": rows_of(validation),
        "test": rows_of(test),
    },
    labels,
    labels,
    labels,
)
partitions = st.one_of(
    st.builds(Iid, st.integers(1, 7)),
    st.builds(Dirichlet, st.sampled_from([1e-6, 0.01, 0.1, 1.0, 1e6]), st.integers(1, 7)),
    st.builds(Shards, st.integers(1, 7), st.just(7)),
    st.just(By("label")),
)


def numbers(assignment: Assignment, split: str) -> list[int]:
    return sorted(number for of in assignment.values() for number in of[split])


def label_counts(assignment: Assignment, splits: Splits, split: str) -> dict[str, Counter[str]]:
    return {
        silo: Counter(splits[split][number]["label"] for number in of[split])
        for silo, of in assignment.items()
    }


@settings(deadline=None, max_examples=150)
@given(data, partitions, st.integers(0, 2**63 - 1))
def test_every_row_goes_to_exactly_one_silo_and_each_silo_trains(
    splits: Splits, partition: Partition, seed: int
) -> None:
    assignment = partition(splits, "label", seed)
    for split, rows in splits.items():
        assert numbers(assignment, split) == list(range(len(rows)))
    assert all(of["train"] for of in assignment.values())
    assert all(of[split] == sorted(of[split]) for of in assignment.values() for split in splits)
    assert list(assignment) == sorted(assignment)


@settings(deadline=None, max_examples=50)
@given(data, partitions, st.integers(0, 9))
def test_a_partition_is_deterministic_and_reads_back_from_its_text(
    splits: Splits, partition: Partition, seed: int
) -> None:
    again = parse_partition(str(partition))
    assert again == partition
    assert again(splits, "label", seed) == partition(splits, "label", seed)


def test_another_seed_is_another_partition() -> None:
    splits = balanced(5, 20, 5)
    for partition in (Iid(4), Dirichlet(0.5, 4), Shards(2, 4)):
        assert partition(splits, "label", 0) != partition(splits, "label", 1)


def test_iid_sizes_differ_by_one_at_most() -> None:
    sizes = [len(of["train"]) for of in Iid(8)({"train": rows_of([0] * 100)}, "", 3).values()]
    assert sorted(set(sizes)) == [12, 13]


def test_dirichlet_shares_are_those_of_train_in_every_split() -> None:
    splits = balanced(4, 1000, 100)
    assignment = Dirichlet(0.3, 5)(splits, "label", 0)
    train, test = (label_counts(assignment, splits, split) for split in ("train", "test"))
    for silo, counts in train.items():
        for label in ("l0", "l1", "l2", "l3"):
            assert abs(counts[label] / 1000 - test[silo][label] / 100) < 0.011


def test_dirichlet_concentration_decides_the_skew() -> None:
    splits = balanced(10, 100, 10)

    def largest(alpha: float) -> float:
        counts = label_counts(Dirichlet(alpha, 10)(splits, "label", 0), splits, "train")
        return float(np.mean([max(of[f"l{label}"] for of in counts.values()) for label in range(10)]))

    assert largest(1e6) <= 11
    assert largest(1.0) < largest(0.1) < largest(0.001)
    assert largest(0.001) > 95


def test_dirichlet_gives_a_train_row_to_a_silo_that_the_draw_left_empty() -> None:
    splits = balanced(2, 20, 2)
    assignment = Dirichlet(0.001, 10)(splits, "label", 0)
    sizes = sorted(len(of["train"]) for of in assignment.values())
    assert sizes[0] == 1
    assert sum(sizes) == 40


def test_a_label_seen_only_in_test_is_shared_out_too() -> None:
    splits: Splits = {"train": rows_of([0] * 10), "validation": [], "test": rows_of([0, 1, 1, 1])}
    assert numbers(Dirichlet(1.0, 3)(splits, "label", 0), "test") == [0, 1, 2, 3]


def test_rounding_favours_no_silo() -> None:
    """One test row a label: over many labels each of two silos gets its half."""
    splits = balanced(400, 2, 1)
    tests = [len(of["test"]) for of in Dirichlet(1e6, 2)(splits, "label", 0).values()]
    assert abs(tests[0] - 200) < 50


@pytest.mark.parametrize(("owned", "silos"), [(2, 5), (2, 10), (3, 7), (10, 1), (10, 4)])
def test_shards_own_their_number_of_labels_in_every_split(owned: int, silos: int) -> None:
    splits = balanced(10, 40, 20)
    assignment = Shards(owned, silos)(splits, "label", 0)
    train, test = (label_counts(assignment, splits, split) for split in ("train", "test"))
    assert {silo: set(counts) for silo, counts in train.items()} == {
        silo: set(of) for silo, of in test.items()
    }
    assert {len(counts) for counts in train.values()} == {owned}
    owners = Counter(label for counts in train.values() for label in counts)
    assert max(owners.values()) - min(owners.values()) <= 1


def test_shards_leave_no_label_over() -> None:
    with pytest.raises(ConfigError, match=r"shards\(labels=2, silos=4\)': the data has 10 labels"):
        Shards(2, 4)(balanced(10, 2, 0), "label", 0)
    with pytest.raises(ConfigError, match="the data has 3 labels"):
        Shards(4, 4)(balanced(3, 2, 0), "label", 0)


def test_by_names_silos_after_the_values() -> None:
    splits = {"train": [{"ward": 2}, {"ward": 10}, {"ward": 2}], "test": [{"ward": 10}, {"ward": 3}]}
    assert By("ward")(splits, "", 0) == {
        "10": {"train": [1], "test": [0]},
        "2": {"train": [0, 2], "test": []},
        "3": {"train": [], "test": [1]},
    }
    assert list(By("ward", least=1)(splits, "", 0)) == ["10", "2"]
    assert list(By("ward", least=2)(splits, "", 0)) == ["2"]


def test_by_refuses_a_missing_column_and_a_row_without_a_value() -> None:
    with pytest.raises(ConfigError, match=r"train split: no column 'wrad'; did you mean 'ward'\?"):
        By("wrad")({"train": [{"ward": 1}]}, "", 0)
    with pytest.raises(ConfigError, match="train split, row 2: column 'ward' must hold a name or a number"):
        By("ward")({"train": [{"ward": 1}, {"ward": None}]}, "", 0)


def test_silos_beyond_a_hundred_still_sort_by_number() -> None:
    names = list(Iid(101)({"train": rows_of([0] * 101)}, "", 0))
    assert names == sorted(names)
    assert names[-1] == "silo-100"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dirichlett(alpha=1)", "data.partition: no partition 'dirichlett'; did you mean 'dirichlet'?"),
        ("dirichlet(alfa=1)", "dirichlet() has no knob 'alfa'. Did you mean 'alpha'?"),
        ("dirichlet(alpha=0)", "data.partition = 'dirichlet(alpha=0, silos=10)': alpha must lie between"),
        ("dirichlet(alpha='x')", "alpha must lie between"),
        ("iid(silos=0)", "data.partition = 'iid(silos=0)': silos must be an integer of at least 1"),
        ("iid(silos=2.5)", "silos must be an integer"),
        ("shards(labels=True)", "labels must be an integer"),
        ("by(column='x', least=-1)", "least must be an integer of at least 0"),
        ("by()", "can't be made"),
        ("by(column=3)", "column must be the name of a column"),
        ("iid(silos=8", "data.partition: partition 'iid(silos=8' can't be read"),
    ],
)
def test_a_wrong_text_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_partition(text)


def test_labels_and_enough_rows_are_needed() -> None:
    splits: Splits = {"train": rows_of([0, 1])}
    with pytest.raises(ConfigError, match=re.escape("'dirichlet(alpha=0.1, silos=2)' needs data.label")):
        Dirichlet(0.1, 2)(splits, "", 0)
    with pytest.raises(ConfigError, match="3 silos, but only 2 train rows"):
        Iid(3)(splits, "", 0)


def test_a_package_adds_a_partition(installed: Callable[[str, str], None]) -> None:
    code = """
        def halves():
            def cut(splits, label, seed):
                return {name: {split: list(range(offset, len(rows), 2)) for split, rows in splits.items()}
                        for offset, name in enumerate(("even", "odd"))}
            return cut
    """
    installed("[fedmerge.partitions]\nhalves = elsewhere:halves\nlost = elsewhere:lost", code)
    assert parse_partition("halves")({"train": [{}] * 3}, "", 0) == {
        "even": {"train": [0, 2]},
        "odd": {"train": [1]},
    }
    with pytest.raises(ConfigError, match=r"data\.partition: entry point 'lost' .* can't be loaded"):
        parse_partition("lost()")
    with pytest.raises(ConfigError, match="did you mean 'halves'"):
        parse_partition("halfes()")


def test_a_generator_depends_on_seed_and_purpose() -> None:
    drawn = {generator(*key).random() for key in ((0, "a"), (1, "a"), (0, "b"), (0, "a", "b"), (0, "ab"))}
    assert len(drawn) == 5


def test_domains_of_clinc150(shared_data: Callable[[str], Path]) -> None:
    from fedmerge.silo.data import load_silos
    from fedmerge.silo.settings import DataSettings

    folder = str(shared_data("clinc150"))
    silos = load_silos(DataSettings(folder, label="intent", partition="by(column='domain')"))
    assert len(silos) == 10
    for silo in silos.values():
        assert (len(silo.train), len(silo.validation), len(silo.test)) == (1500, 300, 450)
        assert {row["domain"] for row in (*silo.train, *silo.test)} == {silo.name}
