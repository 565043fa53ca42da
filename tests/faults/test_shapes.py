"""Faults 7 to 16: names, shapes and dtypes of a delta, over Flower's own grid."""

from __future__ import annotations

import itertools

import pytest
import torch
from flwr.app import ArrayRecord, Message

from fedmerge.adapters import Adapter, Lora
from fedmerge.adapters.merge import merge
from fedmerge.errors import AdapterMismatch
from fedmerge.wire.protocol import Instruction, instruction_content
from fedmerge.wire.records import from_record, to_record
from tests.server.world import FakeGrid, bits, node_of, tensors

from .changes import HEAD, A, B, good, records, replaced, sending
from .federation import BAD, everyone, intact, left_out, run
from .link import link_grid

fault = pytest.mark.fault

HOSTILE = {
    "a way out of the folder": "../../../etc/cron.d/x",
    "an absolute path": "/etc/passwd",
    "a NUL": "head\x00.weight",
    "10 kB": "x" * 10_000,
    "a look-alike": "he\u0430d.weight",
    "nothing": "",
    "terminal codes": "\x1b[2J\nround 1: a is refused",
    "right to left": "\u202eweight.head",
    "a lone surrogate's neighbour": "\ud7ff\ue000",
}


@fault(7)
@pytest.mark.parametrize("name", [A, B, HEAD])
def test_a_transposed_tensor_is_refused(tmp_path, name):
    given = good(name).t().contiguous()
    found = left_out(tmp_path, replaced(name, given), grid=link_grid)
    told = f"'{name}' has shape {tuple(given.shape)}, the broadcast has {tuple(good(name).shape)}"
    assert found.refused == [(BAD, 1, told)]


@fault(8)
@pytest.mark.parametrize("given", [good()[:1], good()[:, :1], good()[None], good().flatten()])
def test_a_broadcastable_shape_is_refused(tmp_path, given):
    found = left_out(tmp_path, replaced(A, given.contiguous()), grid=link_grid)
    assert f"has shape {tuple(given.shape)}" in found.refused[0][2]


@fault(9)
def test_a_scalar_is_refused(tmp_path):
    found = left_out(tmp_path, replaced(A, torch.tensor(1.0)), grid=link_grid)
    assert "has shape ()" in found.refused[0][2]


@fault(10)
@pytest.mark.parametrize("name", [A, B, HEAD])
def test_a_missing_key_is_refused(tmp_path, name):
    change = sending(lambda sent: {key: value for key, value in sent.items() if key != name})
    assert f"has no '{name}'" in left_out(tmp_path, change, grid=link_grid).refused[0][2]


@fault(11)
def test_an_extra_key_is_refused(tmp_path):
    found = left_out(tmp_path, replaced("extra.weight", good()), grid=link_grid)
    assert "has 'extra.weight' too many" in found.refused[0][2]


@fault(12)
@pytest.mark.parametrize("given", [ArrayRecord(), None])
def test_an_empty_or_absent_record_is_refused(tmp_path, given):
    left_out(tmp_path, records(given), grid=link_grid)


@fault(13)
@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.parametrize("instead", [True, False])
def test_a_hostile_key_is_refused_and_named_harmlessly(tmp_path, case, instead, caplog):
    """Beside the right keys or instead of one; what is logged is printable and short."""
    name = HOSTILE[case]
    kept = {HEAD} if instead else set()
    change = sending(
        lambda sent: {**{key: value for key, value in sent.items() if key not in kept}, name: good(HEAD)}
    )
    found = left_out(tmp_path / "inner", change, grid=link_grid)
    reason = found.refused[0][2]
    assert reason.isascii()
    assert reason.isprintable()
    assert len(reason) < 500
    assert all(line.isprintable() for line in caplog.messages if "is refused" in line)
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]


@fault(13)
@pytest.mark.parametrize("key", ["statistics/../../x", "arrays\x00", "\x1b[2J"])
def test_a_hostile_record_name_changes_nothing(tmp_path, key):
    def change(content):
        content[key] = content["arrays"]
        del content["arrays"]
        return content

    found = run(tmp_path / "inner" / "run", node_of({BAD: change}), grid=link_grid)
    assert found.failure is None
    assert [path.name for path in (tmp_path / "inner").iterdir()] == ["run"]


OTHER_ADAPTERS = {
    "another rank": {A: torch.ones(4, 4), B: torch.ones(3, 4)},
    "A and B swapped": {A: good(B), B: good(A)},
    "A and B swapped and turned": {A: good(B).t().contiguous(), B: good(A).t().contiguous()},
}


@fault(14)
@pytest.mark.parametrize("case", OTHER_ADAPTERS)
def test_an_adapter_of_another_kind_is_refused(tmp_path, case):
    left_out(tmp_path, sending(lambda sent: {**sent, **OTHER_ADAPTERS[case]}), grid=link_grid)


@fault(14)
def test_other_target_modules_are_refused(tmp_path):
    renamed = sending(lambda sent: {key.replace(".q.", ".v."): value for key, value in sent.items()})
    found = left_out(tmp_path, renamed, grid=link_grid)
    assert "has no 'base_model.model.q.lora_A.weight'" in found.refused[0][2]


@fault(14)
def test_another_alpha_is_refused_where_adapters_bring_their_own():
    """On the wire there is none: silos take alpha from the run that they were asked to join."""
    given = [Adapter(tensors(seed), Lora(rank=2, alpha=alpha)) for seed, alpha in ((1, 4.0), (2, 8.0))]
    with pytest.raises(AdapterMismatch, match="alpha"):
        merge(given)


@fault(15)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.bool])
def test_another_dtype_is_refused(tmp_path, dtype):
    found = left_out(tmp_path, replaced(A, good().to(dtype)), grid=link_grid)
    assert "expected float32" in found.refused[0][2]


@fault(15)
@pytest.mark.parametrize("encoding", ["bf16", "fp16"])
def test_a_declared_cast_gives_the_broadcasts_dtype_in_any_order(tmp_path, encoding):
    node = node_of(encoding=encoding)
    results = []
    for place, order in enumerate(itertools.permutations(range(4))):
        if place % 5 == 0:
            grid = lambda node, o=order: FakeGrid(node, order=lambda replies: [replies[n] for n in o])  # noqa: E731
            results.append(run(tmp_path / str(place), node, encoding=encoding, grid=grid))
    assert len({found.broadcasts[1] for found in results}) == 1
    assert {value.dtype for value in results[0].strategy.broadcast.tensors.values()} == {torch.float32}
    wide = run(tmp_path / "wide", node_of({BAD: replaced(A, good())}, encoding), encoding=encoding)
    assert [(silo, number) for silo, number, _ in wide.refused] == [(BAD, 1)]


@fault(16)
def test_bf16_travels_exactly():
    """Every finite bit pattern, both ways, through Flower's own objects."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    patterns = patterns[patterns.isfinite()]
    came = []

    def node(message):
        came.append(from_record(message.content["arrays"])["x"])
        return message.content

    content = instruction_content(to_record({"x": patterns}), Instruction(silo="a"))
    [reply] = link_grid(node).send_and_receive([Message(content, 11, "train")])
    back = from_record(reply.content["arrays"])["x"]
    assert torch.equal(came[0].view(torch.int16), patterns.view(torch.int16))
    assert torch.equal(back.view(torch.int16), patterns.view(torch.int16))


@fault(16)
def test_a_delta_in_bf16_arrives_as_it_was_sent(tmp_path):
    found = run(tmp_path / "run", node_of(encoding="bf16"), encoding="bf16", grid=link_grid)
    for reply in found.strategy.last_replies:
        sent = tensors(1000 + ord(reply.silo), 0.1)
        assert bits(reply.delta.tensors) == bits(
            {key: value.bfloat16().float() for key, value in sent.items()}
        )


@fault(10, 11, 12)
def test_where_every_reply_is_refused_the_round_fails(tmp_path):
    found = run(tmp_path / "run", node_of(everyone(records(ArrayRecord()))), grid=link_grid)
    assert "0 of 4 silos gave a usable reply" in intact(found)
