"""The default candidates: about a hundred, each of which can really be merged."""

from __future__ import annotations

import pytest
import torch

from fedmerge import Adapter, Lora, merge
from fedmerge.study.candidates import expand, parse_templates
from fedmerge.study.defaults import MOST_ENTRIES, Situation, default_candidates, default_search, fits


def deltas(silos: int) -> dict[str, Adapter]:
    draw = torch.Generator().manual_seed(silos)
    shapes = {"q.lora_A.weight": (2, 12), "q.lora_B.weight": (10, 2), "head.bias": (3,)}
    return {
        f"silo-{number}": Adapter(
            {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}, Lora(2, 4.0)
        )
        for number in range(silos)
    }


@pytest.mark.parametrize("silos", [2, 4, 7])
@pytest.mark.parametrize("together", [True, False])
def test_about_a_hundred_and_all_of_them_merge(silos: int, together: bool):
    given = deltas(silos)
    received = next(iter(deltas(1).values())) if together else None
    situation = Situation.of(given, received)
    assert situation.wide == min(2 * silos + 2 * together, 10)
    assert situation.entries == 120
    found = default_candidates(situation)
    assert 80 <= len(found) == len(set(found)) <= 120
    for candidate in found:
        merge(list(given.values()), received=received, rule=candidate.rule, space=candidate.space)


def test_slerp_is_for_two_and_krum_for_five():
    def rules(silos: int) -> set[str]:
        return {c.rule.partition("(")[0] for c in default_candidates(Situation(silos, 8, 100))}

    assert "slerp" in rules(2)
    assert "slerp" not in rules(3)
    assert "krum" not in rules(4)
    assert "krum" in rules(5)


def test_statistics_and_factors_only_where_they_are():
    without = default_candidates(Situation(3, 8, 100, together=False))
    measured = default_candidates(Situation(3, 8, 100, statistics=frozenset({"fisher", "gram"})))
    assert not any("fisher" in c.rule or "regmean" in c.rule or c.space == "factors()" for c in without)
    assert {"fisher", "regmean"} <= {c.rule.partition("(")[0] for c in measured}


def test_of_large_weights_nothing_forms_matrices_of_their_size():
    large = default_candidates(Situation(3, 48, MOST_ENTRIES + 1))
    assert not any(
        "ties" in c.rule and c.space.startswith("product") and "knots" not in c.rule for c in large
    )
    assert len(large) > 60


def test_an_adapter_without_pairs_has_one_space():
    plain = {name: Adapter({"head.bias": delta.tensors["head.bias"]}) for name, delta in deltas(3).items()}
    found = default_candidates(Situation.of(plain, None))
    assert {candidate.space for candidate in found} == {"factors()"}
    assert len(found) > 30


def test_the_default_search_can_be_read():
    templates = parse_templates(default_search(Situation(3, 24, 1000)))
    assert len(templates) == 3
    assert all(template.is_open for template in templates)


def test_what_can_not_work_does_not_fit():
    situation = Situation(3, 8, 100)
    assert not fits(expand(["ties() @ stacked()"])[0], situation)
    assert not fits(expand(["fisher() @ factors()"])[0], situation)
    assert not fits(
        expand(["fisher() @ product()"])[0], Situation(3, 8, 100, statistics=frozenset({"fisher"}))
    )
    assert fits(expand(["fedavg() @ stacked()"])[0], situation)
