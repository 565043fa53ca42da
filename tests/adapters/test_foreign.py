"""Adapters trained apart as deltas: padding keeps products, deltas keep true updates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedmerge.adapters.adapter import Adapter, Lora
from fedmerge.adapters.foreign import delta_to, fitted, nothing_like, padded, started_from
from fedmerge.adapters.merge import merge
from fedmerge.adapters.pairs import Pair
from fedmerge.adapters.updates import updates_of
from fedmerge.errors import AdapterMismatch

from .conftest import MODULES


def whole_numbers(adapter: Adapter) -> Adapter:
    """Values whose sums of products are exact in any order, so that bits can be compared."""
    return Adapter({name: (4 * value).round() for name, value in adapter.tensors.items()}, adapter.lora)


@settings(max_examples=20, deadline=None)
@given(ranks=st.tuples(st.integers(1, 6), st.integers(0, 5)), rslora=st.booleans(), seed=st.integers(0, 99))
def test_padding_keeps_every_product_bit_for_bit(make, dense, ranks, rslora, seed):
    own, more = ranks
    adapter = whole_numbers(make(seed, lora=Lora(own, 2.0 * own, rslora)))
    wide = padded(adapter, own + more)
    assert wide.lora.rank == own + more
    assert wide.lora.scaling == pytest.approx(adapter.lora.scaling, rel=1e-15)
    unscaled = [Adapter(each.tensors, Lora(1, 1.0)) for each in (adapter, wide)]
    for one, two in zip(*(dense(each).values() for each in unscaled), strict=True):
        assert np.array_equal(one, two)
    assert torch.equal(wide.tensors["head.weight"], adapter.tensors["head.weight"])


def test_padding_to_the_own_rank_changes_nothing_and_to_less_is_refused(make):
    adapter = make(0)
    assert padded(adapter, 3) is adapter
    with pytest.raises(AdapterMismatch, match="rank 3 can't be padded to rank 2"):
        padded(adapter, 2)
    with pytest.raises(AdapterMismatch, match="no LoRA settings"):
        padded(Adapter(adapter.tensors), 4)


@pytest.mark.parametrize("alpha", [6.0, 12.0, 5.0])
def test_other_settings_have_the_same_products(make, dense, alpha):
    adapter = make(1, dtype=torch.float64)
    other = fitted(adapter, Lora(5, alpha))
    assert other.lora.scaling == alpha / 5
    for module, product in dense(other).items():
        np.testing.assert_allclose(product, dense(adapter)[module], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("zero_b", [True, False])
@pytest.mark.parametrize("rank", [2, 3])
def test_a_delta_against_any_start_stands_for_the_true_update(make, dense, zero_b, rank):
    """In float64: s (B_0 + dB)(A_0 + dA) is the adapter's product, and tau its difference to the received."""
    received = make(50, zero_b=zero_b, dtype=torch.float64)
    trained_apart = make(7, lora=Lora(rank, 9.0), dtype=torch.float64)
    delta = delta_to(trained_apart, received, "site-a")
    for module in MODULES:
        updates = updates_of(Pair(module), received, [delta], torch.device("cpu"))
        tau = updates.left(0) @ updates.right(0)
        wanted = dense(trained_apart)[module] - dense(received)[module]
        np.testing.assert_allclose(tau.numpy(), wanted, rtol=0, atol=1e-12 * np.abs(wanted).max())


def test_a_merge_does_not_depend_on_the_start(make, dense):
    """Two adapters of other ranks merge in product() as they do where nothing was received."""
    one, two = make(1, lora=Lora(2, 4.0), dtype=torch.float64), make(2, dtype=torch.float64)
    offline = merge([one, two], [1, 3], space="product(rank=5)", names=["a", "b"])
    received = padded(make(9, zero_b=True, dtype=torch.float64), 5)
    received = Adapter(received.tensors | {"head.weight": torch.zeros(4, 5).double()}, received.lora)
    for start in (received, nothing_like(received)):
        deltas = [delta_to(adapter, start, "x") for adapter in (one, two)]
        merged = merge(deltas, [1, 3], received=start, space="product()", names=["a", "b"])
        for module, product in dense(merged.adapter).items():
            np.testing.assert_allclose(product, dense(offline.adapter)[module], rtol=0, atol=1e-9)


def test_what_does_not_fit_is_named(make):
    received = make(0)
    wide = Adapter(received.tensors | {"head.weight": torch.zeros(7, 5)}, received.lora)
    with pytest.raises(AdapterMismatch, match=r"site-b: 'head.weight' has shape \(7, 5\)"):
        delta_to(wide, received, "site-b")
    with pytest.raises(AdapterMismatch, match=r"site-b lacks 'head.weight'"):
        delta_to(make(0, head=False), received, "site-b")
    with pytest.raises(AdapterMismatch, match="rank 4 can't be padded to rank 3"):
        delta_to(make(0, lora=Lora(4, 8)), received, "site-b")


def pair(a: torch.Tensor) -> Adapter:
    return Adapter({"q.lora_A.weight": a, "q.lora_B.weight": torch.zeros(3, len(a))}, Lora(len(a), 8))


def test_who_started_from_the_same_adapter():
    random = torch.Generator().manual_seed(0)
    start, other, step = (torch.randn(8, 200, generator=random) for _ in range(3))
    assert started_from(pair(start + step), pair(start))
    assert not started_from(pair(other), pair(start))
    assert not started_from(pair(start[:4]), pair(start))
    assert not started_from(Adapter({}), pair(start))
    head = Adapter({"head.weight": torch.ones(2, 2)}, Lora(8, 8))
    assert started_from(head, head)
