"""Ed25519 signatures over canonical JSON: who said something, and that nobody changed it since.

Keys and arithmetic are the `cryptography` package's. What is signed is a flat mapping of names to values,
written as JSON with sorted keys, so that both sides sign and check the same bytes.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from fedmerge.errors import ConfigError

Signed = Mapping[str, str | int | float | bool]


def new_key() -> bytes:
    """A new private key as PKCS8 PEM, unencrypted: whoever writes it to a file sets mode 0600."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public_text(key: bytes | Ed25519PrivateKey) -> str:
    """The public half of a private key (or of its PEM), as base64 of its 32 bytes."""
    private = key if isinstance(key, Ed25519PrivateKey) else _private(key, "the key")
    raw = private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return base64.b64encode(raw).decode()


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read a private key.

    Raises:
        ConfigError: no such file, one that others than its owner can read, or no Ed25519 key in PKCS8 PEM.
    """
    try:
        _check_private(path)
        return _private(path.read_bytes(), str(path))
    except OSError as err:
        raise ConfigError(f"{path}: the signing key can't be read ({err.strerror})") from None


def load_public(text: str) -> Ed25519PublicKey:
    """Read a public key as `public_text` writes it.

    Raises:
        ConfigError: it is no base64 of 32 bytes.
    """
    try:
        return Ed25519PublicKey.from_public_bytes(_decoded(text))
    except (binascii.Error, ValueError):
        raise ConfigError(f"{text[:60]!r} is no public key: expected base64 of 32 bytes (Ed25519)") from None


def sign(key: Ed25519PrivateKey, payload: Signed) -> str:
    """The signature over a payload, as base64.

    Example:
        >>> pem = new_key()
        >>> signature = sign(_private(pem, "a"), {"silo": "a", "round": 3})
        >>> public = load_public(public_text(pem))
        >>> verify(public, {"round": 3, "silo": "a"}, signature)
        True
        >>> verify(public, {"round": 4, "silo": "a"}, signature)
        False
    """
    return base64.b64encode(key.sign(canonical(payload))).decode()


def verify(public: Ed25519PublicKey, payload: Signed, signature: str) -> bool:
    """Whether `signature` is over this very payload, by the owner of the key."""
    try:
        public.verify(_decoded(signature), canonical(payload))
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def canonical(payload: Signed) -> bytes:
    """The bytes that are signed: JSON with sorted keys and no spaces, ASCII, no NaN."""
    return json.dumps(dict(payload), sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _check_private(path: Path) -> None:
    """Refuse a key that is no secret."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(
            f"{path}: the signing key has mode {mode:04o}, so that others than its owner can read or change "
            f"it; expected 0600: chmod 600 {path}"
        )


def _decoded(text: str) -> bytes:
    """What base64 says, written as we write it: other spellings of the same bytes are refused."""
    raw = base64.b64decode(text, validate=True)
    if base64.b64encode(raw).decode() != text:
        raise ValueError("not as base64 is written")
    return raw


def _private(pem: bytes, where: str) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"{where} is no Ed25519 private key in PKCS8 PEM")
    return key
