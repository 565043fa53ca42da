"""Gauge invariance: how a silo factored its update does not show in the merged update, whatever the rule.

Each silo's (A, B) becomes (R^-1 A, B R), with an invertible R of its own. All rules of the registry are tried
in all spaces that promise it; a new rule joins by itself, or, where it can't be called without arguments, by
a line in EXPLICIT.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.adapters.adapter import Adapter, Lora
from fedmerge.adapters.merge import merge
from fedmerge.adapters.spaces import parse_space
from fedmerge.errors import RuleError
from fedmerge.rules import RULES, Rule, parse_rule

EXPLICIT = {
    "chain": [
        "chain(keep_largest(density=0.3), median())",
        "chain(drop_random(density=0.4), elect_sign(), mean())",
    ],
    "core_space": ["core_space()", "core_space(rule=dare_ties(density=0.6))"],
    "knots": ["knots()", "knots(rule=median())"],
    "ties": ["ties(density=0.4)", "ties(density=0.4, scope='adapter')"],
}
"""Rule name -> texts to try instead of the bare call."""

TEXTS = [text for name in RULES for text in EXPLICIT.get(name, [f"{name}()"])]
LORA, OUTPUTS, INPUTS = Lora(2, 6), 13, 11
WEIGHTS = [3.0, 1.0, 2.0, 0.5, 1.5]
SPACES = ["product(rank=10)", "core(rank=10)", "stacked()"]


def runs(rule: Rule, space: str) -> bool:
    """Whether the rule is one for this space: statistics belong to factors, stacked() wants coefficients."""
    if getattr(rule, "needs", frozenset()):
        return False
    try:
        parse_space(space).check_rule(rule)
    except RuleError:
        return False
    return True


CASES = [(text, space) for text in TEXTS for space in SPACES if runs(parse_rule(text), space)]


def adapter(generator: torch.Generator, scale: float = 1.0) -> Adapter:
    def normal(*shape: int) -> torch.Tensor:
        return scale * torch.randn(*shape, generator=generator, dtype=torch.float64)

    tensors = {"head.weight": normal(3, 4)}
    for module in ("q_proj", "v_proj"):
        tensors |= {f"{module}.lora_A.weight": normal(LORA.rank, INPUTS)}
        tensors |= {f"{module}.lora_B.weight": normal(OUTPUTS, LORA.rank)}
    return Adapter(tensors, LORA)


def turn(generator: torch.Generator) -> torch.Tensor:
    """An invertible matrix of condition 10."""
    left, right = (
        torch.linalg.qr(torch.randn(LORA.rank, LORA.rank, generator=generator, dtype=torch.float64))[0]
        for _ in range(2)
    )
    return left @ torch.diag(torch.tensor([10.0, 1.0], dtype=torch.float64)) @ right


def refactored(delta: Adapter, received: Adapter | None, generator: torch.Generator) -> Adapter:
    tensors = dict(delta.tensors)
    for module in ("q_proj", "v_proj"):
        a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
        start_a, start_b = (0, 0) if received is None else (received.tensors[a], received.tensors[b])
        r = turn(generator)
        tensors[a] = torch.linalg.solve(r, start_a + delta.tensors[a]) - start_a
        tensors[b] = (start_b + delta.tensors[b]) @ r - start_b
    return replace(delta, tensors=tensors)


def products(merged: Adapter) -> dict[str, np.ndarray]:
    return {
        module: merged.lora.scaling
        * (merged.tensors[f"{module}.lora_B.weight"] @ merged.tensors[f"{module}.lora_A.weight"]).numpy()
        for module in ("q_proj", "v_proj")
    }


def check(text: str, space: str, seed: int, received: Adapter | None, clients: int = 3) -> None:
    generator = torch.Generator().manual_seed(seed)
    deltas = [adapter(generator) for _ in range(clients)]
    turned = [refactored(delta, received, generator) for delta in deltas]
    names = [f"silo-{client}" for client in range(clients)]
    knobs = {"rule": text, "space": space, "received": received, "names": names}
    plain = products(merge(deltas, WEIGHTS[:clients], **knobs).adapter)
    other = products(merge(turned, WEIGHTS[:clients], **knobs).adapter)
    for module, matrix in plain.items():
        size = np.linalg.norm(matrix) or 1.0  # model_stock is 0 where the silos' mean cosine is negative
        distance = np.linalg.norm(other[module] - matrix) / size
        assert distance < 1e-4, f"{text} in {space}: {module} moved by {distance:.2g}"


def clients_for(text: str) -> int:
    """SLERP is a path between two, Krum wants five."""
    return {"slerp": 2, "nuslerp": 2, "krum": 5, "multi_krum": 5}.get(text.partition("(")[0], 3)


@pytest.mark.parametrize("text, space", CASES)
def test_the_factors_do_not_show(text, space):
    check(text, space, 1, None, clients_for(text))


@pytest.mark.parametrize("text, space", CASES)
def test_nor_do_they_next_to_a_received_adapter(text, space):
    received = adapter(torch.Generator().manual_seed(7), scale=0.5)
    check(text, space.replace("rank=10", "rank=11"), 2, received, clients_for(text))


@pytest.mark.parametrize(
    "text", [text for text, space in CASES if "product" in space and "iso_c" not in text]
)
def test_nor_where_ranks_are_cut_off(text):
    """Any rule but Iso's, whose flat spectrum has no gap to cut at."""
    check(text, "product(rank=3)", 3, None, clients_for(text))


@settings(max_examples=25, deadline=None)
@given(case=st.sampled_from(CASES), seed=st.integers(0, 10_000))
def test_property_over_seeds(case, seed):
    check(*case, seed, None, clients_for(case[0]))


def test_all_rules_are_tried():
    """A rule that is left out needs statistics of the factors; nothing else is a reason."""
    tried = {text for text, _ in CASES}
    for text in TEXTS:
        assert text in tried or parse_rule(text).needs, text
    assert {space for _, space in CASES} == set(SPACES)


def test_the_published_core_space_depends_on_the_factors():
    with pytest.raises(AssertionError, match="moved by"):
        check("ties(density=0.3)", "core(rank=10, like='paper')", 1, None)
    with pytest.raises(AssertionError, match="moved by"):
        check("fedavg()", "factors()", 1, None)
