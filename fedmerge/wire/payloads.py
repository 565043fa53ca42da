"""What is signed of a message and of a reply.

Both payloads name their purpose and the federation, so that a signature made for one thing proves no other,
and have a digest of every record: there is nothing in a message that a signature does not cover, but for the
signature itself and Flower's own metadata.

    message  purpose, federation, kind ("train", "evaluate", "query"), "record <name>" for each record
    reply    the same, and what the sender says: run, round, silo, fingerprint, nonce, examples
"""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from fedmerge.errors import WireError
from fedmerge.wire.digests import Record, digest
from fedmerge.wire.instruction import CONFIG
from fedmerge.wire.protocol import EXAMPLES, METRICS
from fedmerge.wire.sender import FEDMERGE, read_sender
from fedmerge.wire.signatures import Signed

SIGNATURE = "signature"
MESSAGE_PURPOSE = "fedmerge message 1"
REPLY_PURPOSE = "fedmerge reply 1"

Digest = Callable[[Record], str]


def message_payload(
    content: RecordDict, kind: str, federation: str, arrays_digest: Digest = digest
) -> Signed:
    """What the server signs of a message.

    Args:
        content: of the message, complete but for its signature.
        kind: the type of the message.
        federation: its name.
        arrays_digest: of a record of arrays; one that remembers saves hashing a broadcast for every silo.
    """
    return {
        "purpose": MESSAGE_PURPOSE,
        "federation": federation,
        "kind": kind,
        **_records(content, CONFIG, arrays_digest),
    }


def reply_payload(content: RecordDict, kind: str, federation: str) -> Signed:
    """What a silo signs of a reply.

    Args:
        content: of the reply, complete but for its signature; the "fedmerge" record says who answers what.
        kind: the type of the message that is answered.
        federation: its name.

    Raises:
        WireError: the "fedmerge" record has a value of another type.
    """
    sender = read_sender(content)
    return {
        "purpose": REPLY_PURPOSE,
        "federation": federation,
        "kind": kind,
        "run": sender.run,
        "round": sender.round,
        "silo": sender.silo,
        "fingerprint": sender.fingerprint,
        "nonce": sender.nonce,
        "examples": _examples(content),
        **_records(content, FEDMERGE, digest),
    }


def put_signature(content: RecordDict, name: str, signature: str) -> None:
    """Put a signature into the record that has its place there.

    Raises:
        WireError: there is no such record.
    """
    record = content.get(name)
    if not isinstance(record, ConfigRecord):
        raise WireError(f"there is no config record {name!r} to put a signature into")
    record[SIGNATURE] = signature


def _examples(content: RecordDict) -> str:
    """The silo's weight as text: whatever a reply claims has one."""
    metrics = content.get(METRICS)
    return repr(metrics.get(EXAMPLES)) if isinstance(metrics, MetricRecord) else ""


def _records(content: RecordDict, signed: str, arrays_digest: Digest) -> dict[str, str]:
    """The digest of each record by its name; that of `signed` without its signature."""
    return {
        f"record {name}": digest(record, without=(SIGNATURE,))
        if name == signed and isinstance(record, ConfigRecord)
        else arrays_digest(record)
        for name, record in content.items()
    }
