from __future__ import annotations

import pytest

from fedmerge.engine.identity import server_identity


@pytest.fixture(autouse=True)
def identity():
    """Messages need a run and a sender."""
    with server_identity(run_id=1):
        yield
