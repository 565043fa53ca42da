"""A deployed silo's proof of who it is, and its check of who asks.

Where a site has credentials, a message is believed only if the server of its federation signed it, for this
silo, and lately; every reply is signed, that of a failure too. Nothing is loaded or trained before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fedmerge.errors import WireError
from fedmerge.wire.instruction import CONFIG, Instruction, read_instruction
from fedmerge.wire.payloads import message_payload, put_signature, reply_payload
from fedmerge.wire.schema import shown
from fedmerge.wire.sender import FEDMERGE
from fedmerge.wire.signatures import load_key, load_public, sign, verify

CLOCK_TOLERANCE_SECONDS = 300.0
"""How far the clocks of server and site may lie apart."""


class MessageRefused(WireError):
    """A message that this silo does not answer; the server sees `code`, the site's log the sentence."""

    def __init__(self, code: str, sentence: str) -> None:
        """Name the reason, "signature/forged", and say it in full."""
        super().__init__(sentence)
        self.code = code


@dataclass(frozen=True)
class Credentials:
    """What a silo signs with, and whom it believes.

    Args:
        federation: its name; signatures made for another one prove nothing here.
        silo: the name of this silo.
        key: its private key.
        server: the server's public key.
    """

    federation: str
    silo: str
    key: Ed25519PrivateKey
    server: Ed25519PublicKey

    @classmethod
    def load(cls, federation: str, silo: str, signing_key: Path, server_key: str) -> Credentials:
        """Read the keys.

        Args:
            federation: its name.
            silo: the name of this silo.
            signing_key: path of this silo's private key.
            server_key: the server's public key, base64.

        Raises:
            ConfigError: a key that can't be read, or that others on this machine can read.
        """
        return cls(federation, silo, load_key(signing_key), load_public(server_key))

    def check(self, message: Message, *, clock: Callable[[], float] = time.time) -> Instruction:
        """The instruction of a message, if the server of this federation signed it for this silo, lately.

        Raises:
            MessageRefused: it did not; the code begins with "signature/".
            WireError: the instruction can't be read.
        """
        if not isinstance(message.content.get(CONFIG), ConfigRecord):
            raise MessageRefused("signature/missing", "the message has no signature of the server")
        instruction = read_instruction(message.content)
        self._check_server(message, instruction)
        self._check_silo(message.metadata.message_type, instruction.silo)
        _check_age(instruction, clock())
        return instruction

    def sign(self, content: RecordDict, message: Message) -> RecordDict:
        """The content of a reply to `message`, signed; what says who answers is added where it is missing.

        Raises:
            WireError: the content has no "fedmerge" record.
        """
        record = content.get(FEDMERGE)
        if not isinstance(record, ConfigRecord):
            raise WireError(f"the reply has no config record {FEDMERGE!r} to sign")
        asked = message.content.get(CONFIG)
        echoed = asked if isinstance(asked, ConfigRecord) else {}
        record["silo"] = self.silo
        for key in ("run", "nonce"):
            record[key] = str(echoed.get(key, ""))
        record["round"] = echoed.get("round", 0) if type(echoed.get("round", 0)) is int else 0
        payload = reply_payload(content, message.metadata.message_type, self.federation)
        put_signature(content, FEDMERGE, sign(self.key, payload))
        return content

    def _check_server(self, message: Message, instruction: Instruction) -> None:
        if not instruction.signature:
            raise MessageRefused("signature/missing", "the message has no signature of the server")
        if instruction.federation != self.federation:
            raise MessageRefused(
                "signature/federation",
                f"the message is of federation {shown(instruction.federation)}, this silo is of "
                f"{shown(self.federation)}",
            )
        payload = message_payload(message.content, message.metadata.message_type, self.federation)
        if not verify(self.server, payload, instruction.signature):
            raise MessageRefused(
                "signature/forged",
                "the signature is not the server's over this message: it was forged, or changed on its way",
            )

    def _check_silo(self, kind: str, silo: str) -> None:
        """A query goes to nodes before the server knows which silos they are; all else names its silo."""
        if silo != self.silo and not (kind == MessageType.QUERY and not silo):
            raise MessageRefused(
                "signature/silo", f"the message is for silo {shown(silo)}, this is {shown(self.silo)}"
            )


def _check_age(instruction: Instruction, now: float) -> None:
    """Refuse a message that is over, or of a time to come, and say what both clocks show."""
    issued, end = instruction.issued, instruction.issued + instruction.lifetime_seconds
    if now > end + CLOCK_TOLERANCE_SECONDS:
        problem = "signature/expired", f"it was to be answered within {instruction.lifetime_seconds:g} s"
    elif now < issued - CLOCK_TOLERANCE_SECONDS:
        problem = "signature/clock", "that is still to come"
    else:
        return
    raise MessageRefused(
        problem[0],
        f"the message was made at {_time(issued)} by the server's clock, it is {_time(now)} by this site's: "
        f"{problem[1]}; {CLOCK_TOLERANCE_SECONDS:g} s between the clocks are tolerated",
    )


def _time(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError, OSError):
        return f"{seconds:g} s after 1970"
