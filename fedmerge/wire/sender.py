"""Who answers: the "fedmerge" record of a reply."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, RecordDict

from fedmerge.errors import WireError
from fedmerge.wire.fields import LONGEST_SENTENCE, read, silo_name
from fedmerge.wire.schema import shown

FEDMERGE = "fedmerge"
_CODE = re.compile(r"[a-z0-9]([a-z0-9/-]{0,58}[a-z0-9])?")


@dataclass(frozen=True)
class Sender:
    """Who answers: the "fedmerge" record of a reply.

    Args:
        silo: its name; "" in Flower apps that know none.
        round: of the instruction that is answered; -1 where the app does not say.
        fingerprint: of the base that the silo trained on; "" where unknown.
        device: "cpu" or "cuda"; "" where unknown.
        gpu_seen: whether the process that answers sees a GPU.
        failure: class name of the exception that ended the silo's work; "" where it went well.
        sentence: what the exception said; only in simulations, as it may name private things.
        code: what a deployed silo may say instead, "policy/max-rounds".
        run: of the instruction that is answered; "" where it has none.
        nonce: of the instruction that is answered, where the reply is signed.
        signature: of the silo, over all of the reply.
    """

    silo: str = ""
    round: int = -1
    fingerprint: str = ""
    device: str = ""
    gpu_seen: bool = False
    failure: str = ""
    sentence: str = ""
    code: str = ""
    run: str = ""
    nonce: str = ""
    signature: str = ""

    @property
    def complaint(self) -> str:
        """Why the silo failed, on one line and not too long: its sentence, or the error's name and code."""
        sentence = " ".join(self.sentence.split())[:LONGEST_SENTENCE]
        coded = f" ({self.code})" if self.code else ""
        if sentence.isprintable() and sentence:
            return sentence
        return f"failed with {shown(self.failure)}{coded}"

    def to_config(self) -> ConfigRecord:
        """The "fedmerge" record."""
        record = ConfigRecord({"silo": self.silo, "round": self.round, "fingerprint": self.fingerprint})
        record["device"], record["gpu-seen"] = self.device, self.gpu_seen
        if self.failure:
            record["failure"], record["sentence"] = self.failure, self.sentence
        record.update({key: value for key, value in self._optional.items() if value})
        return record

    @property
    def _optional(self) -> dict[str, str]:
        """What stands in the record only where there is something to say."""
        return {"code": self.code, "run": self.run, "nonce": self.nonce, "signature": self.signature}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Sender:
        """Read a "fedmerge" record.

        Raises:
            WireError: a key has a value of another type.
        """
        return cls(
            silo=silo_name(read(config, "silo", str, "")),
            round=read(config, "round", int, -1),
            fingerprint=read(config, "fingerprint", str, ""),
            device=read(config, "device", str, ""),
            gpu_seen=read(config, "gpu-seen", bool, False),
            failure=read(config, "failure", str, ""),
            sentence=read(config, "sentence", str, ""),
            code=_code(read(config, "code", str, "")),
            run=read(config, "run", str, ""),
            nonce=read(config, "nonce", str, ""),
            signature=read(config, "signature", str, ""),
        )


def _code(code: str) -> str:
    """A code as it may stand in logs.

    Raises:
        WireError: it is none.
    """
    if code and not _CODE.fullmatch(code):
        raise WireError(f"message key 'code' is {shown(code)}, expected a short code such as 'policy/steps'")
    return code


def read_sender(content: RecordDict) -> Sender:
    """Who answers; an empty `Sender` for Flower apps that send no "fedmerge" record."""
    record = content.get(FEDMERGE)
    return Sender.from_config(record) if isinstance(record, ConfigRecord) else Sender()
