"""Statistics in a round: asked for where the rule needs them, checked, merged, recorded, counted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from safetensors.torch import load_file

from fedmerge.adapters.merge import merge
from fedmerge.errors import RoundFailed, RuleError
from fedmerge.server.folder import RunFolder
from fedmerge.server.plan import Plan
from fedmerge.server.settings import StrategySettings
from fedmerge.server.strategy import MergeStrategy
from fedmerge.wire.protocol import QueryReply, read_instruction, reply_content
from fedmerge.wire.records import to_record

from .world import SHAPES, bits, honest, initial, node_of, run, streaming, tensors

A, B, HEAD = SHAPES
Q = "base_model.model.q"
Change = Callable[[RecordDict], object]


def fishers(silo: str) -> dict[str, torch.Tensor]:
    return {name: value.square() for name, value in tensors(ord(silo[0])).items()}


def grams(silo: str) -> dict[str, torch.Tensor]:
    rows = torch.randn(6, 2, generator=torch.Generator().manual_seed(ord(silo[0])))
    return {Q: rows.T @ rows}


def measuring(changes: Mapping[str, Change] | None = None, encoding: str = "exact"):
    """A node that sends along what it is asked for, but for what `changes` makes of some answers."""

    def answer(message: Message):
        instruction = read_instruction(message.content)
        content = honest(instruction, {}, encoding)
        ways = {"fisher": fishers, "gram": grams}
        for name in instruction.statistics:
            content["statistics/" + name] = to_record(ways[name](instruction.silo))
        change = (changes or {}).get(instruction.silo)
        return content if change is None else change(content)

    return answer


def statistic(name: str, key: str, value: torch.Tensor | None) -> Change:
    def change(content: RecordDict) -> RecordDict:
        record = content["statistics/" + name]
        del record[key]
        if value is not None:
            record[key] = to_record({key: value})[key]
        return content

    return change


def without(name: str) -> Change:
    def change(content: RecordDict) -> RecordDict:
        del content["statistics/" + name]
        return content

    return change


def as_config(content: RecordDict) -> RecordDict:
    content["statistics/fisher"] = ConfigRecord({"x": 1})
    return content


@pytest.mark.parametrize(
    ("rule", "name", "ways"), [("fisher()", "fisher", fishers), ("regmean()", "gram", grams)]
)
@pytest.mark.parametrize("encoding", ["exact", "fp16"])
def test_a_round_merges_what_the_silos_measured(rule, name, ways, encoding):
    strategy, _ = run(measuring(encoding=encoding), rule=rule, encoding=encoding)
    assert [reply.silo for reply in strategy.last_replies] == ["a", "b", "c"]
    wanted = merge(
        [reply.delta for reply in strategy.last_replies],
        [10, 30, 20],
        received=tensors(0),
        rule=rule,
        names=["a", "b", "c"],
        round=1,
        statistics=[{name: ways(silo)} for silo in "abc"],
    )
    assert bits(strategy.broadcast.tensors) == bits(wanted.adapter.tensors)
    mean = merge([reply.delta for reply in strategy.last_replies], [10, 30, 20], received=tensors(0))
    assert bits(mean.adapter.tensors) != bits(wanted.adapter.tensors)


def test_nothing_is_asked_for_where_no_rule_needs_it():
    sent = []

    def node(message):
        sent.append(message.content["config"]["statistics"])
        return node_of()(message)

    run(node)
    assert sent == ["", "", ""]


def test_a_shadow_asks_for_its_statistics_and_the_rule_does_without():
    strategy, result = run(measuring(), shadows="fisher(); regmean() @ factors(); median()")
    assert list(strategy.shadow_adapters) == [
        "fisher() @ factors()", "regmean() @ factors()", "median() @ factors()",
    ]  # fmt: skip
    assert bits(result.arrays) == bits(run(node_of())[1].arrays)
    alone, _ = run(measuring(), rule="fisher()")
    assert bits(strategy.shadow_adapters["fisher() @ factors()"].tensors) == bits(alone.broadcast.tensors)


def test_evaluate_messages_ask_for_no_statistics():
    asked = {}

    def node(message):
        asked[message.metadata.message_type] = message.content["config"]["statistics"]
        return reply_content(None, 1) if "evaluate" in asked else measuring()(message)

    run(node, rule="fisher()", evaluate=True)
    assert asked == {"train": "fisher", "evaluate": ""}


BAD = {
    "none, of an older silo": ("fisher()", without("fisher"), "carries no 'statistics/fisher' .*older than"),
    "no record of tensors": ("fisher()", as_config, "carries no 'statistics/fisher'"),
    "a tensor too few": ("fisher()", statistic("fisher", B, None), r"has no 'base_model\.model\.q\.lora_B"),
    "another shape": ("fisher()", statistic("fisher", B, torch.ones(2, 3)), r"has shape \(2, 3\)"),
    "huge": ("fisher()", statistic("fisher", B, torch.ones(300, 200)), r"has shape \(300, 200\)"),
    "another dtype": ("fisher()", statistic("fisher", B, torch.ones(3, 2).double()), "is 'float64'"),
    "negative": ("fisher()", statistic("fisher", B, -torch.ones(3, 2)), "lora_B.* is negative in 6 of 6"),
    "NaN": ("fisher()", statistic("fisher", B, torch.full((3, 2), torch.nan)), "lora_B.* has 6 NaN and 0"),
    "Inf": ("regmean()", statistic("gram", Q, torch.full((2, 2), torch.inf)), "4 infinite"),
    "no Gram": ("regmean()", without("gram"), "carries no 'statistics/gram'"),
    "no square": ("regmean()", statistic("gram", Q, torch.ones(2, 3)), r"shape \(2, 3\)"),
    "indefinite": (
        "regmean()",
        statistic("gram", Q, torch.tensor([[1.0, 3.0], [3.0, 1.0]])),
        "model.q.* has the eigenvalue -2",
    ),
    "lopsided": (
        "regmean()",
        statistic("gram", Q, torch.tensor([[1.0, 0.5], [0.0, 1.0]])),
        "model.q.* is not symmetric",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", sorted(BAD))
def test_a_reply_whose_statistics_can_not_be_is_refused_and_leaves_no_trace(case):
    rule, change, reason = BAD[case]
    strategy, result = run(measuring({"b": change}), rule=rule)
    [refusal] = strategy.refused
    assert refusal.silo == "b" and re.search(reason, refusal.reason), refusal.reason
    without_b, other = run(measuring({"b": lambda _: None}), rule=rule)
    assert bits(result.arrays) == bits(other.arrays) and not without_b.refused


def test_silos_that_send_none_fail_the_round_by_name_and_reason():
    with pytest.raises(RoundFailed, match=r"refused: a \(it carries no 'statistics/fisher'"):
        run(node_of(), rule="fisher()", quorum=1.0)


def test_bytes_and_recorded_statistics(tmp_path):
    folder = RunFolder(tmp_path / "run", {"run.rounds": 1})
    folder.start({})
    with folder:
        strategy, _ = run(measuring(), rule="fisher()", folder=folder, record=True)
    values = sum(value.numel() for value in tensors(0).values())
    plain, _ = run(node_of())
    assert strategy.rounds[0].bytes_up - plain.rounds[0].bytes_up >= 3 * 4 * values
    kept = tmp_path / "run" / "rounds" / "0001"
    assert bits(load_file(kept / "statistics" / "b.fisher.safetensors")) == bits(fishers("b"))
    hashes = json.loads((kept / "state.json").read_text())["sha256"]
    assert {"statistics/a.fisher.safetensors", "deltas/a.safetensors"} < hashes.keys()


def test_a_space_of_products_is_refused_before_anything_is_sent():
    with pytest.raises(RuleError, match=r"fisher\(\) needs .*not in product\(\)"):
        MergeStrategy("fisher()", "product()")
    with pytest.raises(RuleError, match=r"regmean\(\) needs .*not in product\(\)"):
        Plan.of(StrategySettings(shadows="regmean() @ product()"))
    assert Plan.of(StrategySettings(rule="fisher()", shadows="regmean()")).needs == {"fisher", "gram"}


def test_a_flower_app_of_ones_own():
    """No roster: the config says what is asked for, and the helper builds the reply."""

    def node(message: Message) -> RecordDict:
        assert message.content["config"]["statistics"] == "fisher"
        silo = "ab"[message.metadata.dst_node_id - 11]
        return reply_content(tensors(ord(silo), 0.1), 10, statistics={"fisher": fishers(silo)})

    strategy = MergeStrategy("fisher()", evaluate=False)
    strategy.start(streaming(node), initial(), num_rounds=1)
    assert [sorted(reply.statistics) for reply in strategy.last_replies] == [["fisher"], ["fisher"]]


def test_an_adapter_without_pairs_has_no_gram_to_send():
    def node(message: Message) -> RecordDict:
        return reply_content({"head.weight": torch.ones(2)}, 10)

    strategy = MergeStrategy("regmean()", evaluate=False)
    strategy.start(streaming(node), to_record({"head.weight": torch.zeros(2)}), num_rounds=1)
    assert strategy.broadcast.tensors["head.weight"].tolist() == [1.0, 1.0]


def test_what_a_silo_can_measure_travels_in_its_first_answer():
    reply = QueryReply((), statistics=("fisher", "gram"))
    assert QueryReply.from_content(reply.to_content()).statistics == ("fisher", "gram")
    older = reply.to_content()
    del older["fedmerge"]["statistics"]
    assert QueryReply.from_content(older).statistics == ()
    assert isinstance(reply_content(None, 1).get("arrays", ArrayRecord()), ArrayRecord)
