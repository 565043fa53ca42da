"""Our rules against what mergekit 0.1.5 made of the same deltas (make_mergekit_golden.py wrote it down).

Elementwise methods bit for bit, random ones given the masks that mergekit drew. The methods that look at
angles we decide in float64 from inner products: equal but for mergekit's float32 rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from .golden import FILE, Golden, load

GOLDEN = load()
EXACT: dict[str, Callable[[dict[str, Any]], str]] = {
    "task_arithmetic": lambda knobs: "task_arithmetic(like='mergekit')",
    "ties": lambda knobs: f"ties(density={knobs['density']}, like='mergekit')",
    "dare_linear": lambda knobs: f"dare(density={knobs['density']}, like='mergekit')",
    "dare_ties": lambda knobs: f"dare_ties(density={knobs['density']}, like='mergekit')",
    "della": lambda knobs: _della("della", knobs),
    "della_linear": lambda knobs: _della("della_linear", knobs),
    "breadcrumbs": lambda knobs: _breadcrumbs("breadcrumbs", knobs),
    "breadcrumbs_ties": lambda knobs: _breadcrumbs("breadcrumbs_ties", knobs),
    "sce": lambda knobs: f"sce(density={knobs.get('select_topk', 1.0)}, like='mergekit')",
}
ROUNDED: dict[str, Callable[[dict[str, Any]], str]] = {
    "linear": lambda knobs: "fedavg()",
    "model_stock": lambda knobs: "model_stock()",
    "slerp": lambda knobs: f"slerp(t={knobs['t']})",
    "nuslerp": lambda knobs: "nuslerp()",
    "multislerp": lambda knobs: "multislerp()",
    "karcher": lambda knobs: "karcher()",
    "ram": lambda knobs: f"ram(threshold={knobs['epsilon']}, rate=0)",
    "ramplus_tl": lambda knobs: (
        f"ram(threshold={knobs['epsilon']}, rate={knobs['r']}, limit={knobs['alpha']})"
    ),
}
# Relative Frobenius. mergekit stops its Karcher iteration after 10 steps, and at a step of 1e-5; the cosine
# of deltas that are nearly at right angles is a difference of large numbers.
TOLERANCE = {"karcher": 2e-5, "model_stock": 1e-5}


def _della(name: str, knobs: dict[str, Any]) -> str:
    return f"{name}(density={knobs['density']}, epsilon={knobs['epsilon']}, like='mergekit')"


def _breadcrumbs(name: str, knobs: dict[str, Any]) -> str:
    return f"{name}(density={knobs['density']}, gamma={knobs['gamma']}, like='mergekit')"


def _differs_on_purpose(golden: Golden) -> bool:
    """Told apart in TestKnownDifferences."""
    wiped_out = golden.method == "breadcrumbs" and golden.inputs == "few"
    return wiped_out or (golden.method == "model_stock" and _mean_cosine(golden) < 0)


def _mean_cosine(golden: Golden) -> float:
    units = torch.nn.functional.normalize(golden.values.flatten(1).to(torch.float64))
    clients = len(units)
    return float(((units @ units.T).sum() - clients) / (clients * (clients - 1)))


def _find(method: str, inputs: str, weights: list[float] | None = None, **knobs: object) -> Golden:
    for golden in GOLDEN:
        named = golden.method == method and golden.inputs == inputs
        if named and golden.knobs == knobs and (weights is None or golden.weights == weights):
            return golden
    raise LookupError(method)


def test_every_method_has_vectors_and_they_are_small() -> None:
    assert {golden.method for golden in GOLDEN} == EXACT.keys() | ROUNDED.keys()
    assert FILE.stat().st_size < 300_000


@pytest.mark.parametrize(
    "golden", [g for g in GOLDEN if g.method in EXACT and not _differs_on_purpose(g)], ids=str
)
def test_bit_for_bit(golden: Golden) -> None:
    ours = golden.merge(EXACT[golden.method](golden.knobs))
    if "lambda" in golden.knobs:
        ours = ours * golden.knobs["lambda"]
    assert torch.equal(ours, golden.result), f"{golden}: {int((ours != golden.result).sum())} entries differ"


@pytest.mark.parametrize(
    "golden", [g for g in GOLDEN if g.method in ROUNDED and not _differs_on_purpose(g)], ids=str
)
def test_equal_up_to_its_rounding(golden: Golden) -> None:
    ours = golden.merge(ROUNDED[golden.method](golden.knobs))
    error = float((ours - golden.result).norm() / golden.result.norm().clamp(min=1e-30))
    assert error < TOLERANCE.get(golden.method, 3e-7), f"{golden}: relative error {error:.1e}"


def test_a_scale_is_one_rounding_apart() -> None:
    golden = _find("ties", "matrix", density=0.2, **{"lambda": 0.3})
    ours = golden.merge("ties(density=0.2, scale=0.3, like='mergekit')")
    assert torch.allclose(ours, golden.result, rtol=2**-22, atol=0), (
        "lambda is applied in float64 and rounded once; mergekit rounds lambda to float32 first"
    )


class TestKnownDifferences:
    """What mergekit computes otherwise than our own rules do; a failure says that it changed."""

    def test_dare_is_rescaled_by_the_ratio_of_l1_norms(self) -> None:
        golden = _find("dare_linear", "matrix", density=0.5)
        rows = golden.values.flatten(1) * golden.masks
        ratios = golden.values.flatten(1).abs().sum(dim=1) / rows.abs().sum(dim=1)
        assert torch.allclose((rows * ratios[:, None]).sum(dim=0), golden.result.flatten(), rtol=1e-5), (
            "mergekit's dare_linear does not rescale by the ratio of the L1 norms any more"
        )
        assert ((ratios - 2).abs() > 0.01).any(), "the ratio is not 1 / density, which ours divides by"
        ours = golden.merge("dare(density=0.5)") * 4
        assert torch.allclose(ours, 2 * rows.sum(dim=0).reshape(ours.shape), rtol=1e-5, atol=1e-6)

    def test_dare_ties_is_an_undivided_sum(self) -> None:
        golden = _find("dare_ties", "matrix", density=0.5)
        ours = golden.merge("dare_ties(density=0.5)")
        assert golden.result.norm() / ours.norm() > 1.3, (
            "mergekit's dare_ties sums the clients that agree, ours is their mean"
        )

    def test_a_vote_of_zero_elects_plus(self) -> None:
        golden = _find("ties", "opposed", density=1.0)
        assert golden.values.sum(dim=0).tolist() == [0, 0, 0, 0]
        assert golden.result.tolist() == [2, 4, 0.375, 3], "mergekit lets + win a drawn vote"
        assert golden.merge("ties(density=1.0)").tolist() == [0, 0, 0, 0], "ours lets nobody win it"

    def test_one_entry_is_kept_of_a_small_tensor(self) -> None:
        golden = _find("ties", "few", density=0.2)
        assert golden.result.tolist() == [1.5], "mergekit keeps max(1, int(rho n)) entries, as ours does"
        assert golden.merge("ties(density=0.2)").tolist() == [1.5]

    def test_breadcrumbs_wipes_out_a_tensor_of_one_entry(self) -> None:
        golden = _find("breadcrumbs", "few", density=0.9, gamma=0.01)
        assert golden.result.tolist() == [0], "mergekit keeps int(0.9 * 1) = 0 entries"
        assert golden.merge("breadcrumbs(density=0.9, gamma=0.01)").tolist() == [2.5]
        assert golden.merge("breadcrumbs(density=0.9, gamma=0.01, like='mergekit')").tolist() == [2.5], (
            "nor does the preset wipe a tensor out"
        )

    def test_sce_forgets_the_energies_of_small_deltas(self) -> None:
        golden = _find("sce", "small", select_topk=1.0)
        even = golden.merge("ties(density=1.0)")
        drawn = golden.values.sum(dim=0) == 0
        assert torch.allclose(golden.result[~drawn], even[~drawn], rtol=1e-5, atol=0), (
            "below a sum of mean squares of 1e-6 mergekit's sce weighs all clients alike"
        )
        assert not torch.allclose(golden.merge("sce(density=1.0)"), even, rtol=1e-3, atol=0)

    def test_sce_has_no_weights(self) -> None:
        golden = _find("sce", "matrix", select_topk=0.5)
        weighted = Golden(**{**vars(golden), "weights": [5.0, 1.0, 1.0, 1.0]})
        assert torch.equal(weighted.merge("sce(density=0.5, like='mergekit')"), golden.result)
        assert not torch.allclose(weighted.merge("sce(density=0.5)"), golden.merge("sce(density=0.5)"))

    def test_model_stock_turns_around_where_clients_disagree(self) -> None:
        golden = next(g for g in GOLDEN if g.method == "model_stock" and _mean_cosine(g) < 0)
        mean = golden.values.mean(dim=0)
        assert (golden.result * mean).sum() < 0, "mergekit's ratio is negative at a negative mean cosine"
        assert not golden.merge("model_stock()").any(), "ours is 0: nothing is shared"

    def test_task_arithmetic_and_breadcrumbs_are_undivided_sums(self) -> None:
        for method, rule in [
            ("task_arithmetic", "task_arithmetic()"),
            ("breadcrumbs", "breadcrumbs(density=0.9, gamma=0.01)"),
        ]:
            knobs = {"density": 0.9, "gamma": 0.01} if method == "breadcrumbs" else {}
            golden = _find(method, "matrix", [0.4, 0.3, 0.2, 0.1], **knobs)
            assert torch.allclose(golden.merge(rule), 4 * golden.result, rtol=1e-5, atol=1e-6), (
                f"with weights that sum to 1 mergekit's {method} is a mean, ours N times that"
            )
