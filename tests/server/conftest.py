from __future__ import annotations

import pytest

from fedmerge.engine.identity import server_identity

from .world import bits, node_of, run


@pytest.fixture(autouse=True)
def identity():
    """Messages need a run and a sender."""
    with server_identity(run_id=1):
        yield


@pytest.fixture(scope="session")
def without_b() -> dict[str, bytes]:
    """The bits of a round of ties in which silo b did not answer."""
    with server_identity(run_id=1):
        return bits(run(node_of({"b": lambda _: None}), rule="ties(density=0.5)")[1].arrays)
