"""A world without processes: a Flower grid whose nodes are a function, and silos that answer as told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from flwr.app import ArrayRecord, Error, Message, RecordDict
from flwr.serverapp import Grid

from fedmerge.engine.identity import stamp
from fedmerge.server.roster import Roster
from fedmerge.server.strategy import MergeStrategy
from fedmerge.server.streaming import StreamingGrid
from fedmerge.wire.protocol import Card, Instruction, Sender, read_instruction, reply_content
from fedmerge.wire.records import from_record, to_record

Answer = RecordDict | Error | None
Node = Callable[[Message], Answer]

SHAPES = {
    "base_model.model.q.lora_A.weight": (2, 4),
    "base_model.model.q.lora_B.weight": (3, 2),
    "head.weight": (2, 3),
}


def tensors(seed: int, scale: float = 1.0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def bits(adapter: Mapping[str, torch.Tensor] | ArrayRecord) -> dict[str, bytes]:
    values = from_record(adapter) if isinstance(adapter, ArrayRecord) else adapter
    return {
        name: value.reshape(-1).view(torch.uint8).numpy().tobytes() for name, value in sorted(values.items())
    }


@dataclass
class FakeGrid(Grid):
    """Every message is answered by `node`; replies are handed out in the order that `order` gives them."""

    node: Node
    nodes: Sequence[int] = (11, 12)
    order: Callable[[list[Message]], list[Message]] = lambda replies: replies
    sent: list[Message] = field(default_factory=list)
    replies: dict[str, Message] = field(default_factory=dict)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        answered = []
        for message in messages:
            stamp(message, f"m{len(self.sent)}")
            self.sent.append(message)
            answer = self.node(message)
            if answer is not None:
                answered.append(Message(answer, reply_to=message))
        self.replies |= {reply.metadata.reply_to_message_id: reply for reply in self.order(answered)}
        return [message.metadata.message_id for message in self.sent[-len(list(messages)) :]]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        wanted = set(message_ids)
        return [self.replies.pop(name) for name in list(self.replies) if name in wanted]

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(list(messages)))

    def get_node_ids(self):
        return list(self.nodes)

    def get_nodes(self):
        return []

    def set_run(self, run):
        pass

    @property
    def run(self):
        return "the run"

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)


EXAMPLES = {"a": 10, "b": 30, "c": 20, "d": 40}


def honest(
    instruction: Instruction, broadcast: Mapping[str, torch.Tensor], encoding: str = "exact"
) -> RecordDict:
    """What a good silo answers: a delta, and scores of the broadcast, that depend on silo and round alone."""
    silo, number = instruction.silo, instruction.round
    delta = tensors(1000 * number + ord(silo[0]), 0.1)
    scores = {
        "received/validation/bits_per_byte": 2.0 - 0.1 * number + 0.01 * ord(silo[0]),
        "train_loss": 1.0,
    }
    sender = Sender(silo, number, instruction.fingerprint, "cpu")
    return reply_content(
        delta,
        EXAMPLES[silo],
        metrics=scores | {"received/validation/count": 5},
        sender=sender,
        encoding=encoding,
    )


def node_of(
    changes: Mapping[str, Callable[[RecordDict], Answer]] | None = None, encoding: str = "exact"
) -> Node:
    """A node that serves every silo honestly, but for what `changes` makes of some silos' answers."""

    def answer(message: Message) -> Answer:
        instruction = read_instruction(message.content)
        content = honest(instruction, from_record(message.content["arrays"]), encoding)
        change = (changes or {}).get(instruction.silo)
        return content if change is None else change(content)

    return answer


def roster_of(*names: str, shared: bool = True) -> Roster:
    cards = tuple(Card(name, EXAMPLES.get(name, 1)) for name in sorted(names))
    homes = {} if shared else {card.name: 11 + index for index, card in enumerate(cards)}
    return Roster(cards, homes, shared)


def initial() -> ArrayRecord:
    return to_record(tensors(0))


def streaming(node: Node, **fields) -> StreamingGrid:
    return StreamingGrid(FakeGrid(node, **fields))


ABC = ("a", "b", "c")


def run(node, *, rounds=1, names=ABC, nodes=(11, 12), order=None, **arguments):
    arguments = {"wait_seconds": 0.0, "quorum": 0.5, "roster": roster_of(*names), **arguments}
    strategy = MergeStrategy(
        arguments.pop("rule", "fedavg()"), arguments.pop("space", "factors()"), **arguments
    )
    grid = streaming(node, nodes=nodes, **({"order": order} if order else {}))
    result = strategy.start(grid, initial(), num_rounds=rounds, timeout=0.1)
    return strategy, result


def examples(value):
    def change(content: RecordDict) -> RecordDict:
        content["metrics"]["num-examples"] = value
        return content

    return change
