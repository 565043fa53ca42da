from __future__ import annotations

import json

import pytest

from fedmerge.config import read_config
from fedmerge.errors import ConfigError
from fedmerge.silo.server_rows import load_server

ROWS = [{"text": f"row {number}", "intent": "up" if number % 2 else "down"} for number in range(6)]


@pytest.fixture
def write(tmp_path):
    def files(**splits):
        folder = tmp_path / "held"
        folder.mkdir(exist_ok=True)
        for split, rows in splits.items():
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    return files


def settings(server, **changes):
    keys = {"data.server": str(server), "data.source": "elsewhere.jsonl", "data.partition": "iid(silos=2)"}
    return read_config(keys | {key.replace("__", "."): value for key, value in changes.items()}).silo


def texts(rows):
    return [row["text"] for row in rows]


def test_the_validation_split_is_scored_on(write):
    data = load_server(settings(write(train=ROWS[:3], validation=ROWS[3:5], test=ROWS[5:])), ())
    assert (data.name, texts(data.train), texts(data.validation)) == (
        "server", ["row 0", "row 1", "row 2"], ["row 3", "row 4"],
    )  # fmt: skip
    assert data.test == []


def test_without_one_all_rows_are(write):
    folder = write(train=ROWS)
    for source in (folder, folder / "train.jsonl"):
        data = load_server(settings(source), ())
        assert texts(data.validation) == texts(ROWS) and data.train == []
    assert texts(load_server(settings(write(train=ROWS[:5], test=ROWS[5:])), ()).validation) == texts(ROWS)


@pytest.mark.parametrize(
    ("changes", "labels", "reason"),
    [
        ({"data__text": "body"}, (), r"^data\.server: .*body"),
        (
            {"data__label": "intent", "task__kind": "classification"},
            ("up", "left"),
            "no silo has the label 'down'",
        ),
        (
            {"data__label": "intent", "task__kind": "classification", "task__head": "centroid"},
            ("up", "down"),
            "is made of train rows",
        ),
    ],
)
def test_rows_that_can_not_be_scored_on(write, changes, labels, reason):
    with pytest.raises(ConfigError, match=reason):
        load_server(settings(write(train=ROWS), **changes), labels)


def test_a_source_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"^data\.server: .*nowhere\.jsonl.*no such file"):
        load_server(settings(tmp_path / "nowhere.jsonl"), ())


def test_the_labels_of_the_silos_may_be_more(write):
    known = settings(write(train=ROWS), data__label="intent", task__kind="classification")
    assert len(load_server(known, ("down", "left", "up")).validation) == 6
