"""Faults 23 to 29: who says what, about which round and run; signed, and without signatures."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from flwr.app import Message, RecordDict

from fedmerge.errors import RoundFailed
from fedmerge.server.folder import RunFolder
from fedmerge.server.signed_grid import SignedGrid
from fedmerge.server.strategy import MergeStrategy
from fedmerge.server.streaming import StreamingGrid
from fedmerge.wire.protocol import FEDMERGE, Instruction, read_instruction
from tests.server.signing import RUN, identity_of, resigned, signed_node
from tests.server.world import FakeGrid, initial, node_of, roster_of

from .federation import BAD, NAMES, Outcome, hash_of, judged, left_out, run, without
from .link import Objects, link_grid

fault = pytest.mark.fault
OTHER = "e" * 64
OURS = "f" * 64


def sender(**fields):
    """Says something else of itself."""

    def change(content: RecordDict) -> RecordDict:
        content[FEDMERGE].update(fields)
        return content

    return change


class Twice(FakeGrid):
    """Delivers the bad silo's reply twice."""

    def pull_messages(self, message_ids):
        replies = list(super().pull_messages(message_ids))
        bad = [m for m in self.sent if read_instruction(m.content).silo == BAD]
        again = [
            Message(self.node(bad[-1]), reply_to=bad[-1])
            for reply in replies
            if reply.metadata.reply_to_message_id == bad[-1].metadata.message_id
        ]
        return [*replies, *again]


@fault(23)
def test_a_duplicate_counts_once(tmp_path):
    found = run(tmp_path / "run", node_of(), grid=Twice)
    assert found.refused == [(BAD, 1, "a second reply to the same message")]
    assert found.broadcasts == run(tmp_path / "once", node_of()).broadcasts


@fault(24)
def test_a_reply_of_a_past_round_is_refused(tmp_path):
    kept = {}

    def stale(content: RecordDict) -> RecordDict:
        kept.setdefault("reply", RecordDict({key: record.copy() for key, record in content.items()}))
        return RecordDict({key: record.copy() for key, record in kept["reply"].items()})

    found = run(tmp_path / "run", node_of({BAD: stale}), rounds=2)
    assert found.refused == [(BAD, 2, "it is of round 1, this is round 2")]
    only_once = {BAD: lambda content: content if content[FEDMERGE]["round"] == 1 else None}
    assert found.broadcasts == run(tmp_path / "absent", node_of(only_once), rounds=2).broadcasts


@fault(24)
def test_a_reply_of_a_round_to_come_is_refused(tmp_path):
    assert "it is of round 7" in left_out(tmp_path, sender(round=7), grid=link_grid).refused[0][2]


@fault(25)
def test_a_delta_on_another_base_is_refused(tmp_path):
    found = left_out(tmp_path, sender(fingerprint=OTHER), fingerprint=OURS, grid=link_grid)
    assert "its base is another" in found.refused[0][2]


@fault(27)
def test_another_silos_name_is_refused(tmp_path):
    found = left_out(tmp_path, sender(silo="a"), grid=link_grid)
    assert found.refused == [(BAD, 1, "it calls itself 'a', but the message went to 'd'")]


@fault(27)
def test_a_reply_that_says_it_answers_another_silos_message_is_refused(tmp_path):
    """What a reply answers stands in its own bytes, too, where its sender may write what he likes."""
    made = []

    def grid(node):
        made.append(link_grid(node, {BAD: lambda objects: impersonate(made[0]._client, objects)}))
        return made[0]

    found = judged(run(tmp_path / "run", node_of(), grid=grid))
    assert found.refused == [(BAD, 1, "it says that it answers another message")]


def impersonate(link, objects: Objects) -> None:
    """Put the id of the first silo's message in the place of one's own."""
    own, other = (next(m for m in link.sent if m[0] == silo)[1] for silo in (BAD, "a"))
    for name, content in objects.items():
        if content.startswith(b"Message "):
            assert own.encode() in content
            objects[name] = content.replace(own.encode(), other.encode())


@fault(23, 27)
def test_two_nodes_under_one_name_are_both_refused(tmp_path):
    """Where messages do not go to silos by name, neither of two that claim one is believed."""

    def node(message):
        return sender(silo="a" if message.metadata.dst_node_id in (11, 13) else "b")(
            node_of()(named(message))
        )

    def named(message):
        message.content["config"]["silo"] = "a"
        return message

    strategy = MergeStrategy(quorum=0.3, evaluate=False, min_nodes=3, wait_seconds=0)
    strategy.start(StreamingGrid(FakeGrid(node, nodes=(11, 12, 13))), initial(), num_rounds=1, timeout=1)
    assert [reply.silo for reply in strategy.last_replies] == ["b"]
    assert {refusal.reason for refusal in strategy.refused} == {"another node answered under the same name"}


# With signatures


def signed(folder: Path, node, *, rounds: int = 1, **settings) -> Outcome:
    """A run in which the server believes only what its roster's silos signed."""
    run_folder = RunFolder(folder, {"run.seed": 0})
    run_folder.start({})
    settings = {"quorum": 0.5, "wait_seconds": 0.0, "rule": "ties(density=0.5)", **settings}
    strategy = MergeStrategy(
        roster=roster_of(*NAMES), folder=run_folder, observer=run_folder,
        instruction=Instruction(run=RUN), **settings,
    )  # fmt: skip
    grid = SignedGrid(StreamingGrid(FakeGrid(node)), identity_of())
    failure = None
    try:
        strategy.start(grid, initial(), num_rounds=rounds, timeout=0.05)
    except RoundFailed as error:
        failure = error
    finally:
        run_folder.close()
    broadcasts = [hash_of(path) for path in sorted(folder.glob("rounds/*/broadcast.safetensors"))]
    refused = [(refusal.silo, refusal.round, refusal.code) for refusal in strategy.refused]
    return Outcome(broadcasts, refused, [], failure, strategy)


def said(content: RecordDict, message: Message, **fields) -> RecordDict:
    """Says something else of itself, and signs that."""
    content[FEDMERGE].update(fields)
    return resigned(content, BAD)


FORGERIES = {
    "of another run": (partial(said, run="f" * 16), "reply/run"),
    "of another silo": (partial(said, silo="a"), "reply/forged"),
    "signed by another silo": (lambda content, message: resigned(content, "c"), "reply/forged"),
    "of another base": (partial(said, fingerprint=OTHER), "reply/base"),
    "of a past round": (partial(said, round=0), "reply/stale"),
}


@fault(24, 25, 26, 27)
@pytest.mark.parametrize("case", FORGERIES)
def test_a_signed_lie_is_refused(tmp_path, case):
    change, code = FORGERIES[case]
    settings = {"fingerprint": OURS} if code == "reply/base" else {}
    found = signed(tmp_path / "run", signed_node({BAD: change}), **settings)
    assert found.refused == [(BAD, 1, code)]
    assert found.broadcasts == without(**settings).broadcasts


FIELDS = ["silo", "round", "run", "fingerprint", "nonce", "device", "signature"]


def flip_field(content: RecordDict, message: Message, key: str) -> RecordDict:
    value = content[FEDMERGE].get(key, "")
    changed = value ^ 1 if isinstance(value, int) else chr(ord((value or "a")[0]) ^ 1) + value[1:]
    content[FEDMERGE][key] = changed
    return content


def flip_bit(content: RecordDict, message: Message, name: str, bit: int) -> RecordDict:
    array = content["arrays"][name]
    data = bytearray(array.data)
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    array.data = bytes(data)
    return content


def heavier(content: RecordDict, message: Message) -> RecordDict:
    content["metrics"]["num-examples"] += 1
    return content


FLIPPED = {
    **{f"of {key}": partial(flip_field, key=key) for key in FIELDS},
    **{
        f"bit {bit} of {name}": partial(flip_bit, name=name, bit=bit)
        for name in ("head.weight", "base_model.model.q.lora_A.weight")
        for bit in (0, 70, 1024, 1030, 1200)
    },
    "of the weight": heavier,
}


@fault(28)
@pytest.mark.parametrize("case", FLIPPED)
def test_one_changed_bit_in_what_is_signed_is_refused(tmp_path, case):
    found = signed(tmp_path / "run", signed_node({BAD: FLIPPED[case]}))
    [(silo, number, code)] = found.refused
    assert (silo, number) == (BAD, 1)
    assert code.startswith("reply/")
    assert found.broadcasts == without().broadcasts


@fault(29)
def test_a_replayed_signed_reply_is_refused_and_counted(tmp_path):
    kept = {}

    def replay(content: RecordDict, message: Message) -> RecordDict:
        kept.setdefault("reply", RecordDict({key: record.copy() for key, record in content.items()}))
        return RecordDict({key: record.copy() for key, record in kept["reply"].items()})

    found = signed(tmp_path / "run", signed_node({BAD: replay}), rounds=3)
    assert [(silo, number) for silo, number, _ in found.refused] == [(BAD, 2), (BAD, 3)]
    assert {code for _, _, code in found.refused} <= {"reply/replayed", "reply/stale", "reply/forged"}
    once = {BAD: lambda content, message: content if content[FEDMERGE]["round"] == 1 else None}
    assert found.broadcasts == signed(tmp_path / "absent", signed_node(once), rounds=3).broadcasts


@fault(26, 28, 29)
def test_where_nothing_is_proven_the_round_fails(tmp_path):
    found = signed(tmp_path / "run", node_of())
    assert "The adapter of round 0 is intact" in str(found.failure)
    assert {code for _, _, code in found.refused} == {"reply/unsigned"}
