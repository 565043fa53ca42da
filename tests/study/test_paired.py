"""The interval covers the truth as often as it says, on made-up data whose truth is known."""

import math
import random

import pytest

from fedmerge.study.paired import Difference, SiloRows, difference, standard_error


def test_equal_scores_are_a_tie_of_width_zero():
    rows = {"a": [SiloRows([1.0, 0.0], [1.0, 1.0])] * 2}
    assert difference([0.5, 0.5], [0.5, 0.5], (rows, rows)) == Difference(0.0, 0.0, 0.0, "tie")


def test_of_one_seed_without_rows_nothing_is_known():
    found = difference([0.9], [0.1])
    assert math.isnan(found.low) and math.isnan(found.high) and found.verdict == "tie"


def test_the_direction_is_the_metrics():
    ours, theirs = [1.50, 1.51, 1.49], [1.60, 1.62, 1.59]
    assert difference(ours, theirs, higher_is_better=False).verdict == "better"
    assert difference(ours, theirs).verdict == "worse"


def test_seeds_alone_give_the_paired_t_interval():
    ours, theirs = [3.0, 5.0, 7.0, 6.0], [2.0, 4.5, 5.0, 5.5]
    found = difference(ours, theirs)
    each = [a - b for a, b in zip(ours, theirs, strict=True)]
    mean = sum(each) / 4
    error = math.sqrt(sum((d - mean) ** 2 for d in each) / 3 / 4)
    assert found.mean == pytest.approx(mean)
    assert found.high - mean == pytest.approx(3.182446 * error, rel=1e-6)  # t of 3 degrees, tables


def test_rows_alone_give_the_error_of_a_share():
    right = [1.0] * 70 + [0.0] * 30
    rows = {"a": [SiloRows(right, [1.0] * 100)]}
    assert standard_error(rows) == pytest.approx(math.sqrt(0.7 * 0.3 / 99))


def test_pairing_leaves_out_what_both_share():
    drawn = random.Random(0)
    hard = [drawn.gauss(0, 10) for _ in range(200)]
    better = [value - 0.1 + drawn.gauss(0, 0.1) for value in hard]
    sizes = [1.0] * 200
    ours, theirs = {"a": [SiloRows(better, sizes)]}, {"a": [SiloRows(hard, sizes)]}
    means = [[sum(rows["a"][0].outcomes) / 200] for rows in (ours, theirs)]
    found = difference(*means, (ours, theirs), higher_is_better=False)
    assert found.verdict == "better"
    assert found.high - found.low < 0.05 < standard_error(ours)


@pytest.mark.parametrize("same_rows", [True, False])
def test_the_interval_holds_the_truth_as_often_as_it_says(same_rows):
    drawn = random.Random(1 + same_rows)
    truth, held, trials = 0.3, 0, 400
    for _ in range(trials):
        ours: dict = {"a": [], "b": []}
        theirs: dict = {"a": [], "b": []}
        kept = {silo: [drawn.gauss(0, 1) for _ in range(40)] for silo in ours}
        for _seed in range(3):
            shift = truth + drawn.gauss(0, 0.2)
            for silo, same in kept.items():
                rows = same if same_rows else [drawn.gauss(0, 1) for _ in range(40)]
                ours[silo].append(SiloRows([row + shift for row in rows], [1.0] * 40))
                theirs[silo].append(SiloRows([0.0] * 40, [1.0] * 40))
        means = [
            [sum(sum(side[silo][s].outcomes) / 40 for silo in side) / 2 for s in range(3)]
            for side in (ours, theirs)
        ]
        found = difference(*means, (ours, theirs))
        held += found.low <= truth <= found.high
    assert held / trials >= 0.93


def test_sides_that_do_not_belong_together_are_refused():
    one, two = {"a": [SiloRows([1.0], [1.0])]}, {"a": [SiloRows([1.0], [2.0])]}
    with pytest.raises(ValueError, match="other rows"):
        difference([1.0], [1.0], (one, two))
    with pytest.raises(ValueError, match="on the other"):
        difference([1.0], [1.0], (one, {"b": one["a"]}))
    with pytest.raises(ValueError, match="seeds"):
        difference([1.0], [])
