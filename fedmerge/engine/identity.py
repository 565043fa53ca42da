"""The private names of flwr that a message needs when no SuperLink is there. Nothing else touches them.

A `Message` takes its run and sender from `TaskIdentity`, a class that Flower's launchers fill in, and its id
from the SuperLink. tests/engine/test_identity.py is the contract test: it fails when an upgrade moves them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE = SUPERLINK_NODE_ID
RAISED = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
CRASHED = ErrorCode.CLIENT_APP_CRASHED
_FIELDS = ("_task_id", "_run_id", "_node_id")


@contextmanager
def server_identity(run_id: int) -> Iterator[None]:
    """Messages made inside come from the server of this run; what was set before comes back after.

    Example:
        >>> from flwr.app import RecordDict
        >>> with server_identity(run_id=7):
        ...     Message(RecordDict(), dst_node_id=3, message_type="query").metadata.run_id
        7
    """
    before = {field: getattr(TaskIdentity, field) for field in _FIELDS}
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, SERVER_NODE
    try:
        yield
    finally:
        for field, value in before.items():
            setattr(TaskIdentity, field, value)


def stamp(message: Message, message_id: str) -> None:
    """Give a message the id that the SuperLink would give it; its reply refers to it."""
    message.metadata.__dict__["_message_id"] = message_id


def empty_run(run_id: int) -> Run:
    """What a Grid says about its run, as far as there is anything to say."""
    return Run.create_empty(run_id)
