"""PEFT's `add_weighted_adapter` against `fedmerge.merge`, and its known faults (PEFT 0.21).

The functions below it are compared in tests/rules/test_presets.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fedmerge import Adapter, Lora, merge
from fedmerge.rules import Draw, ElectSign, Stack, ties

from .test_mergekit import _find

peft = pytest.importorskip("peft", reason="PEFT is not installed")

RANK, ALPHA, INPUTS, OUTPUTS = 4, 8.0, 12, 10
NAMES = ("first", "second", "third")
SHARES = [0.5, 0.3, 0.2]
A, B = "base_model.model.layer.lora_A.weight", "base_model.model.layer.lora_B.weight"


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(INPUTS, OUTPUTS)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.fixture
def adapters() -> dict[str, Adapter]:
    return build(rslora=False)


def build(rslora: bool) -> dict[str, Adapter]:
    draw = torch.Generator().manual_seed(0)
    return {
        name: Adapter(
            {
                A: torch.randn(RANK, INPUTS, generator=draw),
                B: torch.randn(OUTPUTS, RANK, generator=draw),
            },
            Lora(RANK, ALPHA, rslora),
        )
        for name in NAMES
    }


def theirs(
    adapters: dict[str, Adapter], kind: str, weights: list[float], rslora: bool = False, **knobs: object
) -> tuple[Tensor, Tensor, Tensor]:
    """A, B and the update that PEFT makes of them."""
    model = None
    for name, adapter in adapters.items():
        config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=["layer"], use_rslora=rslora)
        if model is None:
            model = peft.get_peft_model(Model(), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        peft.set_peft_model_state_dict(model, adapter.tensors, adapter_name=name)
    model.add_weighted_adapter(list(adapters), weights, "merged", combination_type=kind, **knobs)
    layer = model.base_model.model.layer
    found = layer.lora_A["merged"].weight.data, layer.lora_B["merged"].weight.data
    return *found, layer.get_delta_weight("merged").detach()


def update(adapter: Adapter) -> Tensor:
    return adapter.lora.scaling * adapter.tensors[B] @ adapter.tensors[A]


def true_sum(adapters: dict[str, Adapter], weights: list[float]) -> Tensor:
    return sum(weight * update(adapter) for weight, adapter in zip(weights, adapters.values(), strict=True))


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.fixture
def our_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give PEFT our masks: of A for each adapter, then of B."""
    drawn = [
        row.reshape(shape)
        for name, shape in [(A, (RANK, INPUTS)), (B, (OUTPUTS, RANK))]
        for row in Draw(0, 0, NAMES, name, shape).uniform(math.prod(shape))
    ]
    numbers = iter(drawn)
    monkeypatch.setattr(torch, "bernoulli", lambda share: (next(numbers) < share).to(share.dtype))


@pytest.mark.parametrize(
    ("kind", "rule", "knobs"),
    [
        ("linear", "task_arithmetic(like='peft')", {}),
        ("ties", "ties(density=0.5, like='peft')", {"density": 0.5}),
        (
            "ties",
            "ties(density=0.3, like='peft', votes='frequency')",
            {"density": 0.3, "majority_sign_method": "frequency"},
        ),
        (
            "magnitude_prune",
            "chain(keep_largest(density=0.5, minimum=0), sum_in_plain_precision(divisor='one'))",
            {"density": 0.5},
        ),
        ("dare_linear", "dare(density=0.5, like='peft')", {"density": 0.5}),
        ("dare_ties", "dare_ties(density=0.5, like='peft')", {"density": 0.5}),
        (
            "dare_ties",
            "dare_ties(density=0.5, like='peft', votes='frequency')",
            {"density": 0.5, "majority_sign_method": "frequency"},
        ),
    ],
)
def test_on_factors_bit_for_bit(
    adapters: dict[str, Adapter], our_masks: None, kind: str, rule: str, knobs: dict[str, object]
) -> None:
    a, b, _ = theirs(adapters, kind, SHARES, **knobs)
    weights = [math.sqrt(share * ALPHA / RANK) for share in SHARES]
    ours = merge(list(adapters.values()), weights, rule=rule, names=NAMES).adapter.tensors
    assert torch.equal(ours[A], a)
    assert torch.equal(ours[B], b)


@pytest.mark.parametrize(
    ("kind", "rule", "knobs"),
    [
        ("svd", "task_arithmetic(like='peft')", {}),
        ("ties_svd", "ties(density=0.4, like='peft')", {"density": 0.4}),
    ],
)
def test_on_updates(adapters: dict[str, Adapter], kind: str, rule: str, knobs: dict[str, object]) -> None:
    _, _, wanted = theirs(adapters, kind, SHARES, svd_rank=6, **knobs)
    merged = merge(list(adapters.values()), SHARES, rule=rule, space="product(rank=6)", names=NAMES)
    assert relative(update(merged.adapter), wanted) < 1e-5


def test_cat_is_the_stacked_space(adapters: dict[str, Adapter]) -> None:
    _, _, wanted = theirs(adapters, "cat", SHARES)
    merged = merge(list(adapters.values()), SHARES, rule="fedavg()", space="stacked()", names=NAMES)
    assert relative(update(merged.adapter), wanted) < 1e-6


class TestKnownFaults:
    """A failure says that PEFT changed: its documentation and docs/rules.md then want another look."""

    def test_linear_adds_the_cross_terms(self, adapters: dict[str, Adapter]) -> None:
        _, _, found = theirs(adapters, "linear", SHARES)
        wanted = true_sum(adapters, SHARES)
        factors = [
            sum(
                math.sqrt(share) * adapter.tensors[name]
                for share, adapter in zip(SHARES, adapters.values(), strict=True)
            )
            for name in (B, A)
        ]
        assert relative(found, ALPHA / RANK * factors[0] @ factors[1]) < 1e-5, (
            "PEFT's 'linear' is no product of the weighted factor sums any more"
        )
        assert relative(found, wanted) > 1, "PEFT's 'linear' has no cross terms B_i A_j any more"
        merged = merge(list(adapters.values()), SHARES, rule="fedavg()", space="product(rank=10)")
        assert relative(update(merged.adapter), wanted) < 1e-5

    @pytest.mark.parametrize("kind", ["svd", "cat"])
    def test_rslora_is_scaled_by_the_root_of_the_rank_once_more(self, kind: str) -> None:
        adapters = build(rslora=True)
        knobs = {"svd_rank": OUTPUTS} if kind == "svd" else {}
        _, _, found = theirs(adapters, kind, SHARES, rslora=True, **knobs)
        rank = OUTPUTS if kind == "svd" else RANK * len(NAMES)
        wanted = true_sum(adapters, SHARES)
        assert relative(found, math.sqrt(rank) * wanted) < 1e-5, (
            f"PEFT's '{kind}' merge of rsLoRA adapters is not sqrt({rank}) times too long any more"
        )
        merged = merge(list(adapters.values()), SHARES, rule="fedavg()", space="product(rank=10)")
        assert relative(update(merged.adapter), wanted) < 1e-5

    def test_ties_is_one_nth_of_mergekits_for_weights_that_sum_to_one(self) -> None:
        golden = _find("ties", "matrix", [1.0, 1.0, 1.0, 1.0], density=0.2)
        found = merge_utils().ties(list(golden.values), torch.full((4,), 0.25), 0.2)
        assert torch.equal(4 * found, golden.result), (
            "PEFT's ties divides by the number of clients that agree, whatever the weights: exactly 1 / N of "
            "mergekit's, bit for bit, when they are 1 / N"
        )

    def test_ties_is_far_from_mergekits_for_unequal_weights(self) -> None:
        golden = _find("ties", "matrix", [0.4, 0.3, 0.2, 0.1], density=0.2)
        found = merge_utils().ties(list(golden.values), torch.tensor(golden.weights), 0.2)
        apart = relative(found, golden.result)
        assert 0.6 < apart < 0.9, f"PEFT's ties and mergekit's were 69 to 77 % apart, now {apart:.0%}"

    def test_no_entry_of_a_small_tensor_is_kept(self) -> None:
        found = merge_utils().ties([torch.tensor([3.0]), torch.tensor([1.0])], torch.ones(2), 0.2)
        assert found.tolist() == [0], "PEFT keeps int(rho n) entries, 0 of a tensor of fewer than 1 / rho"

    def test_a_vote_of_zero_elects_plus(self) -> None:
        both = [torch.tensor([2.0, 1.0]), torch.tensor([-2.0, 1.0])]
        assert merge_utils().ties(both, torch.ones(2), 0.5).tolist() == [2, 0], "+ wins a drawn vote in PEFT"


def merge_utils() -> object:
    from peft.utils import merge_utils as module

    return module


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0, 1.0], [0.4, 0.3, 0.2, 0.1]])
@pytest.mark.parametrize("method", ["total", "frequency"])
def test_both_ways_to_vote_are_pefts(method: str, weights: list[float]) -> None:
    golden = _find("ties", "matrix", weights, density=0.2)
    votes = {"total": "mass", "frequency": "frequency"}[method]
    wanted = merge_utils().ties(list(golden.values), torch.tensor(weights), 0.2, method)
    assert torch.equal(golden.merge(f"ties(density=0.2, like='peft', votes='{votes}')"), wanted)


class TestFrequency:
    @staticmethod
    def stack(weights: list[float]) -> Stack:
        values = torch.tensor([[5.0, 1.0], [-1.0, -1.0], [-1.0, 0.0]])
        return Stack(values, torch.tensor(weights, dtype=torch.float64)[:, None])

    def test_heads_count_and_not_lengths(self) -> None:
        draw = Draw(0, 0, NAMES, "x", (2,))
        stack = self.stack([1.0, 1.0, 1.0])
        assert ties(1.0)(stack, draw).tolist() == [5, 0]
        assert ties(1.0, votes="frequency")(stack, draw).tolist() == [-1, 0]
        assert ties(1.0, votes="frequency", like="peft")(stack, draw).tolist() == [-1, 1]

    def test_heads_are_weighted_in_ours(self) -> None:
        draw = Draw(0, 0, NAMES, "x", (2,))
        stack = self.stack([5.0, 1.0, 1.0])
        assert ties(1.0, votes="frequency")(stack, draw).tolist() == [5, 1]
        assert ties(1.0, votes="frequency", like="peft")(stack, draw).tolist() == [-1, 5]

    def test_another_word_or_a_package_without_the_choice(self) -> None:
        from fedmerge.errors import RuleError

        wrong: list[Callable[[], object]] = [
            lambda: ElectSign(votes="heads"),
            lambda: ties(votes="heads"),
            lambda: ties(votes="frequency", like="mergekit"),
            lambda: ties(votes="frequency", like="paper"),
        ]
        for make in wrong:
            with pytest.raises(RuleError, match="votes"):
                make()

    def test_no_kernel_takes_it_for_the_vote_by_mass(self) -> None:
        from fedmerge.kernels.plan import fused

        assert fused(ties(0.2)) is not None
        assert fused(ties(0.2, votes="frequency")) is None

    def test_its_text_is_read_back(self) -> None:
        from fedmerge.rules import parse_rule

        rule = ties(0.2, votes="frequency")
        assert str(rule) == "ties(density=0.2, votes='frequency')"
        assert parse_rule(str(rule)) == rule
