"""From figures to sentences: each is said when its figures say so, and carries them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from fedmerge.adapters.angles import compare
from fedmerge.adapters.connectivity import Line, Point
from fedmerge.adapters.figures import Figures
from fedmerge.adapters.findings import sentences
from fedmerge.adapters.findings_lines import gain, strangers
from fedmerge.adapters.sign_conflict import sign_conflict

ONE, TWO, THREE = [1.0, 0.2, 0.1], [0.1, 1.0, 0.2], [0.2, 0.1, 1.0]


def figures(*vectors: list[float], names: tuple[str, ...] = ("a", "b", "c"), **changes) -> Figures:
    deltas = [{"x": torch.tensor(vector)} for vector in vectors]
    several = {}
    if len(deltas) > 1:
        several = {"before": sign_conflict(deltas), "after": sign_conflict(deltas, density=0.5)}
    return Figures(names[: len(deltas)], compare(deltas), **(several | changes))


def line(names: tuple[str, str], losses: list[float], at=(0.0, 0.5, 1.0), silos=None) -> Line:
    points = [Point(loss, silos={} if silos is None else silos[k]) for k, loss in enumerate(losses)]
    return Line(names, tuple(at), tuple(points))


def said(found: Figures, *words: str) -> str:
    """The one sentence with these words."""
    matching = [sentence for sentence in sentences(found) if all(word in sentence for word in words)]
    assert len(matching) == 1, sentences(found)
    return matching[0]


def test_what_was_not_measured_is_not_spoken_of():
    text = " ".join(sentences(figures(ONE, TWO)))
    assert "not known" in text
    for word in ("basin", "line through", "as long as", "directions"):
        assert word not in text


def test_a_single_adapter_has_no_others():
    text = " ".join(sentences(figures(ONE, relative=(0.05,))))
    assert "5.0 % as long" in text
    for word in ("pull", "elect", "dominates"):
        assert word not in text


def test_the_fingerprint_tells_where_nothing_was_scored():
    assert "fingerprint of one base, abcd" in said(figures(ONE, TWO, fingerprint="abcd" * 16), "fingerprint")


def test_a_stranger_is_named_and_the_others_are_not():
    lines = (line(("base", "a"), [2.0, 1.9, 1.8]), line(("base", "b"), [2.0, 2.1, 2.9]))
    found = figures(ONE, TWO, from_start=lines)
    assert "from 2.000 to 2.100 at t = 0.5 and 2.900 at t = 1" in said(
        found, "b was not trained from this base"
    )
    assert "by 10 %" in said(found, "a was trained from this base")
    assert list(strangers(found)) == ["b"]


def test_a_later_round_has_no_base_to_speak_of():
    lines = (line(("received", "a"), [2.0, 1.9, 1.8]), line(("received", "b"), [2.0, 2.1, 2.9]))
    found = figures(ONE, TWO, start="received", from_start=lines)
    said(found, "a was trained from what the silos received")
    said(found, "b was not trained from what the silos received")


def test_all_belong():
    lines = (line(("base", "a"), [2.0, 1.9, 1.8]), line(("base", "b"), [2.0, 1.5, 2.9]))
    assert "falls, by 10 % to 25 %" in said(
        figures(ONE, TWO, from_start=lines), "Each was trained from this base"
    )


def test_a_silo_is_judged_by_its_own_rows():
    silos = [{"a": 1.0, "b": 1.0}, {"a": 0.8, "b": 1.4}, {"a": 0.7, "b": 2.0}]
    own = line(("base", "a"), [1.0, 1.1, 1.35], silos=silos)
    assert gain(own) == pytest.approx(0.3)
    assert gain(replace(own, names=("base", "b"))) < 0
    # an adapter that is no silo's: wherever it helps
    assert gain(replace(own, names=("base", "adapter"))) == pytest.approx(0.3)


def test_losses_that_are_no_numbers_are_no_gain():
    assert gain(line(("base", "a"), [1.0, math.nan, math.inf])) == -math.inf
    assert gain(line(("base", "a"), [0.0, 0.0, 0.0])) == 1  # nothing left to lose


def test_one_basin():
    lines = (line(("a", "b"), [2.0, 1.9, 2.0]), line(("a", "c"), [2.0, 2.01, 2.0]))
    found = figures(ONE, TWO, THREE, between=lines)
    assert "0.5 % at most" in said(found, "One basin", "2 lines", "on 1 of them")


def test_not_one_basin():
    found = figures(ONE, TWO, between=(line(("a", "b"), [2.0, 3.0, 2.0]),))
    assert "between a and b the loss rises by 50 %" in said(found, "Not one basin")
    wall = figures(ONE, TWO, between=(line(("a", "b"), [2.0, math.nan, 2.0]),))
    assert "Not one basin" in said(wall, "more than any share")
    many = tuple(line(("a", name), [2.0, 3.0, 2.0]) for name in "bcde")
    assert "4 of 4 lines" in said(figures(ONE, TWO, between=many), "4 of 4")


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([2.0, 1.9, 1.8, 1.7, 1.9], "t = 1.5: a longer step is better here (loss 2.000 at its start, 1.800"),
        ([2.0, 1.9, 1.8, 1.7, 1.6], "t = 2, the last point measured: a longer step"),
        ([2.0, 1.7, 1.8, 1.9, 2.0], "t = 0.5: a shorter step"),
        ([2.0, 1.9, 1.8, 1.9, 2.0], "the merge itself"),
        ([2.0, 2.1, 2.2, 2.3, 2.4], "its start, so the merge hurts"),
    ],
)
def test_the_step(losses, words):
    merge = line(("base", "merge"), losses, (0.0, 0.5, 1.0, 1.5, 2.0))
    assert words in said(figures(ONE, TWO, merge=merge), "line through the merge")


def test_who_pulls_against_whom():
    assert "cosines from" in said(figures(ONE, TWO, THREE), "No two silos pull")
    found = figures(ONE, [-value for value in ONE], TWO)
    assert "a and b (-1.000)" in said(found, "These pull against each other")
    vectors = [1.0, 0.0, 0.0], [-1.0, 0.1, 0.0], [1.0, -0.2, 0.0], [-1.0, 2.0, 0.0]
    many = figures(*vectors, names=("a", "b", "c", "d"))
    assert "4 of 6 pairs" in said(many, "pairs pull against each other, most b and c")


def test_what_an_election_has_to_elect():
    assert "little to elect" in said(figures(ONE, ONE), "conflict in sign")
    opposed = figures([1.0, -1.0], [-1.0, 1.0])
    assert "100 % conflict" in said(opposed, "much to elect, and little to go by", "coins would give 50 %")
    draw = torch.Generator().manual_seed(0)
    common = torch.randn(4000, generator=draw)
    alike = [(common + 1.3 * torch.randn(4000, generator=draw)).tolist() for _ in range(3)]
    assert "an election drops" in said(figures(*alike), "something to elect")


def test_who_dominates():
    assert "33 %" in said(figures(ONE, TWO, THREE), "Nobody dominates", "33 % would be even")
    strong = figures([9.0, 0, 0], TWO, THREE)
    assert "8.8 times the shortest" in said(strong, "a dominates")
    zero = figures(ONE, [0.0, 0.0, 0.0], TWO)
    assert "another is zero" in said(zero, "Nobody dominates")
    assert not [s for s in sentences(figures([1.0, 1.0], [-1.0, -1.0])) if "dominates" in s]  # nobody leads


def test_too_far_for_a_fine_tune():
    found = figures(ONE, TWO, relative=(0.05, 1.4))
    assert "b lies 140 % of the weights' own length away" in said(found, "another base")
    assert "5.0 % to 140 %" in said(found, "as long as")


def test_directions():
    from fedmerge.adapters.spectra import Spectrum

    found = figures(ONE, TWO, spectra={"q": (Spectrum((1.0, 1.0)), Spectrum((1.0,))), "v": (Spectrum(()),)})
    assert "1.5 directions on average" in said(found, "of at most 2", "75 %")
