import pytest
from flwr.app import Message, RecordDict

from fedmerge.engine.identity import server_identity
from fedmerge.wire.lifetime import expired, seconds_left


@pytest.fixture
def message():
    with server_identity(run_id=1):
        return Message(RecordDict(), dst_node_id=3, message_type="train", ttl=100.0)


def test_a_message_lives_as_long_as_its_round(message):
    born = message.metadata.created_at
    assert seconds_left(message.metadata, born + 30) == pytest.approx(70)
    assert not expired(message)
    message.metadata.ttl = 0.0
    assert expired(message)
