"""Keys of Flower's own: a SuperNode's key pair, and the secret that a SuperExec shows."""

from __future__ import annotations

import base64
import secrets
from dataclasses import dataclass

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

_SECRET_BYTES = 48


@dataclass(frozen=True)
class NodeKey:
    """A SuperNode's key pair in OpenSSH's format; Flower takes NIST curves only."""

    private: bytes
    public: bytes


def new_node_key(silo: str) -> NodeKey:
    """A new key pair; the silo's name is the comment of its public half.

    Example:
        >>> new_node_key("hospital-a").public.split()[0]
        b'ecdsa-sha2-nistp384'
    """
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return NodeKey(private, line + b" " + silo.encode() + b"\n")


def new_secret() -> bytes:
    """A secret that a SuperLink or SuperNode shares with its SuperExec: text without a line end.

    Flower reads the file's exact bytes.
    """
    return base64.b64encode(secrets.token_bytes(_SECRET_BYTES))
