"""What the table's rules hold to when `fedmerge.merge` runs them: order, weights, masks, rounds."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from fedmerge.adapters import apply
from fedmerge.adapters.adapter import Adapter, Lora
from fedmerge.adapters.merge import Merged, merge
from fedmerge.errors import RuleError
from fedmerge.rules import compose, parse_rule

from .table import TABLE, Row

SHAPES = {
    "layers.0.q_proj.lora_A.weight": (3, 8),
    "layers.0.q_proj.lora_B.weight": (6, 3),
    "layers.1.norm.weight": (9,),
    "head.weight": (4, 5),
}
NAMES, WEIGHTS = ("silo-b", "silo-000", "silo-d", "silo-c", "silo-e"), (3.0, 0.3, 0.1, 11.0, 2.0)
RANDOM = [
    "dare(density=0.4)",
    "dare_ties(density=0.4)",
    "della(density=0.5, epsilon=0.3)",
    "della_linear(density=0.5, epsilon=0.3)",
    "chain(drop_random(density=0.5), keep_largest(density=0.5), elect_sign(), mean())",
    "dare(density=0.5, like='mergekit')",
]


def adapter(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


DELTAS = [adapter(seed) for seed in range(5)]
LORA = Lora(rank=3, alpha=6)


def over(rows: list[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("row", rows, ids=[row.rule for row in rows])


ROWS = [row for row in TABLE if not getattr(row.make(), "needs", ())]
every_rule = over(ROWS)


def count(row: Row) -> int:
    """How many of the five clients the rule takes."""
    return min(row.most, len(DELTAS))


def space_of(rule: str) -> str:
    """Matrix rules have no meaning on single factors."""
    return "product()" if parse_rule(rule).kind == "matrix" else "factors()"


def bits(merged: Merged) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in merged.adapter.tensors.items()}


def merged_in(order: tuple[int, ...], rule: str, named: bool) -> Merged:
    return merge(
        [Adapter(DELTAS[at], LORA) for at in order],
        [WEIGHTS[at] for at in order],
        names=[NAMES[at] for at in order] if named else None,
        rule=rule,
        space=space_of(rule),
        seed=3,
        round=2,
    )


@every_rule
@pytest.mark.parametrize("named", [True, False])
def test_replies_permuted_give_the_same_bits(row: Row, named: bool) -> None:
    if row.named and not named:
        with pytest.raises(RuleError, match="'silo-000' is not among the clients"):
            merged_in(tuple(range(count(row))), row.rule, named)
        return
    clients = tuple(range(count(row)))
    orders = [clients, clients[::-1], clients[2:] + clients[:2][::-1], clients[1:] + clients[:1]]
    results = [bits(merged_in(order, row.rule, named)) for order in orders]
    assert all(result == results[0] for result in results)


@every_rule
def test_a_client_of_weight_zero_changes_nothing(row: Row) -> None:
    broken = {"no such tensor": torch.full((2,), torch.nan)}
    many = count(row)
    deltas, space = [Adapter(delta, LORA) for delta in DELTAS[:many]], space_of(row.rule)
    without = merge(deltas, WEIGHTS[:many], names=NAMES[:many], rule=row.rule, space=space)
    names = ("silo-0", *NAMES[:1], "silo-bb", *NAMES[1:many], "silo-z")
    weights = (0.0, *WEIGHTS[:1], 0.0, *WEIGHTS[1:many], 0.0)
    given = [broken, *deltas[:1], deltas[0], *deltas[1:], adapter(9)]
    with_them = merge(given, weights, names=names, rule=row.rule, space=space)
    assert bits(with_them) == bits(without)
    assert with_them.report.left_out == 3


@over([row for row in ROWS if space_of(row.rule) == "factors()"])
def test_the_received_adapter_is_only_added_to(row: Row) -> None:
    received = adapter(7)
    many = count(row)
    deltas, weights, names = DELTAS[:many], WEIGHTS[:many], NAMES[:many]
    stepped = merge(deltas, weights, names=names, rule=row.rule, received=received)
    alone = merge(deltas, weights, names=names, rule=row.rule)
    for name, tensor in stepped.adapter.tensors.items():
        assert torch.equal(tensor, received[name] + alone.adapter.tensors[name])


@over([row for row in ROWS if space_of(row.rule) == "factors()"])
def test_tensors_merged_side_by_side_have_the_bits_of_tensors_merged_apart(
    row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = count(row)
    deltas, weights, names = DELTAS[:many], WEIGHTS[:many], NAMES[:many]
    together = bits(merge(deltas, weights, names=names, rule=row.rule, kernel="plain"))
    monkeypatch.setattr(apply, "COORDINATEWISE", frozenset())
    assert bits(merge(deltas, weights, names=names, rule=row.rule, kernel="plain")) == together


@pytest.mark.parametrize("rule", RANDOM)
@pytest.mark.parametrize("names", [["head.weight"], list(SHAPES)[:2], list(SHAPES)[::-1]])
def test_masks_do_not_depend_on_the_other_tensors(rule: str, names: list[str]) -> None:
    whole = merge(DELTAS, WEIGHTS, names=NAMES, rule=rule).adapter.tensors
    some = [{name: delta[name] for name in names} for delta in DELTAS]
    part = merge(some, WEIGHTS, names=NAMES, rule=rule).adapter.tensors
    assert sorted(part) == sorted(names)
    assert all(torch.equal(part[name], whole[name]) for name in names)


@pytest.mark.parametrize("rule", RANDOM)
@pytest.mark.parametrize("values", [1, 5, 37])
def test_masks_do_not_depend_on_chunks(rule: str, values: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = bits(merge(DELTAS, WEIGHTS, names=NAMES, rule=rule, kernel="plain"))
    monkeypatch.setitem(apply.TILE_VALUES, "cpu", values)
    monkeypatch.setattr(compose, "CHUNK_ENTRIES", values)
    assert bits(merge(DELTAS, WEIGHTS, names=NAMES, rule=rule, kernel="plain")) == whole


@pytest.mark.parametrize("rule", RANDOM)
def test_masks_do_not_depend_on_the_other_silos(rule: str) -> None:
    ones = {"x": torch.ones(64)}
    alone = merge([ones], rule=rule, names=["a"]).adapter.tensors["x"]
    zeros = {"x": torch.zeros(64)}
    beside = merge([zeros, ones], rule=rule, names=["0", "a"]).adapter.tensors["x"]
    assert torch.equal(alone != 0, beside != 0)
    assert 0 < int((alone != 0).sum()) < 64


@pytest.mark.parametrize("rule", RANDOM)
def test_masks_differ_by_seed_round_silo_and_tensor(rule: str) -> None:
    ones = torch.ones(64)

    def mask(tensor: str = "x", silo: str = "a", **knobs: int) -> list[bool]:
        merged = merge([{tensor: ones}], rule=rule, names=[silo], **knobs)  # type: ignore[arg-type]
        return (merged.adapter.tensors[tensor] != 0).tolist()

    masks = [mask(), mask(seed=1), mask(round=1), mask(silo="b"), mask(tensor="y")]
    assert all(one != two for one, two in itertools.combinations(masks, 2))


ROUNDS = 50
"""As long as mergekit's issue 258 would need to be seen: repeated DARE merges that wear a model away."""


def distance(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> float:
    squares = sum(float((one[name] - two[name]).double().square().sum()) for name in two)
    return (squares / sum(float(two[name].double().square().sum()) for name in two)) ** 0.5


def large(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(60, 80, generator=generator) for name in ("q.lora_A.weight", "q.lora_B.weight")}


def rounds(rule: str, pull: float = 0.2) -> dict[str, Tensor]:
    """Eight silos that each pull a fifth of the way to one target, with noise of their own."""
    target, current = large(0), {name: torch.zeros(60, 80) for name in large(0)}
    for number in range(ROUNDS):
        generator = torch.Generator().manual_seed(number + 1)
        deltas = [
            {
                name: pull * (target[name] - value) + 0.01 * torch.randn(value.shape, generator=generator)
                for name, value in current.items()
            }
            for _ in range(8)
        ]
        merged = merge(
            deltas, rule=rule, received=current, names=[f"silo-{i}" for i in range(8)], round=number
        )
        current = merged.adapter.tensors
    return current


@pytest.mark.parametrize("rule", ["dare(density=0.5)", "dare(density=0.1)", "dare_ties(density=0.5)"])
def test_fifty_rounds_of_dare_do_not_wear_the_adapter_away(rule: str) -> None:
    target = large(0)
    trained = rounds(rule)
    assert distance(trained, target) < 0.05
    for name, tensor in trained.items():
        assert float(tensor.norm() / target[name].norm()) == pytest.approx(1, abs=0.01)


def test_where_silos_learn_nothing_more_dare_leaves_every_bit() -> None:
    received = large(0)
    current: Mapping[str, Tensor] = received
    for number in range(ROUNDS):
        nothing = {name: torch.zeros_like(value) for name, value in current.items()}
        names = ["a", "b"]
        merged = merge(
            [nothing, nothing], rule="dare(density=0.1)", received=current, names=names, round=number
        )
        current = merged.adapter.tensors
    assert all(torch.equal(current[name], received[name]) for name in received)


def test_to_merge_whole_adapters_again_and_again_does_wear_them_away() -> None:
    """The same fifty rounds without `received`: each drops from all that was learnt, which is the issue."""
    current = large(0)
    for number in range(ROUNDS):
        current = merge([current], rule="dare(density=0.5)", names=["a"], round=number).adapter.tensors
    assert not any(tensor.any() for tensor in current.values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("rule", RANDOM[:5])
def test_a_gpu_draws_the_same_masks_and_gives_the_same_bits(rule: str) -> None:
    on_cpu = merge(DELTAS, WEIGHTS, names=NAMES, rule=rule, device="cpu", kernel="plain")
    on_gpu = merge(DELTAS, WEIGHTS, names=NAMES, rule=rule, device="cuda", kernel="plain")
    assert bits(on_gpu) == bits(on_cpu)
