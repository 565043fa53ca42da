from __future__ import annotations

import csv
import dataclasses
import gzip
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedmerge.errors import ConfigError
from fedmerge.silo.data import (
    SiloData,
    agreed_labels,
    labels_of,
    load_own,
    load_silos,
    pooled,
    required_columns,
)
from fedmerge.silo.settings import DataSettings, TaskSettings
from fedmerge.silo.sources import read_splits

Table = list[dict[str, Any]]
FORMATS = ("jsonl", "json", "csv", "parquet")
NAMES = [f"{name}{end}" for name in FORMATS for end in ("", ".gz")]


def table(count: int, first: int = 0) -> Table:
    return [{"text": f"row {number}", "label": f"l{number % 4}"} for number in range(first, first + count)]


def write(path: Path, rows: Table) -> Path:
    """Write rows in the format of the file's name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_name(path.name.removesuffix(".gz"))
    if plain.suffix == ".jsonl":
        plain.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    elif plain.suffix == ".json":
        plain.write_text(json.dumps(rows, indent=1), "utf-8")
    elif plain.suffix == ".csv":
        with plain.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(rows), plain)
    if plain != path:
        path.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
    return path


def settings(source: Path | str, **fields: Any) -> DataSettings:
    return DataSettings(str(source), **{"partition": "iid(silos=2)", **fields})


def all_rows(silos: dict[str, SiloData], split: str) -> Table:
    return [dict(row) for silo in silos.values() for row in getattr(silo, split)]


def texts(rows: Any) -> list[str]:
    return [row["text"] for row in rows]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    odd = [{"text": 'quotes ", commas, and\nlines', "label": "NA"}, {"text": "naïve 中文", "label": "null"}]
    path = write(tmp_path / f"rows.{name}", [*odd, *table(10)])
    assert read_splits(settings(path, label="label")) == {"train": [*odd, *table(10)]}


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_splits_in_every_format(tmp_path: Path, name: str) -> None:
    write(tmp_path / f"train.{name}", table(8))
    write(tmp_path / f"dev.{name}", table(4, 8))
    write(tmp_path / f"test.{name}", table(2, 12))
    (tmp_path / "README.md").write_text("not a split")
    silos = load_silos(settings(tmp_path))
    assert sorted(texts(all_rows(silos, "train"))) == sorted(texts(table(8)))
    assert sorted(texts(all_rows(silos, "validation"))) == sorted(texts(table(4, 8)))
    assert sorted(texts(all_rows(silos, "test"))) == sorted(texts(table(2, 12)))


def test_shards_as_the_hub_names_them_are_joined(tmp_path: Path) -> None:
    write(tmp_path / "train-00001-of-00002.parquet", table(2, 2))
    write(tmp_path / "train-00000-of-00002.parquet", table(2))
    assert read_splits(settings(tmp_path))["train"] == table(4)


def test_json_lines_may_be_called_json_and_start_with_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n{"text": "b"}')
    assert texts(read_splits(settings(path))["train"]) == ["a", "b"]


def test_long_documents_in_csv(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", [{"text": "x" * 300_000}])
    limit = csv.field_size_limit()
    assert len(read_splits(settings(path))["train"][0]["text"]) == 300_000
    assert csv.field_size_limit() == limit


def test_class_labels_in_parquet_become_their_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    classes = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=classes)
    from pyarrow import parquet

    parquet.write_table(rows.data.table, tmp_path / "train.parquet")
    assert labels_of(read_splits(settings(tmp_path, label="label"))["train"], "label") == ["no", "yes"]


BROKEN = [
    ("rows.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is damaged JSON"),
    ("rows.jsonl", b'{"text": "a"}\n7\n', "line 2 is no JSON object"),
    ("rows.json", b'[{"text": "a"},', "damaged JSON"),
    ("rows.json", b'[{"text": "a"}, 7]', "row 2 is no JSON object"),
    ("rows.json", b"[]", "the file has no rows"),
    ("rows.csv", b"text\n", "the file has no rows"),
    ("rows.csv", b"text,label\na,b\nc\n", "row 2 has another number of cells than the header"),
    ("rows.csv", b"text,label\na,b\nc,d,e\n", "row 2 has another number of cells than the header"),
    ("rows.csv", b'text,label\n"a"b,c\n', "damaged CSV after line 1"),
    ("rows.csv", b"text\n\xff\xfe\n", "not UTF-8 at byte 5"),
    ("rows.parquet", b"PAR1 nonsense", "damaged Parquet file"),
    ("rows.jsonl.gz", b"no gzip", "damaged gzip file"),
    ("rows.jsonl.gz", gzip.compress(b'{"text": "a"}' * 99, mtime=0)[:-9], "damaged gzip file"),
    ("rows.jsonl", b"  \n", "the file has no rows"),
    ("rows.jsonl", b"", "the file has no rows"),
    ("rows.xlsx", b"x", "expected a file that ends in .jsonl, .json, .csv, .parquet"),
]


@pytest.mark.parametrize(("name", "content", "message"), BROKEN)
def test_a_broken_file_is_named_with_what_is_wrong(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=re.escape(f"{str(path)!r}: {message}")):
        load_silos(settings(path))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for source in (tmp_path / "rows.jsonl", "./nowhere", "rows.csv.gz"):
        with pytest.raises(ConfigError, match="no such file or folder"):
            load_silos(settings(source))
    with pytest.raises(ConfigError, match=r"no file train\.jsonl.*the folder has nothing"):
        load_silos(settings(tmp_path))
    write(tmp_path / "test.csv", table(2))
    with pytest.raises(ConfigError, match=r"the folder has test\.csv"):
        load_silos(settings(tmp_path))


def test_two_files_for_one_split_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", table(2))
    write(tmp_path / "val.csv", table(2))
    write(tmp_path / "dev.csv", table(2))
    with pytest.raises(ConfigError, match=r"several files for the validation split: dev\.csv, val\.csv"):
        load_silos(settings(tmp_path))


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "rows.jsonl", table(3))

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(ConfigError, match=r"rows\.jsonl': can't be read \(Permission denied\)"):
        load_silos(settings(path))


COLUMNS = [
    (
        {"text": "txt"},
        {"text": "a", "label": "b"},
        "no column 'txt'; did you mean 'text'? There are: label, text",
    ),
    ({"label": "y"}, {"text": "a"}, "no column 'y'; There are: text"),
    ({}, {"text": 3}, "train split, row 3: column 'text' must hold text, not 3"),
    ({}, {"text": None}, "row 3: column 'text' must hold text, not nothing"),
    ({"label": "label"}, {"text": "a", "label": ""}, "column 'label' must hold a name or a number, not ''"),
    ({"label": "label"}, {"text": "a", "label": float("nan")}, "must hold a name or a number, not nan"),
    (
        {"messages": "turns"},
        {"turns": "hello"},
        "must hold a list of {'role': text, 'content': text}, not 'hello'",
    ),
    ({"messages": "turns"}, {"turns": []}, "must hold a list of"),
    ({"messages": "turns"}, {"turns": [{"role": "user"}]}, "must hold a list of"),
    ({"prompt": "q", "completion": "a"}, {"q": "why"}, "no column 'a'"),
]


@pytest.mark.parametrize(("fields", "row", "message"), COLUMNS)
def test_a_lacking_or_unfit_column(
    tmp_path: Path, fields: dict[str, str], row: dict[str, Any], message: str
) -> None:
    turns = [{"role": "user", "content": "hi"}]
    good = {"text": "a", "label": "b", "turns": turns, "q": "why", "a": "so"}
    path = write(tmp_path / "rows.jsonl", [*({key: good[key] for key in row} for _ in range(2)), row])
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_silos(settings(path, **fields))


def test_what_columns_a_task_wants() -> None:
    classification, causal = TaskSettings("classification"), TaskSettings("causal-lm")
    plain = DataSettings("x", label="y")
    assert required_columns(plain, classification) == ("text", "y")
    assert required_columns(DataSettings("x"), causal) == ("text",)
    pairs = DataSettings("x", prompt="q", completion="a", label="y")
    assert required_columns(pairs) == required_columns(pairs, causal) == ("q", "a", "y")
    assert required_columns(pairs, classification) == ("text", "y")
    assert required_columns(DataSettings("x", messages="turns"), causal) == ("turns",)


def test_numbers_as_labels_become_text(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", [{"text": "a", "label": number} for number in (1, 0, 10, 2)])
    rows = read_splits(settings(path, label="label"))["train"]
    assert [row["label"] for row in rows] == ["1", "0", "10", "2"]


def test_missing_splits_are_cut_from_train(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", table(100))
    silos = load_silos(settings(path, validation=0.1, test=0.25))
    sizes = {split: len(all_rows(silos, split)) for split in ("train", "validation", "test")}
    assert sizes == {"train": 65, "validation": 10, "test": 25}
    together = [text for split in sizes for text in texts(all_rows(silos, split))]
    assert sorted(together) == sorted(texts(table(100)))


def test_only_the_missing_split_is_cut(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", table(50))
    write(tmp_path / "test.jsonl", table(10, 50))
    silos = load_silos(settings(tmp_path, validation=0.2))
    assert len(all_rows(silos, "validation")) == 10
    assert len(all_rows(silos, "test")) == 10


def test_a_share_of_zero_cuts_nothing_and_a_small_one_at_least_a_row(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", table(10))
    silos = load_silos(settings(path, validation=0.0, test=0.01))
    assert (len(all_rows(silos, "validation")), len(all_rows(silos, "test"))) == (0, 1)
    with pytest.raises(ConfigError, match="has 2 rows: none is left to train on"):
        load_silos(settings(write(tmp_path / "two.jsonl", table(2))))


def test_cuts_depend_on_row_numbers_and_the_seed_not_on_content(tmp_path: Path) -> None:
    one = load_silos(settings(write(tmp_path / "a.jsonl", table(40))))
    other = load_silos(settings(write(tmp_path / "b.csv", table(40, 100))))
    again = load_silos(settings(tmp_path / "a.jsonl"))
    reseeded = load_silos(settings(tmp_path / "a.jsonl", seed=1))
    assert again == one
    assert reseeded != one
    for silo, data in one.items():
        moved = [int(text.split()[1]) - 100 for text in texts(other[silo].test)]
        assert [int(text.split()[1]) for text in texts(data.test)] == moved


def test_train_rows_are_shuffled(tmp_path: Path) -> None:
    rows = texts(load_silos(settings(write(tmp_path / "a.jsonl", table(40))))["silo-00"].train)
    assert rows != sorted(rows, key=lambda text: int(text.split()[1]))


def test_rows_per_label_and_max_rows_touch_train_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", table(100))
    few = load_silos(settings(path, label="label", rows_per_label=5, test=0.2))
    assert Counter(row["label"] for row in all_rows(few, "train")) == {f"l{label}": 5 for label in range(4)}
    assert len(all_rows(few, "test")) == 20
    capped = load_silos(settings(path, max_rows=3))
    assert [len(silo.train) for silo in capped.values()] == [3, 3]
    whole = load_silos(settings(path))
    assert all(capped[name].train == whole[name].train[:3] for name in whole)


def test_a_partition_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", table(10))
    with pytest.raises(ConfigError, match=r"data\.partition is empty, but data.source"):
        load_silos(DataSettings(str(path)))


def test_silos_are_kept_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", table(100))
    by = settings(path, partition="by(column='label')")
    assert list(load_silos(by)) == ["l0", "l1", "l2", "l3"]
    assert list(load_silos(dataclasses.replace(by, silos=" l3 ,l1"))) == ["l1", "l3"]
    with pytest.raises(ConfigError, match=r"data\.silos: no silo 'l9'; .*There are: l0, l1, l2, l3"):
        load_silos(dataclasses.replace(by, silos="l9"))


def test_a_silo_without_train_rows_is_an_error_unless_left_out(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [{"text": "a", "ward": "x"}] * 5)
    write(tmp_path / "test.jsonl", [{"text": "a", "ward": "x"}, {"text": "b", "ward": "y"}])
    by = settings(tmp_path, partition="by(column='ward')")
    with pytest.raises(ConfigError, match="1 of 2 silos have no train rows: y; leave them out"):
        load_silos(by)
    assert list(load_silos(dataclasses.replace(by, silos="x"))) == ["x"]
    assert list(load_silos(dataclasses.replace(by, partition="by(column='ward', least=1)"))) == ["x"]


def test_builtin_silos() -> None:
    silos = load_silos(DataSettings("builtin"))
    assert list(silos) == ["asyncio", "prose", "unittest", "xml"]
    for silo in silos.values():
        assert silo.train
        assert silo.validation
        assert silo.test
        assert {row["silo"] for row in (*silo.train, *silo.validation, *silo.test)} == {silo.name}
    assert list(load_silos(DataSettings("builtin", silos="email"))) == ["email"]
    with pytest.raises(ConfigError, match=r"data\.silos: no built-in silo 'emial'; did you mean 'email'"):
        load_silos(DataSettings("builtin", silos="emial"))


def test_builtin_text_under_another_partition() -> None:
    mixed = load_silos(DataSettings("builtin", label="silo", partition="dirichlet(alpha=1.0, silos=3)"))
    assert list(mixed) == ["silo-00", "silo-01", "silo-02"]
    whole = load_silos(DataSettings("builtin"))
    assert sorted(row["name"] for row in all_rows(mixed, "test")) == sorted(
        row["name"] for row in all_rows(whole, "test")
    )


def test_neither_builtin_nor_files_need_the_datasets_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    load_silos(DataSettings("builtin", silos="xml"))
    for name in NAMES:
        load_silos(settings(write(tmp_path / f"rows.{name}", table(9))))


def test_pooled_joins_the_silos_in_the_order_of_their_names() -> None:
    a = SiloData("a", [{"text": "1"}], [{"text": "2"}], [])
    b = SiloData("b", [{"text": "3"}], [], [{"text": "4"}])
    assert pooled({"b": b, "a": a}) == SiloData(
        "pooled", [{"text": "1"}, {"text": "3"}], [{"text": "2"}], [{"text": "4"}]
    )


def test_a_deployed_silo_opens_what_its_own_node_names(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", table(20))
    sent = DataSettings("builtin", partition="by(column='silo')", silos="xml", label="label", max_rows=5)
    own = load_own(sent, {"silo": "hospital-a", "data": str(path), "other": 3})
    assert own.name == "hospital-a"
    assert (len(own.train), len(own.validation), len(own.test)) == (5, 2, 4)
    assert set(texts(own.train)) <= set(texts(table(20)))


def test_a_deployed_silo_of_builtin_text() -> None:
    own = load_own(DataSettings("builtin", silos="asyncio"), {"silo": "xml", "data": "builtin"})
    assert own == load_silos(DataSettings("builtin", silos="xml"))["xml"]


@pytest.mark.parametrize(
    ("config", "lacking"),
    [({}, "lacks silo and data"), ({"silo": "a"}, "lacks data"), ({"data": "x", "silo": " "}, "lacks silo")],
)
def test_a_node_without_silo_or_data_is_told(config: dict[str, str], lacking: str) -> None:
    with pytest.raises(ConfigError, match=rf"{lacking}; start it with flower-supernode --node-config"):
        load_own(DataSettings("builtin"), config)


LOADER = """
    from fedmerge.silo.data import SiloData

    def wards(settings):
        rows = [{"text": f"{settings.seed} {number}", "label": number} for number in range(4)]
        return {name: SiloData(name, rows, rows[:1], []) for name in ("north", "east")}

    def wrong(settings):
        return [1]

    def lacking(settings):
        return {"north": SiloData("north", [{"txt": "a"}], [], [])}
"""
ENTRIES = "[fedmerge.data]\nwards = elsewhere:wards\nwrong = elsewhere:wrong\nlacking = elsewhere:lacking"


def test_a_package_loads_silos(installed: Callable[[str, str], None]) -> None:
    installed(ENTRIES, LOADER)
    wards = DataSettings("entry:wards", seed=7, label="label", max_rows=2)
    silos = load_silos(wards)
    assert list(silos) == ["east", "north"]
    assert silos["east"].train == [{"text": "7 0", "label": "0"}, {"text": "7 1", "label": "1"}]
    assert list(load_silos(dataclasses.replace(wards, silos="north"))) == ["north"]
    assert load_own(wards, {"silo": "north", "data": "entry:wards"}).name == "north"
    with pytest.raises(ConfigError, match="no silo 'nrth'; did you mean 'north'"):
        load_own(wards, {"silo": "nrth", "data": "entry:wards"})


@pytest.mark.parametrize(
    ("source", "partition", "message"),
    [
        (
            "entry:ward",
            "",
            "data.source: no entry point 'ward' in the group 'fedmerge.data'; did you mean 'wards'?",
        ),
        ("entry:wrong", "", "the loader must return {name: SiloData}"),
        ("entry:lacking", "", "silo 'north', train split: no column 'text'; did you mean 'txt'?"),
        ("entry:wards", "iid()", "data.partition = 'iid()': expected nothing"),
    ],
)
def test_a_loader_that_is_unknown_or_gives_something_else(
    installed: Callable[[str, str], None], source: str, partition: str, message: str
) -> None:
    installed(ENTRIES, LOADER)
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_silos(DataSettings(source, partition=partition))


def cards(**labels: list[str] | None) -> list[dict[str, Any]]:
    return [{"name": name, "labels": of} for name, of in labels.items()]


def test_labels_are_agreed_from_the_silos_or_as_listed(tmp_path: Path) -> None:
    data = DataSettings("x.csv", label="y")
    assert agreed_labels(DataSettings("x.csv"), cards(a=None)) == []
    assert agreed_labels(data, cards(a=["c", "b"], b=["a", "b"])) == ["a", "b", "c"]
    assert agreed_labels(dataclasses.replace(data, labels="up, down"), cards(a=None, b=["down"])) == [
        "up",
        "down",
    ]
    text, listed, bare = tmp_path / "labels.txt", tmp_path / "labels.json", tmp_path / "labels"
    text.write_text("up\ndown\n\n")
    listed.write_text('["up", "down"]')
    bare.write_text("up\ndown")
    for path in (text, listed, bare):
        assert agreed_labels(dataclasses.replace(data, labels=str(path)), cards()) == ["up", "down"]


@pytest.mark.parametrize(
    ("labels", "of", "message"),
    [
        ("", None, "data.labels is empty, and these silos don't tell theirs: a"),
        ("up,down", ["dwon"], "silo 'a' has the label 'dwon', which data.labels lacks; did you mean 'down'?"),
        ("up,up", ["up"], "expected labels that differ"),
        ("up,,down", ["up"], "expected labels that differ and are not empty"),
        ("nowhere.txt", ["up"], "data.labels = 'nowhere.txt': can't be read"),
    ],
)
def test_labels_that_can_not_be_agreed(labels: str, of: list[str] | None, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        agreed_labels(DataSettings("x.csv", label="y", labels=labels), cards(a=of))


def test_a_file_of_labels_must_hold_a_list(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    for content in ('{"up": 1}', "[[1]]", "[", "[]"):
        path.write_text(content)
        with pytest.raises(ConfigError, match=re.escape(str(path))):
            agreed_labels(DataSettings("x.csv", label="y", labels=str(path)), cards(a=["up"]))


def test_a_hub_id_that_can_not_be_reached_says_how_to_get_it() -> None:
    with pytest.raises(
        ConfigError, match=re.escape("run datasets.load_dataset('nobody/nothing', 'small') once")
    ):
        load_silos(settings("nobody/nothing:small"))


def test_a_data_set_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    classes = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )

    def split(labels: list[int]) -> Any:
        return datasets.Dataset.from_dict({"text": ["a"] * len(labels), "label": labels}, features=classes)

    asked = []

    def load_dataset(*arguments: Any) -> Any:
        asked.append(arguments)
        return datasets.DatasetDict(train=split([0, 1] * 10), dev=split([1, 1]), test=split([-1, -1]))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = read_splits(settings("org/name:small", label="label"))
    assert asked == [("org/name", "small")]
    # The test split has no labels, as in contests: it counts as missing.
    assert {name: len(rows) for name, rows in found.items()} == {"train": 20, "validation": 2}
    assert found["validation"] == [{"text": "a", "label": "yes"}] * 2
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: datasets.DatasetDict(all=split([1])))
    with pytest.raises(ConfigError, match="no train split; there are: all"):
        load_silos(settings("org/name"))
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_: datasets.DatasetDict(train=split([1]), test=split([]))
    )
    with pytest.raises(ConfigError, match="test split: it has no rows"):
        load_silos(settings("org/name"))


def test_clinc150_by_label_shares(shared_data: Callable[[str], Path]) -> None:
    folder = str(shared_data("clinc150"))
    few = DataSettings(
        folder, label="intent", partition="dirichlet(alpha=0.1, silos=10)", rows_per_label=20, seed=1
    )
    silos = load_silos(few)
    assert len(all_rows(silos, "train")) == 3000
    assert len(all_rows(silos, "test")) == 4500
    assert len(labels_of(all_rows(silos, "test"), "intent")) == 150
    assert all(silo.train for silo in silos.values())
    assert load_silos(few) == silos


def test_roles_of_shakespeare(shared_data: Callable[[str], Path]) -> None:
    path = shared_data("tinyshakespeare") / "speeches.jsonl.gz"
    silos = load_silos(settings(path, partition="by(column='role', least=50)"))
    assert "GLOUCESTER" in silos
    assert min(len(silo.train) for silo in silos.values()) >= 50
