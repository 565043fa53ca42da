from __future__ import annotations

import json
import math

import pytest
import torch

from fedmerge.adapters import Adapter
from fedmerge.adapters.connectivity import Point
from fedmerge.cli.manner import plain
from fedmerge.errors import AdapterMismatch, ConfigError
from fedmerge.study.geometry_file import as_values
from fedmerge.study.inspection import Settings, inspect
from fedmerge.study.landscape import evaluations, pairs_of
from fedmerge.study.subject import MERGE, Subject, changes_nothing, of_adapters


def adapters(**vectors: list[float]) -> Subject:
    return of_adapters({name: Adapter({"x": torch.tensor([vector])}) for name, vector in vectors.items()})


SOME = {"a": [1.0, 0.0, 0.2], "b": [0.0, 1.0, 0.1], "c": [0.3, 0.3, 1.0]}


def test_without_rows_nothing_is_said_of_losses():
    found = inspect(adapters(**SOME), Settings(), {"x": torch.full((1, 3), 10.0)})
    values = as_values(found)
    assert values["names"] == ["a", "b", "c"]
    assert (values["lines"], values["plane"]) == ([], None)
    norm = 10 * 3**0.5
    assert values["relative"] == pytest.approx([length / norm for length in values["norms"]])
    assert values["layers"]["x"]["relative"] == pytest.approx(values["relative"])
    assert values["layers"]["x"]["rank"] == pytest.approx([1, 1, 1])
    assert values["layers"]["x"]["energy"] == pytest.approx([1, 1, 1])
    assert 0 <= values["conflict"]["after"] <= 1
    assert values["conflict"]["density"] == 0.2
    assert values["leader"] == "c"
    assert json.loads(json.dumps(values)) == values


def test_lines_and_plane_are_scored_where_they_should_be(bowl):
    scorer, seen = bowl([[0.5, 0.5, 0.5]]), []
    settings = Settings(points=5, steps=4, corners=("a", "c"))
    found = inspect(adapters(**SOME), settings, None, scorer, seen.append)
    assert scorer.calls == len(seen) == evaluations(3, 5, 4)
    values = as_values(found)
    ends = [(line["from"], line["to"]) for line in values["lines"]]
    assert ends == [
        *(("base", name) for name in "abc"),
        ("a", "b"), ("a", "c"), ("b", "c"), ("base", "merge"),
    ]  # fmt: skip
    middle = values["lines"][3]
    assert middle["at"] == [0, 0.25, 0.5, 0.75, 1]
    point = torch.tensor([0.5, 0.5, 0.15])
    assert middle["loss"][2] == pytest.approx(float((point - 0.5).square().sum()) + 1)
    assert middle["score"] == pytest.approx(middle["loss"])
    assert middle["barrier"] == 0
    assert values["lines"][-1]["at"][-1] == 2
    plane = values["plane"]
    assert plane["corners"] == ["base", "a", "c"]
    assert set(plane["points"]) == {"base", "a", "b", "c", "merge"}
    assert set(plane["distances"]) == {"b", "merge"}
    assert len(plane["loss"]) == len(plane["y"]) == 4
    assert "One basin" in " ".join(values["sentences"])


def test_two_basins_are_told_apart():
    class Wells:
        metric, lora = "loss", None

        def __call__(self, adapter: Adapter) -> Point:
            x = adapter.tensors["x"][0, 0].item()
            return Point(2 - 2 * math.exp(-8 * (x - 1) ** 2) - 2 * math.exp(-8 * (x + 1) ** 2))

    found = inspect(adapters(left=[-1.0, 0.1], right=[1.0, 0.1]), Settings(plane=False), None, Wells())
    assert "Not one basin: between left and right" in " ".join(found.sentences)
    assert found.figures.between[0].barrier == pytest.approx(2, abs=0.01)


def test_a_later_round_starts_from_what_was_received(bowl):
    received = Adapter({"x": torch.tensor([[1.0, 1.0]])})
    deltas = (Adapter({"x": torch.tensor([[1.0, 0.0]])}), Adapter({"x": torch.tensor([[0.0, 1.0]])}))
    subject = Subject(("a", "b"), deltas, received, (3.0, 1.0), start="received")
    found = inspect(subject, Settings(plane=False), None, bowl([[2.0, 2.0]], floor=0.0))
    start = found.figures.from_start[0]
    assert start.names == ("received", "a")
    assert (start[0].loss, start[1].loss) == (2, 1)
    merge = found.figures.merge
    assert merge[1].loss == pytest.approx(0.25**2 + 0.75**2)  # at (1.75, 1.25)
    assert found.figures.geometry.norms == (1, 1)


def test_what_the_run_made_is_the_merge(bowl):
    made = Adapter({"x": torch.tensor([[0.5, 0.5]])})
    subject = Subject(("a", "b"), adapters(a=[1.0, 0.0], b=[0.0, 1.0]).deltas, None, None, made, how="ties")
    found = inspect(subject, Settings(steps=2), None, bowl([[0.5, 0.5]], floor=0.0))
    assert found.figures.merge[1].loss == 0
    assert found.plane.points[MERGE] == pytest.approx((0.5, 0.5))
    assert as_values(found)["merge"] == "ties"


def test_one_adapter_is_inspected_alone(bowl):
    scorer = bowl([[1.0, 1.0]])
    found = inspect(adapters(only=[1.0, 0.5]), Settings(), None, scorer)
    values = as_values(found)
    assert scorer.calls == evaluations(1, 5, 5)
    assert [(line["from"], line["to"]) for line in values["lines"]] == [("base", "only")]
    assert (values["conflict"], values["plane"]) == (None, None)
    assert "only was trained from this base" in values["sentences"][0]


def test_losses_that_are_no_numbers_become_null():
    class Broken:
        metric, lora = "loss", None

        def __call__(self, adapter: Adapter) -> Point:
            return Point(math.nan)

    found = inspect(adapters(**SOME), Settings(steps=2), None, Broken())
    values = plain(as_values(found))
    assert values["lines"][3]["barrier"] is None
    assert values["plane"]["loss"][0][0] is None


def test_of_many_pairs_the_extremes_are_measured():
    names = tuple("abcde")
    cosines = [[0.1 * i + 0.01 * j for j in range(5)] for i in range(5)]
    chosen = pairs_of(names, cosines)
    assert chosen == [("a", "b"), ("a", "c"), ("a", "d"), ("c", "d"), ("c", "e"), ("d", "e")]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"corners": ("a", "d")}, "no silo 'd'"),
        ({"corners": ("a", "a")}, "given twice"),
    ],
)
def test_a_plane_through_nobody_is_refused_before_anything_is_scored(bowl, settings, words):
    scorer = bowl([[0.0, 0.0, 0.0]])
    with pytest.raises(ConfigError, match=words):
        inspect(adapters(**SOME), Settings(**settings), None, scorer)
    with pytest.raises(AdapterMismatch, match="lie on a line"):
        inspect(adapters(a=[1.0, 1.0], b=[2.0, 2.0]), Settings(), None, scorer)
    assert scorer.calls == 0


@pytest.mark.parametrize(("settings", "words"), [({"density": 0.0}, "density"), ({"points": 2}, "3 or more")])
def test_settings_out_of_range(settings, words):
    with pytest.raises(ConfigError, match=words):
        Settings(**settings)


def test_an_adapter_that_changes_nothing():
    pair = {"q.lora_A.weight": torch.ones(1, 2), "q.lora_B.weight": torch.zeros(2, 1)}
    assert changes_nothing(Adapter(pair))
    assert not changes_nothing(Adapter(pair | {"head.weight": torch.ones(1)}))
