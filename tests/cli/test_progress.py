import threading
from io import StringIO

import pytest
from rich.console import Console

from fedmerge.cli.progress import RunWatch, Watch, round_line, shadow_line, start_line, working
from fedmerge.server.report import RoundReport
from fedmerge.server.scores import Summary

PLAN = {"silos": ["a", "b"], "rounds": 2, "rule": "fedavg()", "space": "factors()"}


def closed_round() -> dict:
    report = RoundReport(1, ("a", "b"), admitted={"a": {}}, missing=["b"], bytes_down=2000, bytes_up=1500)
    report.received = Summary("bits_per_byte", {"a": 1.5}, 1.5, 1.5, 1.5)
    report.seconds = {"wait": 0.0, "train": 2.25, "merge": 0.031}
    return report.to_dict()


def watch_a_run(out: Console) -> str:
    threads = threading.active_count()
    watch = Watch(out)
    observer = RunWatch(watch, rounds=2)
    with watch.shown():
        observer.phase("loading base and data")
        observer.run_started(PLAN)
        observer.phase("waiting for nodes")
        observer.round_started(1, ["a", "b"])
        observer.reply(1, "a", "admitted", {})
        observer.reply(1, "b", "delta has NaN in 'head.[red]weight'", {})
        assert threading.active_count() == threads  # workers may be forked while it shows
        observer.round_closed(closed_round())
        observer.phase("waiting for nodes")
        observer.round_started(2, ["a", "b"])
        observer.round_closed(closed_round() | {"round": 2, "received": None, "missing": []})
        observer.phase("training the baselines")
        observer.finished({})
    assert isinstance(out.file, StringIO)
    return out.file.getvalue()


def test_quiet_lines() -> None:
    assert watch_a_run(Console(file=StringIO(), width=200, markup=False)).splitlines() == [
        "loading base and data",
        "2 silos, 2 rounds, fedavg() in factors()",
        "round 1/2: b refused: delta has NaN in 'head.[red]weight'",
        "round 1/2: 1 of 2 silos merged, 1 missing, bits per byte before 1.500, trained 2.2 s, "
        "merged 0.03 s, 1.5 kB up, 2.0 kB down",
        "round 2/2: 1 of 2 silos merged, trained 2.2 s, merged 0.03 s, 1.5 kB up, 2.0 kB down",
        "training the baselines",
    ]


def test_a_terminal_shows_a_bar_and_keeps_the_lines() -> None:
    drawn = watch_a_run(
        Console(file=StringIO(), width=100, force_terminal=True, markup=False, highlight=False)
    )
    for text in (
        "loading base and data",
        "round 1/2: training",
        "1/2",
        "head.[red]weight",
        "1 of 2 silos merged",
    ):
        assert text in drawn


def test_a_round_without_scores_and_without_a_merge() -> None:
    report = RoundReport(3, ("a",), failed="too few").to_dict()
    assert round_line(report, 3) == "round 3/3: 0 of 1 silos merged, 0 B up, 0 B down"


def test_a_rejected_round_says_so() -> None:
    report = closed_round() | {"rejected": "the merge of round 1 hurt: back to the initial adapter"}
    line = round_line(report, 3)
    assert line.startswith(
        "round 1/3: REJECTED: the merge of round 1 hurt: back to the initial adapter; 1 silo "
    )
    assert "1 silo trained in vain, 1 missing" in line and " merged, " not in line


def test_the_counterfactuals_of_a_round_in_one_line() -> None:
    def row(mean: float | None, metric: str = "accuracy") -> dict:
        return {"metric": metric, "mean": mean}

    report = closed_round()
    assert shadow_line(report, 3) == ""
    report["shadows"] = {"merged": row(0.5), "median()": row(0.25), "ties()": row(0.75), "dare()": row(None)}
    said = "round 1/3: one-step counterfactuals: accuracy merged 0.500, best of 3 ties() 0.750"
    assert shadow_line(report, 3) == said
    report["shadows"] |= {"merged": {"error": "why"}, "ties()": {"error": "why"}, "median()": row(None)}
    assert shadow_line(report, 3) == "round 1/3: one-step counterfactuals: best of 2 median() -, 2 failed"
    report["shadows"] = {"merged": row(1.5, "loss"), "a": row(2.0, "loss"), "b": row(1.25, "loss")}
    assert shadow_line(report, 3).endswith("loss merged 1.500, best of 2 b 1.250")
    assert shadow_line(report, 3) in watch_rounds(report)


def watch_rounds(report: dict) -> str:
    out = Console(file=StringIO(), width=200)
    RunWatch(Watch(out), rounds=3).round_closed(report)
    return out.file.getvalue()


@pytest.mark.parametrize(("rounds", "said"), [(1, "1 round,"), (2, "2 rounds,")])
def test_start_line(rounds: int, said: str) -> None:
    assert said in start_line(PLAN | {"rounds": rounds})


def test_working_counts_pieces(capsys) -> None:
    with working("scoring", 2) as watch:
        watch.advance("a")
    assert capsys.readouterr().out == ""
