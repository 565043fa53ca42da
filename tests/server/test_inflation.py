"""What Flower puts together while its own joiner is replaced, and the private names that this leans on."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from flwr.app import Array, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import (
    inflatable_class_registry,
    inflate_object_from_contents,
)

from fedmerge.server.heap import return_freed_memory
from fedmerge.server.inflation import BESIDES, Oversized, limited, most_bytes
from fedmerge.wire.protocol import Instruction, instruction_content
from fedmerge.wire.records import count_bytes

from .world import initial


def contents(record: RecordDict) -> tuple[str, dict[str, bytes]]:
    objects = get_all_nested_objects(record)
    return record.object_id, {name: part.deflate() for name, part in objects.items()}


def test_flower_knows_arrays_by_the_name_that_is_replaced():
    assert inflatable_class_registry["Array"] is Array
    with limited(object(), 1000):
        assert inflatable_class_registry["Array"] is not Array
    assert inflatable_class_registry["Array"] is Array


def test_what_is_joined_is_what_flower_joins(monkeypatch):
    """Of many chunks, some of them equal, and of none."""
    monkeypatch.setattr("flwr.app.message.array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", 16)
    record = RecordDict({"arrays": initial()})
    record["arrays"]["zeros"] = Array("float32", (40,), "raw", bytes(160))
    record["arrays"]["none"] = Array("float32", (0,), "raw", b"")
    head, objects = contents(record)
    plain = inflate_object_from_contents(head, dict(objects))
    with limited(object(), 10_000):
        ours = inflate_object_from_contents(head, dict(objects))
    assert {name: vars(array)["data"] for name, array in ours["arrays"].items()} == {
        name: vars(array)["data"] for name, array in plain["arrays"].items()
    }
    assert list(ours["arrays"]) == list(record["arrays"])


def test_more_than_there_may_be_is_not_joined():
    head, objects = contents(RecordDict({"arrays": initial()}))
    with limited(object(), 100), pytest.raises(Oversized):
        inflate_object_from_contents(head, dict(objects))
    assert inflatable_class_registry["Array"] is Array


def test_objects_are_counted_as_they_are_pulled_by_whichever_thread():
    class Client:
        def PullObject(self, request: object) -> SimpleNamespace:
            return SimpleNamespace(object_content=b"x" * 10)

    client, refused = Client(), []
    with limited(SimpleNamespace(_runtime_client=client), 95):

        def pull() -> None:
            try:
                client.PullObject(None)
            except Oversized:
                refused.append(1)

        threads = [threading.Thread(target=pull) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(refused) == 11
    assert "PullObject" not in vars(client)


def test_how_large_an_answer_may_be():
    def size(**fields: object) -> int:
        return most_bytes(Message(instruction_content(initial(), Instruction(**fields)), 11, "train"))

    sent = count_bytes(instruction_content(initial(), Instruction()))
    assert size() == sent + BESIDES
    assert size(statistics=("fisher",)) > 3 * sent
    assert most_bytes(Message(RecordDict(), 11, "query")) == BESIDES


def test_large_blocks_go_back_to_the_machine_where_the_c_library_can_be_told():
    assert return_freed_memory() in (True, False)
