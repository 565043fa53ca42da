import copy

import pytest
from rich.console import Console
from rich.table import Table

from fedmerge.cli.table import ScoreTable, blocks, metric_words, number, score_table, shown


def scores(*values: float) -> dict:
    by_silo = dict(zip(("a", "b"), values, strict=True))
    return {"test": by_silo, "validation": {}, "mean": sum(values) / 2, "worst": min(values)}


@pytest.fixture
def result() -> dict:
    return {
        "metric": "accuracy",
        "higher_is_better": True,
        "silos": ["a", "b"],
        "seed": 3,
        "rule": "fedavg()",
        "space": "product()",
        "rounds": [{}, {}],
        "kept": "merged",
        "candidates": {
            "pooled": scores(0.9, 0.9),
            "merged": scores(0.8, 0.6),
            "shadow/ties() @ factors()": scores(0.8, 0.5),
            "alone/a": scores(0.7, 0.2),
            "alone/b": scores(0.1, 0.65),
            "base": scores(0.3, 0.3),
        },
    }


def text(table: ScoreTable, width: int) -> str:
    console = Console(width=width, markup=False, no_color=True)
    with console.capture() as capture:
        for block in blocks(table, width):
            console.print(block)
    return capture.get()


def test_rows_come_in_reading_order(result: dict) -> None:
    labels = [row.label for row in score_table(result).rows]
    assert labels == [
        "base",
        "a alone",
        "b alone",
        "shadow ties() @ factors()",
        "merged (kept)",
        "pooled training",
    ]


def test_best_leaves_pooled_out_and_shares_ties(result: dict) -> None:
    table = score_table(result)
    assert table.columns == ("mean", "worst silo", "a", "b")
    assert table.best == ("0.700", "0.600", "0.800", "0.650")
    printed = text(table, 100)
    starred = {line.split("  ")[0]: line.count("*") for line in printed.splitlines()}
    assert starred["shadow ties() @ factors()"] == 1
    assert starred["merged (kept)"] == 3
    assert starred["pooled training"] == 0


def test_what_the_gate_rejected_is_said_below_the_table(result: dict) -> None:
    sentence = "rejected by the gate: the merge of round 2 lowered accuracy"
    assert sentence not in score_table(result).notes
    assert sentence in score_table(result | {"rejected": ["the merge of round 2 lowered accuracy"]}).notes


def test_lower_is_better_turns_the_emphasis(result: dict) -> None:
    table = score_table(result | {"metric": "bits_per_byte", "higher_is_better": False})
    assert table.title.startswith("bits per byte, lower is better")
    assert table.best[2] == "0.100"


def test_nothing_is_emphasised_where_all_are_alike(result: dict) -> None:
    result["candidates"] = {"base": scores(0.5, 0.5), "merged": scores(0.5001, 0.5)}
    table = score_table(result)
    assert set(table.best) == {""}
    assert not any("best of its column" in note for note in table.notes)


def test_notes_say_what_is_shown_and_no_more(result: dict) -> None:
    notes = "\n".join(score_table(result).notes)
    for word in (
        "alone:",
        "shadow:",
        "pooled training:",
        "seed 3",
        "chance",
        "fedavg() in product(), in 2 rounds",
    ):
        assert word in notes
    result["candidates"] = {name: result["candidates"][name] for name in ("base", "merged")}
    notes = "\n".join(score_table(result).notes)
    assert "alone" not in notes
    assert "pooled" not in notes
    del result["rounds"]
    assert "seed" not in "\n".join(score_table(result).notes)


def test_an_earlier_round_that_was_kept(result: dict) -> None:
    result["candidates"]["merged/1"] = scores(0.9, 0.8)
    labels = [row.label for row in score_table(result | {"kept": "merged/1"}).rows]
    assert {"merged", "merged, round 1 (kept)"} <= set(labels)


def test_lines_after_the_table_wrap_between_words(result: dict) -> None:
    console = Console(width=40, markup=False)
    with console.capture() as capture:
        for part in shown(score_table(result), 40):
            console.print(part)
    assert max(map(len, capture.get().splitlines())) <= 40


def test_very_many_silos_are_left_to_the_file(result: dict) -> None:
    names = [f"hospital-{number}" for number in range(50)]
    result["silos"] = names
    for candidate in result["candidates"].values():
        candidate["test"] = dict.fromkeys(names, 0.5)
    parts = shown(score_table(result), 60)
    assert sum(isinstance(part, Table) for part in parts) == 1
    assert "result.json" in str(parts[-1])


def test_missing_and_not_finite_scores_are_dashes(result: dict) -> None:
    result["candidates"]["alone/a"] = {"test": {"a": float("nan")}, "mean": float("nan"), "worst": None}
    table = score_table(result)
    assert text(table, 100).split().count("-") == 4
    assert table.best[0] == "0.700"


def test_validation_stands_in_for_missing_test_rows(result: dict) -> None:
    for candidate in result["candidates"].values():
        candidate["validation"], candidate["test"] = candidate["test"], {}
    table = score_table(result)
    assert "validation rows (there are no test rows)" in table.title
    assert table.rows[0].scores[2] == 0.3


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_every_width_is_readable(result: dict, width: int) -> None:
    names = [f"hospital-{number}" for number in range(9)]
    result["silos"] = names
    for candidate in result["candidates"].values():
        candidate["test"] = dict.fromkeys(names, 0.5)
    table = score_table(result)
    printed = text(table, width)
    assert max(map(len, printed.splitlines())) <= width
    assert all(name in printed for name in names)


def test_many_silos_are_folded_into_the_best_alone(result: dict) -> None:
    result["silos"] = [f"s{number}" for number in range(20)]
    result["candidates"] |= {f"alone/s{number}": scores(number / 40, number / 40) for number in range(20)}
    for name in ("alone/a", "alone/b"):
        del result["candidates"][name]
    alone = [row for row in score_table(result).rows if row.kind == "alone"]
    assert [row.label for row in alone] == ["s19 alone (best of 20)"]


def test_the_result_is_left_as_it_was(result: dict) -> None:
    before = copy.deepcopy(result)
    blocks(score_table(result), 50)
    assert result == before


def test_words_and_numbers() -> None:
    assert metric_words({"metric": "loss", "higher_is_better": False}) == "loss, lower is better"
    assert number(1.23456) == "1.235"
