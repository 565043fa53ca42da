"""The sweep itself, over a scorer that needs no base: order, resuming, failures, the winner."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from fedmerge import Adapter, Lora, load_adapter, merge
from fedmerge.errors import ConfigError
from fedmerge.server.scores import Summary
from fedmerge.study.candidates import Candidate, expand, parse_templates
from fedmerge.study.leaderboard import FILE, Leaderboard, Line, read_lines
from fedmerge.study.material import Material
from fedmerge.study.scoring import Scored
from fedmerge.study.search import Grid, Search, SearchSettings
from fedmerge.study.sweep import Sweep, SweepSettings, Swept
from fedmerge.study.winner import Winner

REFERENCE = Candidate("fedavg()", "product()")
GRID = expand(["ties(density=[0.2, 0.5], scale=[0.5, 1.0, 1.5]) @ [product(), core()]"])
TARGET = 8.0


def adapter(seed: int, lora: Lora | None = Lora(2, 4.0)) -> Adapter:
    draw = torch.Generator().manual_seed(seed)
    pair = {"q.lora_A.weight": (2, 6), "q.lora_B.weight": (5, 2)}
    return Adapter({name: torch.randn(shape, generator=draw) for name, shape in pair.items()}, lora)


def material() -> Material:
    deltas = {f"silo-{number}": adapter(number) for number in range(3)}
    return Material(deltas, dict.fromkeys(deltas, 1.0), received=adapter(9), seed=1, round=1)


def length(given: Adapter) -> float:
    product = given.tensors["q.lora_B.weight"] @ given.tensors["q.lora_A.weight"]
    return float(product.norm())


class Lengths:
    """Scores an adapter by how far the length of its update is from a target; counts what it is asked."""

    def __init__(
        self, *, validation: bool = True, stop_after: int = 10_000, bad: frozenset[str] = frozenset()
    ):
        self.validation, self.stop_after, self.bad = validation, stop_after, bad
        self.asked: list[str] = []
        self.tested: list[str] = []
        self._begun: Mapping[str, Adapter] | None = None

    def now(self, adapters: Mapping[str, Adapter], split: str) -> dict[str, Scored]:
        if split == "test":
            self.tested += adapters
        elif not self.validation:
            return {name: Scored(None) for name in adapters}
        return {name: self._score(name, given) for name, given in adapters.items()}

    def begin(self, adapters: Mapping[str, Adapter]) -> None:
        assert self._begun is None, "one batch at a time"
        self._begun = adapters

    def poll(self) -> None:
        pass

    def finish(self) -> dict[str, Scored]:
        assert self._begun is not None
        if len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        begun, self._begun = self._begun, None
        self.asked += begun
        return {name: self._score(name, given) for name, given in begun.items()}

    def _score(self, name: str, given: Adapter) -> Scored:
        if name in self.bad:
            return Scored(None, error="its loss is not finite at silo-1")
        value = abs(length(given) - TARGET)
        silos = {"silo-0": value, "silo-1": value + 0.1, "silo-2": value + 0.2}
        return Scored(
            Summary("loss", silos, value + 0.1, value + 0.1, value + 0.2), dict.fromkeys(silos, 5.0)
        )


class Silent:
    def begin(self, total: int) -> None:
        pass

    def line(self, line: Line, *, new: bool) -> None:
        pass


def swept(folder: Path, source, scorer=None, key: str = "key", **settings: float) -> tuple[Swept, Lengths]:
    scorer = scorer or Lengths()
    board = Leaderboard(folder, key)
    try:
        sweep = Sweep(
            material(), scorer, board, Winner(folder, "base", "CAUSAL_LM", {"task": "causal-lm"}),
            SweepSettings(REFERENCE, **settings), {"base": adapter(9)}, Silent(),
        )  # fmt: skip
        return sweep.run(source), scorer
    finally:
        board.close()


def test_every_candidate_has_a_line_and_the_best_is_kept(tmp_path: Path):
    found, scorer = swept(tmp_path, Grid(GRID))
    assert list(found.lines) == [REFERENCE, *GRID]
    assert found.computed == len(GRID) + 1
    assert found.stopped == ""
    assert [line.candidate for line in read_lines(tmp_path / FILE)] == [REFERENCE, *GRID]
    means = {line.candidate: line.mean for line in found.lines.values()}
    assert found.best.mean == min(means.values())
    kept = load_adapter(tmp_path / "best")
    mine = material().merged(found.best.candidate)
    assert all(torch.equal(kept.tensors[name], mine.tensors[name]) for name in mine.tensors)
    assert kept.metadata["rule"] == found.best.candidate.rule
    assert kept.metadata["base_model"] == "base"
    assert kept.metadata["validation"] == f"loss {found.best.mean:.6g}"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_test_rows_are_seen_once_by_the_winner_and_what_it_is_compared_with(tmp_path: Path):
    found, scorer = swept(tmp_path, Grid(GRID))
    assert scorer.tested == ["base", str(found.best.candidate), str(REFERENCE)]
    assert set(found.test) == set(scorer.tested)


def test_it_merges_as_merge_does(tmp_path: Path):
    given = material()
    for candidate in GRID:
        mine = given.merged(candidate)
        theirs = merge(
            list(given.deltas.values()), received=given.received, rule=candidate.rule, space=candidate.space,
            names=list(given.deltas), seed=1, round=1,
        ).adapter  # fmt: skip
        assert all(torch.equal(mine.tensors[name], theirs.tensors[name]) for name in theirs.tensors)


@pytest.mark.parametrize("stop_after", [1, 5, 9])
def test_an_interrupted_sweep_goes_on_where_it_stopped(tmp_path: Path, stop_after: int):
    whole, _ = swept(tmp_path / "whole", Grid(GRID))
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path / "cut", Grid(GRID), Lengths(stop_after=stop_after))
    assert (tmp_path / "cut" / "best").is_dir()
    first = read_lines(tmp_path / "cut" / FILE)
    found, scorer = swept(tmp_path / "cut", Grid(GRID))
    assert len(first) + len(scorer.asked) == len(GRID) + 1
    assert not {str(line.candidate) for line in first} & set(scorer.asked)
    assert {c: line.mean for c, line in found.lines.items()} == {
        c: line.mean for c, line in whole.lines.items()
    }
    assert load_adapter(tmp_path / "cut" / "best").metadata["rule"] == whole.best.candidate.rule


def test_a_sweep_that_is_done_computes_nothing(tmp_path: Path):
    swept(tmp_path, Grid(GRID))
    found, scorer = swept(tmp_path, Grid(GRID))
    assert (found.computed, scorer.asked) == (0, [])
    assert len(found.lines) == len(GRID) + 1


def test_another_setting_is_computed_anew(tmp_path: Path):
    swept(tmp_path, Grid(GRID[:3]))
    _, scorer = swept(tmp_path, Grid(GRID[:3]), key="other")
    assert len(scorer.asked) == 4


def test_the_winner_is_written_again_where_it_was_lost_or_is_another_s(tmp_path: Path):
    found, _ = swept(tmp_path, Grid(GRID))
    (tmp_path / "best" / "adapter_model.safetensors").unlink()
    swept(tmp_path, Grid(GRID))
    assert load_adapter(tmp_path / "best").metadata["rule"] == found.best.candidate.rule
    worse, _ = swept(tmp_path, Grid([]))
    assert worse.best.candidate == REFERENCE
    assert load_adapter(tmp_path / "best").metadata["rule"] == REFERENCE.rule


def test_a_search_that_goes_on_asks_for_the_same(tmp_path: Path):
    def source() -> Search:
        text = "ties(density=between(0.05, 1.0), scale=log_between(0.1, 5.0)) @ product()"
        return Search(parse_templates([text]), SearchSettings("tpe", 24, 5, higher_is_better=False))

    whole, _ = swept(tmp_path / "whole", source())
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path / "cut", source(), Lengths(stop_after=15))
    found, scorer = swept(tmp_path / "cut", source())
    assert list(found.lines) == list(whole.lines)
    assert 0 < len(scorer.asked) <= 12
    assert (found.best.candidate, found.best.mean) == (whole.best.candidate, whole.best.mean)


def test_a_candidate_that_fails_is_a_line_and_no_end(tmp_path: Path):
    candidates = expand(["krum() @ product(); fisher() @ factors(); ties() @ stacked(); ties(density=0.5)"])
    bad = frozenset({"ties(density=0.5) @ product()"})
    found, _ = swept(tmp_path, Grid([*candidates, GRID[0]]), Lengths(bad=bad))
    errors = {str(c): line.error for c, line in found.lines.items()}
    assert "RuleError" in errors["krum() @ product()"]
    assert "'fisher' of every silo, which was not kept" in errors["fisher() @ factors()"]
    assert "stacked()" in errors["ties(density=0.2) @ stacked()"]
    assert errors["ties(density=0.5) @ product()"] == "its loss is not finite at silo-1"
    assert errors[str(GRID[0])] == ""
    assert swept(tmp_path, Grid([*candidates, GRID[0]]))[1].asked == []  # all of these fail for good


def test_running_out_of_memory_is_a_line_that_a_later_call_tries_anew(tmp_path: Path, monkeypatch):
    real = Material.merged

    def short(self: Material, candidate: Candidate) -> Adapter:
        if candidate == GRID[1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, candidate)

    monkeypatch.setattr(Material, "merged", short)
    found, _ = swept(tmp_path, Grid(GRID[:4]))
    assert "out of memory" in found.lines[GRID[1]].error
    monkeypatch.undo()
    again, scorer = swept(tmp_path, Grid(GRID[:4]))
    assert scorer.asked == [str(GRID[1])]
    assert again.lines[GRID[1]].error == ""


def test_a_time_limit_ends_it_with_what_there_is(tmp_path: Path):
    found, _ = swept(tmp_path, Grid(GRID), limit_seconds=1e-6)
    assert list(found.lines) == [REFERENCE]
    assert "time limit of 1e-06 seconds" in found.stopped
    assert load_adapter(tmp_path / "best").metadata["rule"] == "fedavg()"


def test_without_validation_rows_nothing_can_be_chosen(tmp_path: Path):
    with pytest.raises(ConfigError, match="validation rows"):
        swept(tmp_path, Grid(GRID), Lengths(validation=False))


def test_where_nothing_has_a_score_it_says_why(tmp_path: Path):
    bad = frozenset({str(REFERENCE)})
    with pytest.raises(
        ConfigError, match=r"none of 1 candidates has a score; fedavg\(\) @ product\(\): its loss"
    ):
        swept(tmp_path, Grid([]), Lengths(bad=bad))
