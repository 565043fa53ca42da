"""Who the server is to its silos, and whose replies it believes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


@dataclass(frozen=True)
class Member:
    """One silo of a federation.

    Args:
        key: its public key.
        most_examples: the most training rows that it may count as; 0 is without a cap.
        revoked: whether its signatures are no longer good.
    """

    key: Ed25519PublicKey
    most_examples: int = 0
    revoked: bool = False


Members = Mapping[str, Member]


@dataclass(frozen=True)
class Identity:
    """With what a server signs, and the silos whose signatures it asks for.

    Args:
        federation: its name, part of everything that is signed.
        key: the server's private key.
        members: gives the silos by name, as they are now: a silo may be revoked while a run goes on.
    """

    federation: str
    key: Ed25519PrivateKey
    members: Callable[[], Members]

    @property
    def caps(self) -> dict[str, int]:
        """The most rows that a silo may count as, for each that has a cap."""
        return {name: member.most_examples for name, member in self.members().items() if member.most_examples}
