"""Signals that must not get lost."""

from __future__ import annotations

import signal
from contextlib import suppress

import pytest
from flwr.app import Message, RecordDict

from fedmerge.engine.executors import InProcess
from fedmerge.engine.grid import LocalGrid
from fedmerge.engine.identity import server_identity
from fedmerge.engine.processes import lasting_interrupts, raise_if_interrupted


def test_an_interrupt_that_was_swallowed_is_raised_when_replies_are_waited_for():
    grid = LocalGrid(InProcess(lambda message: message), [1], 1)
    with server_identity(1):
        [name] = grid.push_messages([Message(RecordDict(), 1, "train")])
    with pytest.raises(KeyboardInterrupt), lasting_interrupts():
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        grid.pull_messages([name])
        pytest.fail("it was forgotten")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    raise_if_interrupted()  # and is so from here on
