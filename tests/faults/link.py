"""Flower's own grid over a SuperLink in memory: replies are taken apart and put together as over the network.

What a silo's node pushed lies here as objects, so that a test can change any byte of them before the server
pulls them.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse, PushObjectResponse
from flwr.proto.runtime_pb2 import GetNodesResponse, PullAppMessagesResponse, PushAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.superlink.grid.http_grid import HttpGrid

from fedmerge.engine.identity import empty_run
from fedmerge.wire.packing import is_packed, pack, unpack
from fedmerge.wire.protocol import read_instruction
from tests.server.world import Node

Objects = dict[str, bytes]
"""What a node pushed: the content of each object by its id."""

Tamper = Callable[[Objects], None]
"""Changes a node's objects in place; their ids stay what they were."""


class Link:
    """The Runtime API of a SuperLink whose nodes are a function; to packed messages they answer packed.

    Args:
        node: answers a message.
        tamper: by silo, what becomes of the objects of its replies.
        nodes: ids of the connected nodes.
    """

    def __init__(self, node: Node, tamper: dict[str, Tamper], nodes: tuple[int, ...] = (11, 12)) -> None:
        self.node, self.tamper, self.nodes = node, tamper, nodes
        self.objects: Objects = {}
        self.waiting: dict[str, Any] = {}
        self.pulled_bytes = 0
        self.sent: list[tuple[str, str]] = []

    def GetNodes(self, request: Any) -> GetNodesResponse:
        response = GetNodesResponse()
        for node in self.nodes:
            response.nodes.add().node_id = node
        return response

    def PushMessages(self, request: Any) -> PushAppMessagesResponse:
        trees = zip(request.messages_list, request.message_object_trees, strict=True)
        self.waiting |= {tree.object_id: (message, tree) for message, tree in trees}
        wanted = [
            part.object_id for tree in request.message_object_trees for part in iterate_object_tree(tree)
        ]
        return PushAppMessagesResponse(message_ids=list(self.waiting), objects_to_push=wanted)

    def PushObject(self, request: Any) -> PushObjectResponse:
        self.objects[request.object_id] = request.object_content
        return PushObjectResponse(stored=True)

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:
        response = PullAppMessagesResponse()
        for message_id in request.message_ids:
            reply = self._answer(*self.waiting.pop(message_id)) if message_id in self.waiting else None
            if reply is not None:
                response.messages_list.append(message_to_proto(remove_content_from_message(reply)))
                response.message_object_trees.append(get_object_tree(reply))
        return response

    def PullObject(self, request: Any) -> PullObjectResponse:
        content = self.objects[request.object_id]
        self.pulled_bytes += len(content)
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def ConfirmMessageReceived(self, request: Any) -> SimpleNamespace:
        return SimpleNamespace()

    def _answer(self, sent: Any, tree: Any) -> Message | None:
        """What the node of a message makes of it, its objects pushed."""
        contents = {part.object_id: self.objects[part.object_id] for part in iterate_object_tree(tree)}
        message = inflate_object_from_contents(tree.object_id, contents)
        message.metadata.__dict__.update(vars(message_from_proto(sent).metadata))
        message.metadata.__dict__["_message_id"] = tree.object_id
        silo = read_instruction(message.content).silo
        self.sent.append((silo, tree.object_id))
        packed = is_packed(message.content)
        unpack(message.content)
        answer = self.node(message)
        if answer is None:
            return None
        answer = pack(answer) if packed and isinstance(answer, RecordDict) else answer
        reply = Message(answer, reply_to=message)
        objects = {name: part.deflate() for name, part in get_all_nested_objects(reply).items()}
        self.tamper.get(silo, lambda objects: None)(objects)
        self.objects |= objects
        reply.metadata.__dict__["_message_id"] = reply.object_id
        return reply


def link_grid(node: Node, tamper: dict[str, Tamper] | None = None) -> HttpGrid:
    """Flower's grid for ServerApps, connected to such a link."""
    grid = HttpGrid(token="none", insecure=True)
    grid.set_run(empty_run(1))
    grid._client = Link(node, tamper or {})  # type: ignore[assignment]
    return grid
