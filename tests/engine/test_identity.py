"""The contract with flwr's private names. After an upgrade, mend fedmerge/engine/identity.py."""

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedmerge.engine.identity import CRASHED, RAISED, SERVER_NODE, empty_run, server_identity, stamp


def test_messages_made_inside_come_from_the_server_of_the_run():
    with server_identity(run_id=7):
        message = Message(RecordDict(), dst_node_id=3, message_type="train")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (7, SERVER_NODE)
    assert message.metadata.dst_node_id == 3


def test_what_was_set_before_comes_back_also_after_an_error():
    with server_identity(run_id=1):
        with pytest.raises(KeyboardInterrupt), server_identity(run_id=2):
            raise KeyboardInterrupt
        assert TaskIdentity.run_id == 1


def test_unset_identity_is_unset_again(monkeypatch):
    for field in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, field, None)
    with server_identity(run_id=2):
        pass
    with pytest.raises(RuntimeError):
        _ = TaskIdentity.run_id


def test_a_reply_refers_to_the_stamp():
    with server_identity(run_id=7):
        message = Message(RecordDict(), dst_node_id=3, message_type="train")
    stamp(message, "41")
    assert message.metadata.message_id == "41"
    assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == "41"


def test_error_codes_and_run():
    assert (RAISED, CRASHED) == (2, 8)
    assert empty_run(7).run_id == 7
