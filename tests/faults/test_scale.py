"""Fault 46: one, two and a hundred clients, replies in any order: the same bits."""

from __future__ import annotations

import random

import pytest
import torch

from fedmerge.wire.protocol import Sender, read_instruction, reply_content
from tests.server.world import SHAPES, FakeGrid

from .federation import run
from .link import link_grid

pytestmark = pytest.mark.fault(46)

RULES = ["fedavg()", "ties(density=0.5)", "dare(density=0.5)", "median()", "geometric_median()"]


def node(message):
    """Any silo: a delta and a weight that depend on its name and the round alone."""
    instruction = read_instruction(message.content)
    generator = torch.Generator().manual_seed(1000 * instruction.round + int(instruction.silo[1:]))
    delta = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    sender = Sender(instruction.silo, instruction.round, instruction.fingerprint, "cpu")
    return reply_content(delta, 1 + int(instruction.silo[1:]) % 7, sender=sender)


def shuffled(seed: int):
    drawn = random.Random(seed)
    return lambda node: FakeGrid(
        node,
        nodes=tuple(range(11, 11 + drawn.randint(1, 5))),
        order=lambda replies: drawn.sample(replies, len(replies)),
    )


@pytest.mark.parametrize(
    ("clients", "rule", "space"),
    [(2, rule, space) for rule in RULES for space in ("factors()", "product()")]
    + [
        (1, "ties(density=0.5)", "product()"),
        (100, "ties(density=0.5)", "factors()"),
        (100, "fedavg()", "product()"),
    ],
)
def test_the_order_of_replies_and_who_carries_them_change_no_bit(tmp_path, clients, rule, space):
    names = tuple(f"s{number:03}" for number in range(clients))
    seen = {
        tuple(run(tmp_path / str(place), node, names=names, rule=rule, space=space, grid=grid).broadcasts)
        for place, grid in enumerate([shuffled(1), shuffled(2), link_grid])
    }
    assert len(seen) == 1
