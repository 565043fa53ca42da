"""merge(..., statistics=...): brought to the right tensors, checked, and refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from fedmerge.adapters import apply
from fedmerge.adapters.adapter import Adapter
from fedmerge.adapters.merge import merge
from fedmerge.adapters.statistics import Statistics
from fedmerge.adapters.streaming import merge_stream
from fedmerge.errors import AdapterMismatch, FedMergeError, RuleError
from fedmerge.rules import FisherWeights, Mean, by_name, chain, streaming

Make = Callable[..., Adapter]
NAMES = ("a", "b", "c")
WEIGHTS = (1.0, 2.0, 0.5)
B = "base_model.model.layers.0.q_proj.lora_B.weight"
MODULE = "base_model.model.layers.0.q_proj"


def fisher_of(adapter: Adapter, seed: int) -> Statistics:
    generator = torch.Generator().manual_seed(seed)
    return {"fisher": {n: torch.rand(t.shape, generator=generator) for n, t in adapter.tensors.items()}}


def gram_of(seed: int, rank: int = 3) -> Statistics:
    generator = torch.Generator().manual_seed(seed)
    rows = {n: torch.randn(9, rank, generator=generator) for n in ("layers.0.q_proj", "layers.1.v_proj")}
    return {"gram": {f"base_model.model.{name}": x.T @ x / 9 for name, x in rows.items()}}


@pytest.fixture
def deltas(make: Make) -> list[Adapter]:
    return [make(seed, scale=0.1) for seed in (1, 2, 3)]


def by_hand(deltas: list[Adapter], statistics: list[Statistics], name: str) -> np.ndarray:
    values = np.stack([delta.tensors[name].double().numpy() for delta in deltas])
    counts = np.stack([s["fisher"][name].double().numpy() for s in statistics])
    counts = np.maximum(counts, 1e-6) * np.array(WEIGHTS).reshape(-1, *[1] * (values.ndim - 1))
    return (counts * values).sum(axis=0) / counts.sum(axis=0)


@pytest.mark.parametrize("width", [5, 1 << 22])
def test_fisher_goes_to_its_own_coordinates_in_every_tiling(
    deltas: list[Adapter], make: Make, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(apply.TILE_VALUES, "cpu", width)
    statistics = [fisher_of(delta, seed) for seed, delta in enumerate(deltas)]
    merged = merge(deltas, WEIGHTS, received=make(0), rule="fisher()", names=NAMES, statistics=statistics)
    assert merged.delta is not None
    for name, step in merged.delta.tensors.items():
        np.testing.assert_allclose(step.numpy(), by_hand(deltas, statistics, name), rtol=1e-6, atol=1e-9)


def test_fisher_over_the_whole_adapter(deltas: list[Adapter]) -> None:
    """Lengths over all tensors: one silo's Fisher of a thousand times the size changes nothing."""
    statistics = [fisher_of(delta, seed) for seed, delta in enumerate(deltas)]
    steep = {"fisher": {name: 1000 * value for name, value in statistics[0]["fisher"].items()}}
    rule = "fisher(floor=0.0, normalize='adapter')"
    one = merge(deltas, WEIGHTS, rule=rule, names=NAMES, statistics=statistics)
    two = merge(deltas, WEIGHTS, rule=rule, names=NAMES, statistics=[steep, *statistics[1:]])
    plain = merge(deltas, WEIGHTS, rule="fisher()", names=NAMES, statistics=[steep, *statistics[1:]])
    for name, value in one.adapter.tensors.items():
        assert torch.allclose(value, two.adapter.tensors[name], rtol=1e-5, atol=1e-7)
    assert not torch.allclose(one.adapter.tensors[B], plain.adapter.tensors[B], rtol=1e-2)


def test_the_order_of_the_deltas_and_those_of_weight_zero_have_no_part(deltas: list[Adapter]) -> None:
    statistics = [fisher_of(delta, seed) for seed, delta in enumerate(deltas)]
    spoilt = {"fisher": {name: torch.full_like(value, -1) for name, value in statistics[0]["fisher"].items()}}
    one = merge(deltas, WEIGHTS, rule="fisher()", names=NAMES, statistics=statistics)
    two = merge(
        [*deltas[::-1], deltas[0]],
        [*WEIGHTS[::-1], 0.0],
        rule="fisher()",
        names=[*NAMES[::-1], "d"],
        statistics=[*statistics[::-1], spoilt],
    )
    assert all(torch.equal(value, two.adapter.tensors[name]) for name, value in one.adapter.tensors.items())


def test_no_kernel_takes_a_fisher_for_a_plain_weight(deltas: list[Adapter]) -> None:
    rule = "chain(fisher_weights(), keep_largest(density=0.5), elect_sign(), mean())"
    statistics = [fisher_of(delta, seed) for seed, delta in enumerate(deltas)]
    plain, auto = (
        merge(deltas, WEIGHTS, rule=rule, names=NAMES, statistics=statistics, kernel=kernel)
        for kernel in ("plain", "auto")
    )
    bare = merge(deltas, WEIGHTS, rule="ties(density=0.5)", names=NAMES)
    for name, value in plain.adapter.tensors.items():
        assert torch.equal(auto.adapter.tensors[name], value)
    assert not torch.equal(plain.adapter.tensors[B], bare.adapter.tensors[B])


STREAMED = [
    "fisher()",
    "fisher(floor=0.25, normalize='tensor', scale=0.5)",
    "chain(equal_weights(), fisher_weights(), drop_random(density=0.5), total())",
]


@pytest.mark.parametrize("rule", STREAMED)
@pytest.mark.parametrize("chunk", [7, 1 << 20])
def test_a_stream_has_the_bits_of_the_merge(
    deltas: list[Adapter], make: Make, rule: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "CHUNK", chunk)
    statistics = [fisher_of(delta, seed) for seed, delta in enumerate(deltas)]
    entries = zip(NAMES, WEIGHTS, deltas, statistics, strict=True)
    streamed = merge_stream(entries, received=make(0), rule=rule, seed=3, round=2)
    merged = merge(
        deltas, WEIGHTS, received=make(0), rule=rule, names=NAMES, statistics=statistics, seed=3, round=2
    )
    for name, value in merged.adapter.tensors.items():
        assert torch.equal(streamed.adapter.tensors[name], value)


def test_a_stream_refuses_what_a_merge_refuses(deltas: list[Adapter]) -> None:
    with pytest.raises(AdapterMismatch, match="silo 'a' has no 'fisher'"):
        merge_stream([("a", 1.0, deltas[0])], rule="fisher()")
    bad = changed("fisher", B, -torch.ones(10, 3))(fisher_of(deltas[0], 0))
    with pytest.raises(AdapterMismatch, match=r"silo 'a': the 'fisher' of .* is negative"):
        merge_stream([("a", 1.0, deltas[0], bad)], rule="fisher()")
    with pytest.raises(RuleError, match=r"fedavg\(\) needs no 'fisher'"):
        merge_stream([("a", 1.0, deltas[0], fisher_of(deltas[0], 0))])
    for rule in ("fisher(normalize='adapter')", "regmean()"):
        with pytest.raises(RuleError, match="stream"):
            merge_stream([("a", 1.0, deltas[0], fisher_of(deltas[0], 0))], rule=rule)


def test_regmean_goes_to_b_alone(deltas: list[Adapter], make: Make) -> None:
    statistics = [gram_of(seed) for seed in range(3)]
    merged = merge(deltas, WEIGHTS, received=make(0), rule="regmean()", names=NAMES, statistics=statistics)
    mean = merge(deltas, WEIGHTS, received=make(0), names=NAMES)
    assert merged.delta is not None and mean.delta is not None
    for name, step in merged.delta.tensors.items():
        if "lora_B" not in name:
            assert torch.equal(step, mean.delta.tensors[name])
    shrink = np.where(np.eye(3, dtype=bool), 1.0, 0.95)
    grams = [
        w * shrink * s["gram"][MODULE].double().numpy() for w, s in zip(WEIGHTS, statistics, strict=True)
    ]
    factors = [delta.tensors[B].double().numpy() for delta in deltas]
    wanted = sum(f @ g for f, g in zip(factors, grams, strict=True)) @ np.linalg.inv(sum(grams))
    np.testing.assert_allclose(merged.delta.tensors[B].numpy(), wanted, rtol=1e-5, atol=1e-7)


def test_a_rule_by_name_needs_what_its_own_tensors_want(deltas: list[Adapter]) -> None:
    rule = by_name({"*lora_B*": "fisher()"}, default="median()")
    only = [
        {
            "fisher": {
                name: torch.ones_like(value) for name, value in delta.tensors.items() if "lora_B" in name
            }
        }
        for delta in deltas
    ]
    merged = merge(deltas, rule=rule, names=NAMES, statistics=only)
    assert torch.allclose(merged.adapter.tensors[B], sum(delta.tensors[B] for delta in deltas) / 3)
    with pytest.raises(AdapterMismatch, match=r"silo 'a': the 'fisher' lacks .*layers\.0\.q_proj\.lora_B"):
        merge(deltas, rule=rule, names=NAMES, statistics=[{"fisher": {}}] * 3)


def changed(statistic: str, name: str, value: Tensor | None) -> Callable[[Statistics], Statistics]:
    def change(given: Statistics) -> Statistics:
        values = {key: tensor for key, tensor in given[statistic].items() if key != name}
        return {**given, statistic: values if value is None else {**values, name: value}}

    return change


SKEW = torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize(
    ("rule", "change", "match"),
    [
        ("fisher()", changed("fisher", B, None), r"the 'fisher' lacks '.*lora_B\.weight'"),
        (
            "fisher()",
            changed("fisher", B, torch.ones(3, 10)),
            r"of shape \(3, 10\), expected floating \(10, 3\)",
        ),
        ("fisher()", changed("fisher", B, torch.ones(10, 3, dtype=torch.int32)), "is torch.int32"),
        ("fisher()", changed("fisher", B, -torch.ones(10, 3)), "negative in 30 of 30 values"),
        ("fisher()", changed("fisher", B, torch.full((10, 3), torch.nan)), "holds 30 NaN and 0 Inf"),
        (
            "regmean()",
            changed("gram", MODULE, None),
            r"the 'gram' lacks 'base_model\.model\.layers\.0\.q_proj'",
        ),
        (
            "regmean()",
            changed("gram", MODULE, torch.eye(4)),
            r"of shape \(4, 4\), expected floating \(3, 3\)",
        ),
        ("regmean()", changed("gram", MODULE, SKEW), "is not symmetric"),
        ("regmean()", changed("gram", MODULE, -torch.eye(3)), "has the eigenvalue -1"),
        ("regmean()", changed("gram", MODULE, torch.full((3, 3), torch.inf)), "holds 0 NaN and 9 Inf"),
    ],
)
def test_what_does_not_fit_is_refused_by_silo_and_tensor(
    deltas: list[Adapter], rule: str, change: Callable[[Statistics], Statistics], match: str
) -> None:
    good = [fisher_of(d, s) if "fisher" in rule else gram_of(s) for s, d in enumerate(deltas)]
    with pytest.raises(AdapterMismatch, match=match) as caught:
        merge(deltas, rule=rule, names=NAMES, statistics=[good[0], change(good[1]), good[2]])
    assert "silo 'b'" in str(caught.value) and "base_model.model.layers.0.q_proj" in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"rule": "fisher()"}, r"fisher\(\) needs statistics of each silo, and none were given: 'fisher'"),
        ({"rule": "regmean()"}, r"'gram' \(the Gram matrix of A x of every LoRA module\)"),
        ({"rule": "fisher()", "space": "product()"}, r"belongs to the LoRA factors.*not in product\(\)"),
        ({"rule": "regmean()", "space": "product()"}, r"works in factors\(\), not in product\(\)"),
        ({"rule": "fisher()", "statistics": [{}] * 2}, "2 mappings for 3 deltas"),
        ({"rule": "fisher()", "statistics": {"fisher": {}}}, "a single mapping for 3 deltas"),
        ({"rule": "fisher()", "statistics": [{}] * 3}, r"delta \d has no 'fisher'"),
        ({"rule": "fisher()", "statistics": [{"fischer": {}}] * 3}, "'fischer' is unknown; did you mean"),
        ({"statistics": [{"fisher": {}}] * 3}, r"fedavg\(\) needs no 'fisher'"),
    ],
)
def test_what_can_not_be_meant_is_refused(
    deltas: list[Adapter], arguments: dict[str, object], match: str
) -> None:
    with pytest.raises(FedMergeError, match=match):
        merge(deltas, **arguments)  # type: ignore[arg-type]


def test_a_rule_that_wants_what_nobody_measures(deltas: list[Adapter]) -> None:
    class Curved(FisherWeights):
        needs = frozenset({"fischer"})

    with pytest.raises(RuleError, match="needs 'fischer', which no silo measures; did you mean 'fisher'"):
        merge(deltas, rule=chain(Curved(), Mean()))


def test_values_known_to_be_good_are_not_read_again(deltas: list[Adapter]) -> None:
    bad = [changed("gram", MODULE, SKEW)(gram_of(seed)) for seed in range(3)]
    merge(deltas, rule="regmean()", names=NAMES, statistics=bad, finite=True)
    with pytest.raises(AdapterMismatch, match="'a' has no 'gram'"):
        merge(deltas, rule="regmean()", names=NAMES, statistics=[{}] * 3, finite=True)


def test_empty_statistics_are_fine_where_none_are_needed(deltas: list[Adapter]) -> None:
    assert merge(deltas, statistics=[{}] * 3).report.rule == "fedavg()"


def test_a_lonely_factor_rule_is_refused_in_other_spaces() -> None:
    with pytest.raises(RuleError, match=r"factors\(\)"):
        merge([{"x": torch.ones(2)}], rule="regmean()", space="product(rank=2)", statistics=[{}])
