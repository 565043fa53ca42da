"""A world in which the server signs what it asks, and the silos what they answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message, RecordDict

from fedmerge.server.identity import Identity, Member
from fedmerge.server.signed_grid import SignedGrid
from fedmerge.server.strategy import MergeStrategy
from fedmerge.silo.credentials import Credentials
from fedmerge.wire.payloads import put_signature, reply_payload
from fedmerge.wire.protocol import FEDMERGE, Instruction, read_instruction
from fedmerge.wire.records import from_record
from fedmerge.wire.signatures import sign

from .world import ABC, Answer, FakeGrid, Node, honest, initial, roster_of

FEDERATION = "heart-study"
RUN = "0123456789abcdef"
SERVER = Ed25519PrivateKey.generate()
KEYS = {silo: Ed25519PrivateKey.generate() for silo in "abcd"}
MEMBERS = {silo: Member(key.public_key()) for silo, key in KEYS.items()}

Change = Callable[[RecordDict, Message], Answer]


def identity_of(**changes: Member) -> Identity:
    return Identity(FEDERATION, SERVER, lambda: {**MEMBERS, **changes})


def credentials_of(silo: str) -> Credentials:
    return Credentials(FEDERATION, silo, KEYS[silo], SERVER.public_key())


def resigned(
    content: RecordDict, signer: str, kind: str = "train", federation: str = FEDERATION
) -> RecordDict:
    """The content with a signature by the key of `signer` over what it says now."""
    put_signature(content, FEDMERGE, sign(KEYS[signer], reply_payload(content, kind, federation)))
    return content


def signed_node(changes: Mapping[str, Change] | None = None) -> Node:
    """Every silo checks who asks, answers and signs; `changes` makes something else of some answers."""

    def answer(message: Message) -> Answer:
        silo = read_instruction(message.content).silo
        credentials = credentials_of(silo)
        instruction = credentials.check(message)
        content = credentials.sign(honest(instruction, from_record(message.content["arrays"])), message)
        change = (changes or {}).get(silo)
        return content if change is None else change(content, message)

    return answer


def signed_run(
    node: Node,
    *,
    rounds: int = 1,
    grid: Callable[[Node], FakeGrid] = FakeGrid,
    identity: Identity | None = None,
    **arguments,
):
    arguments = {"wait_seconds": 0.0, "quorum": 0.3, "roster": roster_of(*ABC), **arguments}
    rule = arguments.pop("rule", "ties(density=0.5)")
    strategy = MergeStrategy(rule, instruction=Instruction(run=RUN), **arguments)
    signed = SignedGrid(grid(node), identity or identity_of())
    return strategy, strategy.start(signed, initial(), num_rounds=rounds, timeout=0.1)
