import pytest
from flwr.app import Message, RecordDict

from fedmerge.engine.identity import server_identity
from fedmerge.errors import ConfigError
from fedmerge.wire.lifetime import expired, seconds_left, working_seconds


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


@pytest.mark.parametrize(("late", "left"), [(0, 90), (30, 60), (89, 1), (-50, 90)])
def test_a_silo_works_for_what_is_left_less_the_way_back(message, late, left):
    born = message.metadata.created_at
    assert working_seconds(90.0, message.metadata, born + late) == pytest.approx(left, abs=0.01)


def test_without_a_limit_there_is_none(message):
    assert working_seconds(0.0, message.metadata, message.metadata.created_at + 1000) == 0.0


def test_a_message_that_is_too_old_is_refused_with_both_reasons(message):
    with pytest.raises(
        ConfigError, match=r"110 seconds too late .* lives 100 seconds.* asleep, or its clock"
    ):
        working_seconds(90.0, message.metadata, message.metadata.created_at + 200)
