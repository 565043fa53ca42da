"""Rules of inner products over adapters: against the rule on dense updates, and without ever forming them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fedmerge.adapters.adapter import Adapter, Lora
from fedmerge.adapters.coefficients import decide
from fedmerge.adapters.context import Context
from fedmerge.adapters.grams import gram_of_tensors, gram_of_updates
from fedmerge.adapters.merge import merge
from fedmerge.adapters.pairs import split_names
from fedmerge.adapters.updates import updates_of
from fedmerge.errors import RuleError
from fedmerge.rules import Draw, Stack, by_name, fedavg, median, parse_rule

from .conftest import MODULES

WEIGHTS = [3.0, 1.0, 2.0, 0.5, 1.5]
NAMES = tuple("abcde")
RULES = [
    "model_stock()",
    "model_stock(scope='adapter')",
    "karcher()",
    "multislerp(scope='adapter')",
    "krum()",
    "krum(scope='tensor')",
    "multi_krum()",
    "geometric_median()",
    "geometric_median(scope='tensor')",
    "norm_clipping()",
    "norm_clipping(limit=3.0, scope='tensor')",
    "chain(equal_weights(), clip_norm(), multi_krum(), scale(factor=0.7))",
]


def alike(make, lora=None, dtype=torch.float64):
    """Five deltas with much in common, and one of them far off."""
    common = make(100, lora=lora, dtype=dtype)
    deltas = []
    for seed in range(5):
        own = make(seed, lora=lora, dtype=dtype)
        size = 5.0 if seed == 3 else 0.3
        tensors = {name: common.tensors[name] + size * own.tensors[name] for name in own.tensors}
        deltas.append(Adapter({name: tensor.to(dtype) for name, tensor in tensors.items()}, common.lora))
    return deltas


def on_vectors(rule, parts):
    """The rule on dense vectors, unit by unit, or on all of them as one where its scope is the adapter."""
    names = list(parts)

    def call(name, values):
        stack = Stack(torch.from_numpy(values), torch.tensor(WEIGHTS, dtype=torch.float64)[:, None])
        return rule(stack, Draw(0, 0, NAMES, name, (values.shape[1],))).numpy()

    if rule.scope == "tensor":
        return {name: call(name, parts[name]) for name in names}
    whole = call("", np.concatenate([parts[name] for name in names], axis=1))
    return dict(zip(names, np.split(whole, np.cumsum([parts[n].shape[1] for n in names])[:-1]), strict=True))


def updates(dense, deltas, received):
    """Each module's updates and the head, `(clients, coordinates)`."""
    before = dense(received) if received else dict.fromkeys(MODULES, 0.0)
    after = [dense(delta, plus=received) for delta in deltas]
    parts = {m: np.stack([(own[m] - before[m]).ravel() for own in after]) for m in MODULES}
    return parts | {"head.weight": np.stack([d.tensors["head.weight"].numpy().ravel() for d in deltas])}


@pytest.mark.parametrize("space", ["product(rank=10)", "core(rank=10)", "stacked()"])
@pytest.mark.parametrize("with_received", [False, True])
@pytest.mark.parametrize("text", RULES)
def test_products_are_merged_as_the_dense_updates_would_be(make, dense, text, with_received, space):
    received = make(7, dtype=torch.float64) if with_received else None
    deltas = alike(make)
    wanted = on_vectors(parse_rule(text), updates(dense, deltas, received))
    merged = merge(deltas, WEIGHTS, names=NAMES, received=received, rule=text, space=space).adapter
    start = dense(received) if received else dict.fromkeys(MODULES, 0.0)
    for module, found in dense(merged).items():
        moved = found - start[module]
        wished = wanted[module].reshape(moved.shape)
        np.testing.assert_allclose(moved, wished, atol=1e-9 * np.abs(wished).max() + 1e-12)
    head = merged.tensors["head.weight"].numpy() - (
        received.tensors["head.weight"].numpy() if received else 0
    )
    np.testing.assert_allclose(head.ravel(), wanted["head.weight"], atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", RULES)
def test_factors_are_merged_tensor_by_tensor_or_as_one(make, text, dtype):
    deltas = alike(make, dtype=dtype)
    parts = {
        name: np.stack([delta.tensors[name].double().numpy().ravel() for delta in deltas])
        for name in sorted(deltas[0].tensors)
    }
    wanted = on_vectors(parse_rule(text), parts)
    merged = merge(deltas, WEIGHTS, names=NAMES, rule=text)
    assert merged.report.kernel == "plain"
    for name, tensor in merged.adapter.tensors.items():
        assert tensor.dtype == dtype
        rounding = torch.finfo(dtype).eps * np.abs(wanted[name]).max()
        np.testing.assert_allclose(tensor.double().numpy().ravel(), wanted[name], atol=rounding + 1e-12)


@pytest.mark.parametrize("space", ["factors()", "product()", "stacked()"])
@pytest.mark.parametrize(
    "text", ["model_stock()", "krum()", "karcher(scope='adapter')", "geometric_median()"]
)
def test_the_order_of_the_replies_does_not_change_a_bit(make, same_bits, text, space):
    deltas, order = alike(make, dtype=torch.float32), [3, 0, 4, 2, 1]
    one = merge(deltas, WEIGHTS, names=NAMES, rule=text, space=space)
    shuffled = [[items[place] for place in order] for items in (deltas, WEIGHTS, NAMES)]
    two = merge(shuffled[0], shuffled[1], names=shuffled[2], rule=text, space=space)
    assert same_bits(one.adapter, two.adapter)


@pytest.mark.parametrize("text", RULES)
@pytest.mark.parametrize("with_received", [False, True])
def test_gauge_how_a_silo_factored_its_update_does_not_show(make, dense, text, with_received):
    received = make(7, dtype=torch.float64) if with_received else None
    deltas = alike(make)
    turned = [_refactored(delta, received, seed) for seed, delta in enumerate(deltas)]
    for one, two in zip(deltas, turned, strict=True):
        assert not torch.allclose(
            one.tensors[f"{MODULES[0]}.lora_A.weight"], two.tensors[f"{MODULES[0]}.lora_A.weight"]
        )
    knobs = {"names": NAMES, "received": received, "rule": text, "space": "product(rank=10)"}
    plain, other = (dense(merge(given, WEIGHTS, **knobs).adapter) for given in (deltas, turned))
    for module, matrix in plain.items():
        assert np.linalg.norm(matrix) > 0.1
        assert np.linalg.norm(other[module] - matrix) < 1e-9 * np.linalg.norm(matrix)


def _refactored(delta, received, seed):
    """`R^-1 A` and `B R`, with an R of condition 10 for each module."""
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(delta.tensors)
    for pair in split_names(tensors)[0]:
        rank = delta.lora.rank
        left, right = (
            torch.linalg.qr(torch.randn(rank, rank, generator=generator, dtype=torch.float64))[0]
            for _ in range(2)
        )
        turn = left @ torch.linspace(1, 10, rank, dtype=torch.float64).diag() @ right
        a, b = (0, 0) if received is None else (received.tensors[pair.a], received.tensors[pair.b])
        tensors[pair.a] = torch.linalg.solve(turn, a + delta.tensors[pair.a]) - a
        tensors[pair.b] = (b + delta.tensors[pair.b]) @ turn - b
    return Adapter(tensors, delta.lora)


@pytest.mark.parametrize("start, ranks", [(0, [2, 2, 2]), (0, [1, 4, 2, 3]), (3, [3, 3, 3]), (2, [2])])
def test_inner_products_of_products(start, ranks):
    generator = torch.Generator().manual_seed(0)

    def adapter(rank):
        return Adapter(
            {
                "q.lora_A.weight": torch.randn(rank, 20, generator=generator),
                "q.lora_B.weight": torch.randn(30, rank, generator=generator),
            },
            Lora(rank, alpha=5),
        )

    received = adapter(start) if start else None
    deltas = [adapter(rank) for rank in ranks]
    (pair,), _ = split_names(deltas[0].tensors)
    found = updates_of(pair, received, deltas, torch.device("cpu"))
    dense = [found.left(client) @ found.right(client) for client in range(len(ranks))]
    gram = gram_of_updates(found)
    torch.testing.assert_close(gram, gram_of_tensors(dense), rtol=1e-12, atol=1e-9)
    assert torch.equal(gram, gram.T)


def test_long_tensors_are_multiplied_stretch_by_stretch(monkeypatch):
    tensors = [torch.randn(7, 11, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    whole = gram_of_tensors(tensors)
    monkeypatch.setattr("fedmerge.adapters.grams.CHUNK_ENTRIES", 10)
    torch.testing.assert_close(gram_of_tensors(tensors), whole, rtol=1e-14, atol=1e-14)
    monkeypatch.setattr("fedmerge.adapters.coefficients.TILE", 5)
    deltas = [{"x": tensor} for tensor in tensors]
    tiled = merge(deltas, names=NAMES[:3], rule="model_stock()").adapter.tensors["x"]
    monkeypatch.undo()
    torch.testing.assert_close(
        merge(deltas, names=NAMES[:3], rule="model_stock()").adapter.tensors["x"], tiled
    )


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation gave."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize("with_received", [False, True])
@pytest.mark.parametrize("text", ["model_stock()", "krum()"])
def test_a_layer_of_20000_by_20000_is_merged_in_little_memory(text, with_received):
    """Dense it has 400 million values, 3.2 GB in float64 for each silo."""
    side, rank, clients = 20_000, 4, 5
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(2, rank, side, generator=generator)

    def adapter(scale):
        a, b = common + scale * torch.randn(2, rank, side, generator=generator)
        return Adapter({"q.lora_A.weight": a, "q.lora_B.weight": b.T.contiguous()}, Lora(rank, 8))

    deltas = [adapter(0.5) for _ in range(clients)]
    received = adapter(1.0) if with_received else None
    with Largest() as largest:
        merged = merge(deltas, received=received, rule=text, space="product()")
    assert 0 < largest.numel <= 2 * (clients + 1) * rank * side  # all factors, twice
    assert merged.adapter.tensors["q.lora_B.weight"].abs().max() > 0


CONTEXT = Context(torch.tensor([1.0, 3.0, 1.0], dtype=torch.float64), ("a", "b", "c"))


def never():
    raise AssertionError("this Gram matrix is not needed")


def test_linear_rules_have_coefficients_without_a_gram_matrix():
    assert decide(fedavg(), {"x": never}, CONTEXT)["x"].tolist() == [0.2, 0.6, 0.2]


def test_rules_that_look_further_are_left_out():
    rule = by_name({"x": fedavg(), "y": median()})
    assert list(decide(rule, {"x": never, "y": never}, CONTEXT)) == ["x"]


def test_a_rule_over_the_adapter_sees_the_sum_over_the_units_that_fall_to_it():
    far = {
        name: torch.diag(torch.tensor(squares, dtype=torch.float64))
        for name, squares in (("x", [0.0, 9, 1]), ("y", [0, 0, 5]), ("z", [9, 0, 0]))
    }
    clip = "norm_clipping(limit=1.0)"
    grams = {name: (lambda gram=gram: gram) for name, gram in far.items()}
    found = decide(by_name({"z": "norm_clipping(limit=1.5)"}, default=clip), grams, CONTEXT)
    shares = torch.tensor([0.2, 0.6, 0.2], dtype=torch.float64)
    both = shares * torch.tensor([1, 1 / 3, 1 / 6**0.5], dtype=torch.float64)
    torch.testing.assert_close(found["x"], both)
    torch.testing.assert_close(found["y"], both)
    torch.testing.assert_close(found["z"], shares * torch.tensor([0.5, 1, 1], dtype=torch.float64))


class Claims:
    """A rule of another package that says it needs inner products alone, and then has no use for them."""

    kind, scope, separable = "coefficients", "tensor", False

    def __call__(self, stack, draw):
        return stack.values[0]

    def linear(self, weights):
        return None

    def __str__(self):
        return "claims()"


def test_a_rule_that_lacks_what_its_kind_says_is_refused():
    with pytest.raises(
        RuleError, match=r"claims\(\) is of kind 'coefficients', but has no method coefficients"
    ):
        merge([{"x": torch.ones(2)}, {"x": torch.zeros(2)}], rule=Claims())


@pytest.mark.parametrize("space", ["product()", "stacked()", "residual()", "core()"])
def test_task_negation_equals_a_negated_update(make, dense, space):
    """In spaces of products -(B A) is the delta with the other sign of B, whatever the space does."""
    deltas = [make(seed, dtype=torch.float64) for seed in range(3)]
    turned = {
        name: -tensor if name.endswith("lora_B.weight") or name == "head.weight" else tensor
        for name, tensor in deltas[1].tensors.items()
    }
    against = [deltas[0], Adapter(turned, deltas[1].lora), deltas[2]]
    names, weights = ["a", "b", "c"], [1.0, 2.0, 1.0]
    negated = merge(deltas, weights, rule="task_arithmetic(scale=0.5, negate='b')", space=space, names=names)
    plain = merge(against, weights, rule="task_arithmetic(scale=0.5)", space=space, names=names)
    wanted = dense(plain.adapter)
    for module, product in dense(negated.adapter).items():
        np.testing.assert_allclose(product, wanted[module], rtol=0, atol=1e-9)
    assert torch.allclose(negated.adapter.tensors["head.weight"], plain.adapter.tensors["head.weight"])


def test_task_negation_in_products_forms_no_dense_matrix(make):
    """An adapter's linear rule is decided by weights and names alone."""
    context = Context(torch.ones(3, dtype=torch.float64), ("a", "b", "c"))

    def never():
        raise AssertionError("no Gram matrix is needed")

    decided = decide(parse_rule("task_arithmetic(scale=0.5, negate='b')"), {"x": never}, context)
    assert decided["x"].tolist() == [0.5, -0.5, 0.5]


@pytest.mark.parametrize("kernel", ["auto", "plain"])
def test_task_negation_in_factors(make, kernel):
    deltas = [make(seed) for seed in range(2)]
    rule = "task_arithmetic(negate='b')"
    merged = merge(deltas, rule=rule, names=["a", "b"], kernel=kernel)
    for name, tensor in merged.adapter.tensors.items():
        assert torch.equal(tensor, deltas[0].tensors[name] - deltas[1].tensors[name])
    assert merged.report.rule == "task_arithmetic(scale=1.0, negate='b')"
    with pytest.raises(RuleError, match="'c' is not among the clients"):
        merge(deltas, rule="task_arithmetic(negate='c')", names=["a", "b"])
    with pytest.raises(RuleError, match="'b' is not among the clients"):
        merge(deltas, [1, 0], rule=rule, names=["a", "b"])
