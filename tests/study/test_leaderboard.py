"""The leaderboard: what is written is read again, whatever happened to the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedmerge.server.scores import Summary
from fedmerge.study.candidates import Candidate
from fedmerge.study.leaderboard import FILE, Leaderboard, Line, ranked, read_lines, standard_error, tied
from fedmerge.study.scoring import Scored

ONE, TWO = Candidate("fedavg()", "product()"), Candidate("ties(density=0.2)", "core()")


def line(candidate: Candidate, mean: float, key: str = "k", metric: str = "accuracy", **silos: float) -> Line:
    silos = silos or {"a": mean, "b": mean}
    summary = Summary(metric, silos, mean, mean, min(silos.values()))
    return Line.scored(candidate, key, Scored(summary, dict.fromkeys(silos, 10.0)), 0.5)


def test_lines_come_back_as_they_were(tmp_path: Path):
    board = Leaderboard(tmp_path, "k")
    failed = Line.failed(TWO, "k", ValueError("no"))
    for one in (line(ONE, 0.5), failed):
        board.add(one)
    board.close()
    again = Leaderboard(tmp_path, "k")
    again.close()
    assert again.lines == [line(ONE, 0.5), failed]
    assert again.known(ONE) == line(ONE, 0.5)
    values = [json.loads(text) for text in (tmp_path / FILE).read_text().splitlines()]
    assert values[0] == {
        "candidate": "fedavg() @ product()", "rule": "fedavg()", "space": "product()", "key": "k",
        "metric": "accuracy", "mean": 0.5, "worst": 0.5, "silos": {"a": 0.5, "b": 0.5},
        "counts": {"a": 10.0, "b": 10.0}, "seconds": 0.5, "split": "validation",
    }  # fmt: skip
    assert values[1]["error"] == "ValueError: no"
    assert "mean" not in values[1]


@pytest.mark.parametrize("cut", [1, 2, 30])
def test_a_torn_last_line_is_left_out_and_the_next_one_stands_alone(tmp_path: Path, cut: int):
    board = Leaderboard(tmp_path, "k")
    board.add(line(ONE, 0.5))
    board.add(line(TWO, 0.6))
    board.close()
    data = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(data[:-cut])
    again = Leaderboard(tmp_path, "k")
    assert again.known(ONE) is not None
    assert (again.known(TWO) is None) is (cut > 1)  # a line that lacks its end of line only is whole
    again.add(line(TWO, 0.7))
    again.close()
    assert [found.mean for found in read_lines(tmp_path / FILE)][-1] == 0.7
    for text in (tmp_path / FILE).read_text().splitlines():
        json.loads(text)


def test_a_failure_that_may_pass_is_tried_again(tmp_path: Path):
    board = Leaderboard(tmp_path, "k")
    board.add(Line.failed(ONE, "k", MemoryError()))
    board.add(Line.failed(TWO, "k", ValueError("never")))
    assert board.known(ONE) is None
    assert board.known(TWO) is not None
    board.add(line(ONE, 0.5))
    assert [found.mean for found in board.lines] == [0.5, None]
    board.close()


def test_another_setting_has_lines_of_its_own_and_both_are_kept(tmp_path: Path):
    for key, mean in (("k" * 64, 0.5), ("l" * 64, 0.6)):
        board = Leaderboard(tmp_path, key)
        assert board.known(ONE) is None
        board.add(line(ONE, mean, key))
        board.close()
    assert [found.mean for found in read_lines(tmp_path / FILE)] == [0.6]
    back = Leaderboard(tmp_path, "k" * 64)
    back.close()
    assert [found.mean for found in back.lines] == [0.5]
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"leaderboard-{'l' * 12}.jsonl", FILE]


def test_ranking_goes_in_the_metric_s_direction():
    lines = [line(ONE, 0.5), line(TWO, 0.6), Line.failed(TWO, "k", ValueError())]
    assert [one.mean for one in ranked(lines)] == [0.6, 0.5]
    lower = [line(ONE, 0.5, metric="loss"), line(TWO, 0.6, metric="loss")]
    assert [one.mean for one in ranked(lower)] == [0.5, 0.6]
    equal = [line(ONE, 0.5), line(TWO, 0.5)]
    assert ranked(equal) == equal


def test_a_score_that_is_not_finite_is_a_failure():
    found = Line.scored(ONE, "k", Scored(None, error="its loss is not finite at a"), 0.1)
    assert found.mean is None
    assert "not finite" in found.error
    assert not ranked([found])


def test_the_error_is_that_of_the_difference():
    best = line(ONE, 0.6, a=0.3, b=0.9)
    near = line(TWO, 0.55, a=0.35, b=0.75)  # differences -0.05 and 0.15: 0.05 +- 0.1
    far = line(TWO, 0.5, a=0.2, b=0.8)  # 0.1 at both silos
    assert standard_error(best, near) == pytest.approx(0.1)
    assert tied(best, near) is True
    assert tied(best, far) is False
    assert tied(best, best) is True


def test_one_silo_has_an_error_from_its_rows_if_it_counts_any():
    best, other = line(ONE, 0.6, a=0.6), line(TWO, 0.5, a=0.5)
    assert standard_error(best, other) == pytest.approx(((0.24 + 0.25) / 10) ** 0.5)
    assert tied(line(ONE, 1.0, metric="loss", a=1.0), line(TWO, 1.1, metric="loss", a=1.1)) is None
