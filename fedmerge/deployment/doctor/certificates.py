"""Certificates on disk: how long they hold, whether they match their keys, who issued them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedmerge.deployment.doctor.finding import CLOSED, OPEN, Finding, judged

DAYS = 30
"""A certificate that holds for less than this is reported."""

_ROTATE = "fedmerge deploy rotate"


def of_folder(folder: Path, now: datetime) -> Iterator[Finding]:
    """All that can be said about the certificates of a party's folder."""
    authority = folder / "ca.crt"
    for path in sorted([*folder.glob("*.pem"), *folder.glob("*.crt")]):
        if (revoked := _revoked(path)) is not None:
            yield revocations(revoked, path.name, now)
            continue
        certificate = read(path)
        if certificate is None:
            yield Finding(f"certificate {path.name}", OPEN, str(path), "no certificate can be read", _ROTATE)
            continue
        yield lifetime(certificate, path.name, now)
        if (key := path.with_suffix(".key")).exists():
            yield belongs(certificate, key)
        if path != authority and authority.exists():
            yield issued(certificate, path.name, authority)
    yield from authority_key(folder)


def read(path: Path) -> x509.Certificate | None:
    """The first certificate of a PEM file; None where there is none."""
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError):
        return None


def lifetime(certificate: x509.Certificate, name: str, now: datetime) -> Finding:
    """Whether a certificate holds now, and for a while."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    days = (end - now).days
    wrong = now < begin or days < DAYS
    told = f"ends {end:%Y-%m-%d}, in {days} days" if end > now else f"ended {end:%Y-%m-%d}"
    if now < begin:
        told = f"holds from {begin:%Y-%m-%d %H:%M} UTC on: is this machine's clock right?"
    return judged(f"certificate {name}", wrong, "its dates", told, _ROTATE)


def belongs(certificate: x509.Certificate, key: Path) -> Finding:
    """Whether a certificate is that of the key beside it."""
    door = f"key {key.name}"
    try:
        private = load_pem_private_key(key.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        return Finding(door, OPEN, f"{key.name} and its certificate", f"no key can be read: {error}", _ROTATE)
    matches = private.public_key() == certificate.public_key()
    told = "they match" if matches else "the certificate is that of another key"
    return judged(door, not matches, f"{key.name} and its certificate", told, _ROTATE)


def issued(certificate: x509.Certificate, name: str, authority: Path) -> Finding:
    """Whether the federation's CA issued a certificate."""
    door, asked = f"issuer of {name}", f"{name} against {authority.name}"
    ca = read(authority)
    try:
        if ca is None:
            return Finding(door, OPEN, asked, f"{authority.name} is no certificate", _ROTATE)
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature):
        return Finding(door, OPEN, asked, "another CA issued it", _ROTATE)
    return Finding(door, CLOSED, asked, "the federation's CA issued it")


def revocations(revoked: x509.CertificateRevocationList, name: str, now: datetime) -> Finding:
    """Whether the list of revoked certificates still holds; nginx lets nobody in when it is too old."""
    end = revoked.next_update_utc
    wrong = end is not None and (end - now).days < DAYS
    told = f"{len(list(revoked))} revoked; " + (f"holds until {end:%Y-%m-%d}" if end else "holds without end")
    return judged(f"list {name}", wrong, "its dates", told, "fedmerge deploy revoke writes a new one")


def authority_key(folder: Path) -> Iterator[Finding]:
    """Whether the CA's own key lies where a running party could lose it."""
    for path in sorted(folder.rglob("ca.key")):
        close = "keep OUT/ca/ with the operator, off every server; whoever has this key can be anybody"
        yield Finding("key of the CA", OPEN, str(folder), f"{path} lies here", close)


def _revoked(path: Path) -> x509.CertificateRevocationList | None:
    try:
        return x509.load_pem_x509_crl(path.read_bytes())
    except (OSError, ValueError):
        return None
