import json
import shutil

import pytest

from fedmerge.config import read_config
from fedmerge.engine.local import run_local
from fedmerge.errors import ConfigError, RuleError
from fedmerge.study.compare import compared
from fedmerge.study.season import Question
from fedmerge.study.standings import standings
from fedmerge.study.tuning import Tuning


@pytest.fixture
def question(tiny_flat, tmp_path):
    def make(strategies=("fedavg", "median"), seeds=(0,), **changes):
        known = {"tuning", "sets"}
        flat = tiny_flat(**{key: value for key, value in changes.items() if key not in known})
        named = {key: value for key, value in changes.items() if key in known}
        return Question(flat, strategies, seeds, folder=tmp_path / "study", **named)

    return make


def timeless(table):
    """The rows without what a clock measured."""
    clocks = ("seconds", "merge_seconds")
    return [{key: value for key, value in row.items() if key not in clocks} for row in table["rows"]]


def answer(question):
    with compared(question) as found:
        return standings(found, "fedmerge compare ..."), found


def test_a_row_is_what_the_strategy_gives_by_itself(question, tiny_flat, tmp_path):
    table, found = answer(question(seeds=(0, 1), run__rounds=2))
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows)[-3:] == ["base", "best single silo", "pooled training"]
    assert rows["fedavg"]["difference"] is None
    for seed in (0, 1):
        flat = tiny_flat(
            run__seed=seed, run__baselines="", strategy__rule="median()", strategy__space="factors()",
            run__output=str(tmp_path / f"alone{seed}"),
        )  # fmt: skip
        alone = json.loads((run_local(read_config(flat)) / "result.json").read_text())
        kept = alone["candidates"][alone["kept"]]
        assert rows["median"]["by_seed"][seed] == pytest.approx(kept["mean"], abs=1e-12)
    # Round 1 of the second strategy and the base's scores were known.
    assert found.recalled >= 2 * 3
    assert table["seeds"] == [0, 1]
    assert rows["median"]["difference"]["low"] <= rows["median"]["difference"]["mean"]


def test_a_second_call_computes_only_what_is_new(question):
    first, _ = answer(question())
    again, found = answer(question())
    assert found.computed == 0
    assert again["rows"] == first["rows"]
    more, found = answer(question(strategies=("fedavg", "median", "ties"), run__rounds=2))
    assert found.computed > 0
    known = {row["name"]: row for row in first["rows"]}
    assert {row["name"] for row in more["rows"]} - set(known) == {"ties"}
    assert all(known[row["name"]] == row for row in more["rows"] if row["name"] in known)


def test_interrupted_it_goes_on(question, monkeypatch):
    asked = question(run__rounds=1)
    whole, found = answer(asked)
    computed = found.computed
    shutil.rmtree(asked.place)

    class Pressed(Exception):
        pass

    from fedmerge.study import remembering

    submit, left = remembering.Remembering.submit, [computed // 2]

    def interrupted(self, message):
        submit(self, message)
        if self.computed > left[0]:
            raise Pressed

    monkeypatch.setattr(remembering.Remembering, "submit", interrupted)
    with pytest.raises(Pressed):
        answer(asked)
    monkeypatch.setattr(remembering.Remembering, "submit", submit)
    again, found = answer(asked)
    assert 0 < found.computed < computed
    assert timeless(again) == timeless(whole)


def test_tuning_turns_one_knob_on_validation_rows_with_equal_budget(question):
    tuning = Tuning("scale", (0.5, 1.0, 2.0))
    table, found = answer(question(strategies=("fedavg", "ties"), run__rounds=1, tuning=tuning))
    assert all(list(tried.scores) == [0.5, 1.0, 2.0] for tried in found.tried.values())
    for row in table["rows"]:
        if row["kind"] == "strategy":
            best = min(found.tried[row["name"]].scores.items(), key=lambda item: (item[1], item[0]))[0]
            assert row["knob"] == best
            assert f"{best}" in row["rule"]
    assert any(note.startswith("tuned: scale of each rule") for note in table["notes"])


def test_tuning_without_validation_rows_is_refused(question):
    tuning = Tuning("scale", (0.5, 1.0))
    with pytest.raises(ConfigError, match="tuning needs validation rows"):
        answer(question(tuning=tuning, run__rounds=1, data__validation=0.0))


@pytest.mark.parametrize(
    ("strategy", "error", "match"),
    [
        (
            '[run]\nrounds = 3\n[strategy]\nrule = "ties()"',
            ConfigError,
            "sets \\[strategy\\] only; it also sets",
        ),
        ('[strategy]\nspace = "stacked()"', ConfigError, "does not fit the simulation.*rank that grows"),
        ('[strategy]\nrule = "krum()"', ConfigError, "can't merge 3 replies"),
        ('[strategy]\nrule = "tise()"', ConfigError, "did you mean 'ties'"),
    ],
)
def test_what_contradicts_the_simulation_is_refused_before_training(
    strategy, error, match, question, tmp_path
):
    path = tmp_path / "odd.toml"
    path.write_text(strategy)
    asked = question(strategies=(str(path),))
    with pytest.raises(error, match=match):
        answer(asked)
    assert not asked.place.exists()


def test_of_all_packaged_strategies_those_that_fit(question, monkeypatch):
    from fedmerge import project
    from fedmerge.study.strategies import read_strategies

    wanted = ("fedavg", "krum", "slerp", "ties")
    recipes = project.recipes("strategies")
    monkeypatch.setattr(project, "recipes", lambda kind: {name: recipes[name] for name in wanted})
    table, found = answer(question(strategies=("all",), run__rounds=1))
    assert set(found.skipped) == {"krum", "slerp"}
    assert {row["name"] for row in table["rows"] if row["kind"] == "strategy"} == {"fedavg", "ties"}
    assert any(note.startswith("left out: slerp") for note in table["notes"])
    assert read_strategies(["all"], question().simulation)[0][0].name == "fedavg"


@pytest.mark.parametrize(
    ("seeds", "match"), [((), "different whole"), ((0, 0), "different"), ((-1,), "from 0")]
)
def test_seeds_are_checked(seeds, match, question):
    with pytest.raises(ConfigError, match=match):
        question(seeds=seeds)


def test_a_value_that_a_rule_does_not_take_is_refused_before_training(question):
    asked = question(strategies=("ties",), tuning=Tuning("density", (0.1, 7.0)))
    with pytest.raises(RuleError, match="density"):
        answer(asked)
    assert not (asked.place / "runs").exists()
