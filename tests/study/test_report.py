"""A report says what the files say: numbers, who won and lost, how sure that is; damage is refused."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedmerge.errors import CheckpointError
from fedmerge.study.report import html_of, markdown_of, page_of, payload_of, read_sources

from .made_up import SILOS, RunFolder, write_comparison


def text_of(*folders: Path) -> str:
    return markdown_of(page_of(read_sources(folders)))


def tables_of(*folders: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by caption, folded ones included."""
    found: dict[str, list[dict[str, Any]]] = {}

    def walk(blocks: list[dict[str, Any]]) -> None:
        for block in blocks:
            walk(block.get("blocks", []))
            if "table" in block:
                rows = [dict(zip(block["columns"], row, strict=True)) for row in block["rows"]]
                found[block["table"]] = rows

    payload = payload_of(page_of(read_sources(folders)))
    walk(payload["opening"])
    for section in payload["sections"]:
        walk(section["blocks"])
    return found


def rows_of(tables: dict[str, list[dict[str, Any]]], start: str) -> list[dict[str, Any]]:
    (rows,) = [rows for caption, rows in tables.items() if caption.startswith(start)]
    return rows


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    made = RunFolder(tmp_path / "run")
    made.write()
    return made


def test_the_headline_has_the_best_trivial_baseline_the_losers_and_the_seed(run: RunFolder) -> None:
    page = page_of(read_sources([run.path]))
    assert page.headline == (
        "The merge reaches 0.760 in accuracy, better than the best trivial baseline (east alone, 0.650; "
        "one seed, spread unknown). On their own rows, 1 of 4 silos does better alone."
    )


def test_what_prints_alike_is_a_tie(run: RunFolder) -> None:
    result = json.loads((run.path / "result.json").read_text())
    result["candidates"]["base"]["mean"] = result["candidates"]["merged"]["mean"] + 0.0004
    run.put("result.json", result)
    assert "a tie with the best trivial baseline (base, 0.760" in page_of(read_sources([run.path])).headline


def test_lower_is_better_turns_every_verdict(run: RunFolder) -> None:
    result = json.loads((run.path / "result.json").read_text()) | {
        "metric": "loss",
        "higher_is_better": False,
    }
    run.put("result.json", result)
    assert "worse than the best trivial baseline (base, 0.500" in page_of(read_sources([run.path])).headline
    gains = rows_of(tables_of(run.path), "By silo")
    assert [(row["silo"], row["merging"]) for row in gains] == [
        ("east", "wins"), ("north", "loses"), ("south", "loses"), ("west", "loses")
    ]  # fmt: skip


def test_silos_are_sorted_by_gain_and_losers_named(run: RunFolder) -> None:
    gains = rows_of(tables_of(run.path), "By silo")
    assert [row["silo"] for row in gains] == ["north", "south", "west", "east"]
    assert [row["gain over training alone"] for row in gains] == [0.06, 0.06, 0.06, -0.04]
    assert "merging wins at 3 of 4 silos; it loses at east (-0.040)." in text_of(run.path)


def test_the_scores_of_every_candidate(run: RunFolder) -> None:
    scores = {row["candidate"]: row for row in rows_of(tables_of(run.path), "Scores: accuracy")}
    assert scores["merged (kept)"]["mean"] == pytest.approx(0.76)
    assert scores["pooled training"]["worst silo"] == pytest.approx(0.805)
    assert scores["base"]["north"] == pytest.approx(0.495)
    assert {"east alone", "ties() @ product()"} <= set(scores)


def test_rounds_and_what_other_merges_would_have_made(run: RunFolder) -> None:
    tables = tables_of(run.path)
    rounds = rows_of(tables, "Scores by round")
    assert [row["rounds merged"] for row in rounds] == [0, 1, 2, 3]
    assert rounds[0]["mean"] == pytest.approx(0.5)
    assert rounds[3]["mean"] == pytest.approx(0.75)  # on validation rows
    assert rounds[0]["highest"] - rounds[0]["lowest"] == pytest.approx(0.03)  # over silos
    (other,) = rows_of(tables, "One-step")
    assert [other[f"round {n}"] for n in (1, 2, 3)] == pytest.approx([0.55, 0.6, 0.65])


def test_what_did_not_count_by_reason(run: RunFolder) -> None:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    lines[0]["rejected"] = "lowered accuracy at 3 of 4 silos"
    (run.path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    tables = tables_of(run.path)
    reasons = {(row["what"], row["reason"], row["times"]) for row in rows_of(tables, "What did not count")}
    assert reasons == {
        ("refused", "NaN in 'a.lora_A'", 1.0), ("missing", "no reply", 1.0),
        ("taken back", "lowered accuracy at 3 of 4 silos", 1.0),
    }  # fmt: skip
    assert "1 reply is refused, 1 missing; 1 merge taken back." in text_of(run.path)
    assert [row["MB down"] for row in rows_of(tables, "By round")] == [2.0, 2.0, 2.0]


def test_seeds_are_one_experiment_with_spread_and_interval(tmp_path: Path) -> None:
    folders = [RunFolder(tmp_path / f"s{n}", seed=n, shift=0.01 * n).write() for n in range(3)]
    page = page_of(read_sources(folders))
    assert page.headline.startswith("The merge reaches 0.770 ± 0.010 in accuracy, better than")
    assert "spread unknown" not in page.headline
    rows = rows_of(tables_of(*folders), "Scores: accuracy")
    assert {row["candidate"]: row["spread over seeds"] for row in rows}["base"] == pytest.approx(0.01)
    # The gains are paired: what all seeds share does not widen them.
    assert "is +0.110, with a 95 % interval (paired by seed, Student's t) from +0.110 to +0.110" in text_of(
        *folders
    )


def test_a_gain_within_the_spread_of_seeds_is_a_tie(tmp_path: Path) -> None:
    folders = [RunFolder(tmp_path / f"s{n}", seed=n).write() for n in range(3)]
    for folder, change in zip(folders, (-0.2, 0.0, 0.3), strict=True):
        result = json.loads((folder / "result.json").read_text())
        result["candidates"]["merged"]["mean"] += change
        (folder / "result.json").write_text(json.dumps(result))
    assert "a tie with the best trivial baseline" in page_of(read_sources(folders)).headline


def test_experiments_are_named_by_what_differs(tmp_path: Path) -> None:
    one = RunFolder(tmp_path / "a").write()
    other = RunFolder(tmp_path / "b", shift=0.02).write(strategy__rule="ties(density=0.2)")
    rows = rows_of(tables_of(one, other), "Experiments")
    assert [row["experiment"] for row in rows] == ["fedavg()", "ties(density=0.2)"]
    assert page_of(read_sources([one, other])).headline == (
        "ties(density=0.2) reaches the best mean of 2 experiments: 0.780 in accuracy (best trivial baseline: "
        "east alone, 0.670). Of one seed the spread is unknown, so a small lead may be chance."
    )


def test_settings_start_with_what_differs_and_the_command_repeats_the_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a run").write(strategy__rule="ties(density=0.2)")
    tables = tables_of(folder)
    changed = {row["key"]: (row["value"], row["default"]) for row in rows_of(tables, "What differs")}
    assert changed == {
        "run.name": ("made-up", "builtin"),
        "run.rounds": ("3", "1"),
        "strategy.rule": ("ties(density=0.2)", "fedavg()"),
    }
    assert len(rows_of(tables, "config.toml")) > 50
    assert {"key": "versions.torch", "value": "2.13.0"} in rows_of(tables, "environment.json")
    assert f"fedmerge simulate '{folder}/config.toml' --set 'run.output={folder}-again'" in text_of(folder)


def test_sweep_and_geometry(run: RunFolder) -> None:
    run.sweep()
    run.geometry()
    tables = tables_of(run.path)
    board = rows_of(tables, "Leaderboard")
    assert [row["mean"] for row in board] == [0.74, 0.739, 0.737, 0.736]
    assert rows_of(tables, "Why") == [{"candidate": "krum() @ product()", "error": "needs 5 deltas"}]
    assert {"adapter": "base", "mean": 0.5} in rows_of(tables, "The chosen candidate")
    assert rows_of(tables, "Cosines")[0]["west"] == pytest.approx(-0.15)
    assert max(row["barrier"] for row in rows_of(tables, "Loss barriers")) == pytest.approx(0.06)
    said = text_of(run.path)
    assert "The updates point in much the same direction." in said
    assert (
        "Signs disagree in 0.600 of the coordinates, and in 0.350 after trimming to a density of 0.2." in said
    )


def test_a_comparison(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "study")
    page = page_of(read_sources([folder]))
    assert page.headline == "ties is better than fedavg; dare ties with it (accuracy, 3 seeds)."
    rows = {row["strategy"]: row for row in rows_of(tables_of(folder), "Mean over 4 silos and 3 seeds")}
    assert (rows["ties"]["difference"], rows["ties"]["low"], rows["ties"]["verdict"]) == (
        0.03,
        0.01,
        "better",
    )
    assert (rows["fedavg"]["verdict"], rows["base"]["verdict"]) == ("reference", "")
    assert "knob" not in rows["ties"]  # nothing was tuned
    assert "fedmerge compare s.toml ties dare" in text_of(folder)


def test_an_unfinished_run_says_so(run: RunFolder) -> None:
    (run.path / "result.json").unlink()
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "asked"')  # broken off
    page = page_of(read_sources([run.path]))
    assert page.headline == "Not finished: 3 of 3 rounds are closed, and nothing is scored yet."
    assert [section.key for section in page.sections] == ["rounds", "costs", "settings"]


@pytest.mark.parametrize("form", [html_of, markdown_of, lambda page: json.dumps(payload_of(page))])
def test_the_same_files_give_the_same_bytes(run: RunFolder, form) -> None:
    """And not many of them."""
    run.geometry()
    written = form(page_of(read_sources([run.path])))
    assert written == form(page_of(read_sources([run.path])))
    assert len(written.encode()) < 400_000


class Reader(HTMLParser):
    """Notes what a page holds: tags, attributes that could fetch, header cells, pictures, ids."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.unscoped = self.unnamed = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = dict(attrs)
        self.tags.append(tag)
        self.links += [str(named[key]) for key in ("src", "href", "action", "srcset", "data") if key in named]
        self.ids += [str(named["id"])] if "id" in named else []
        self.unscoped += tag == "th" and "scope" not in named
        self.unnamed += tag == "svg" and not named.get("aria-label")


def test_the_page_fetches_nothing_and_runs_nothing_of_the_files(tmp_path: Path) -> None:
    hostile = (
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "$x^2$ & #000005",
        "a\x00\u202eb\nc",
    )
    made = RunFolder(tmp_path / "run", silos=hostile)
    made.write(run__name="</title><script>alert(1)</script>")
    made.geometry()
    page = html_of(page_of(read_sources([made.path])))
    reader = Reader()
    reader.feed(page)
    assert reader.tags.count("script") == 1  # the page's own
    assert "img" not in reader.tags
    assert all(link.startswith(("#", "data:")) for link in reader.links), reader.links
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", page)
    assert "default-src &#x27;none&#x27;" in page or "default-src 'none'" in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "$x^2$ &amp; #000005" in page
    assert "\x00" not in page
    assert len(set(reader.ids)) == len(reader.ids)
    assert not reader.unscoped
    assert not reader.unnamed
    assert "<script>" not in text_of(made.path)


def test_very_many_silos_stay_usable(tmp_path: Path) -> None:
    made = RunFolder(tmp_path / "run", silos=tuple(f"hospital-{n:03d}" for n in range(150)))
    made.write()
    made.sweep(100)
    made.geometry()
    page = html_of(page_of(read_sources([made.path])))
    assert len(page.encode()) < 600_000
    assert 'class="table long"' in page
    assert "All 150 silos&#x27; own trainings" in page


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("result.json", "{", r"result\.json is no JSON"),
        ("result.json", "[]", r"result\.json: the file is \[\], expected an object"),
        ("result.json", '{"metric": "loss"}', r"result\.json: the file has no 'higher_is_better'"),
        ("metrics.jsonl", "{\n{}\n", r"metrics\.jsonl: line 1 is no JSON"),
        (
            "metrics.jsonl",
            '{"round": 1, "received": {"mean": "x", "silos": {}}}',
            r"line 1\.received\.mean is 'x'",
        ),
        ("config.toml", "[run\n", r"config\.toml is no TOML"),
        ("environment.json", "\xff", r"environment\.json is no text in UTF-8"),
        ("geometry.json", '{"names": ["a"], "cosines": []}', r"geometry\.json: cosines are no square"),
        ("sweep/leaderboard.jsonl", '{"mean": 1}', r"leaderboard\.jsonl: line 1 has no 'candidate'"),
    ],
)
def test_a_damaged_file_is_named(run: RunFolder, name: str, content: str, said: str) -> None:
    (run.path / name).parent.mkdir(exist_ok=True)
    (run.path / name).write_text(content, encoding="latin-1")
    with pytest.raises(CheckpointError, match=said):
        read_sources([run.path])


def test_what_is_no_run_is_refused(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(CheckpointError, match="it has neither"):
        read_sources([tmp_path])
    with pytest.raises(CheckpointError, match="given twice"):
        read_sources([run.path, run.path / ".." / "run"])
    (run.path / "metrics.jsonl").unlink()
    (run.path / "result.json").unlink()
    with pytest.raises(CheckpointError, match="no round was closed"):
        read_sources([run.path])
    with pytest.raises(CheckpointError, match=r"verdict is 'great'"):
        found = json.loads((write_comparison(tmp_path / "study") / "compare.json").read_text())
        found["rows"][2]["difference"]["verdict"] = "great"
        read_sources([write_comparison(tmp_path / "study", rows=found["rows"])])


def test_null_scores_are_holes_and_no_errors(run: RunFolder) -> None:
    """NaN is written as null."""
    result = json.loads((run.path / "result.json").read_text())
    result["candidates"]["alone/west"]["test"]["west"] = None
    result["candidates"]["shadow/ties() @ product()"] |= {"mean": None, "worst": None}
    run.put("result.json", result)
    tables = tables_of(run.path)
    assert [row["silo"] for row in rows_of(tables, "By silo")] == ["north", "south", "east", "west"]
    assert "ties() @ product()" not in {row["candidate"] for row in rows_of(tables, "Scores: accuracy")}
    html_of(page_of(read_sources([run.path])))


def test_runs_without_baselines_compare_with_the_base(run: RunFolder) -> None:
    result = json.loads((run.path / "result.json").read_text())
    result["candidates"] = {name: result["candidates"][name] for name in ("base", "merged")}
    run.put("result.json", result)
    assert f"Against the base, on each silo's own rows, merging wins at 4 of {len(SILOS)} silos" in text_of(
        run.path
    )
    shutil.rmtree(run.path)
