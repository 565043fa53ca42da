"""The federation's own certificates: one authority, P-384, names as they are, and a list of revoked ones.

The authority signs no further ones (path length 0). A server's certificate serves only, a client's asks
only: none can stand in for the other.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedmerge.errors import ConfigError

AUTHORITY_DAYS = 5 * 365
PARTY_DAYS = 397
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SERVER_NAME = "superlink"
"""A name that only the server's certificate has: the proxies ask for it."""
# A party's clock may be a little behind the operator's.
_EARLIER = datetime.timedelta(hours=1)


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, each as PEM."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class Authority:
    """A certificate authority that can sign."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def pair(self) -> Pair:
        """As it is written down."""
        return Pair(_pem(self.certificate), _key_pem(self.key))


def new_authority(federation: str) -> Authority:
    """A new authority for a federation, good for five years."""
    key = _new_key()
    name = _subject(federation, f"{federation} CA")
    builder = _builder(name, name, key.public_key(), AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(authority=True), critical=True)
    builder = builder.add_extension(_key_id(key), critical=False)
    return Authority(builder.sign(key, hashes.SHA384()), key)


def read_authority(pair: Pair, where: str) -> Authority:
    """An authority from its files.

    Raises:
        ConfigError: not PEM, or the certificate does not belong to the key.
    """
    check_pair(pair, where)
    key = serialization.load_pem_private_key(pair.key, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{where}: the authority's key is no EC key")
    return Authority(x509.load_pem_x509_certificate(pair.certificate), key)


def issue_server(authority: Authority, common_name: str, hosts: Iterable[str]) -> Pair:
    """A certificate for a party that listens, under these names and addresses."""
    names = x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)])
    return _issue(authority, common_name, ExtendedKeyUsageOID.SERVER_AUTH, names)


def issue_client(authority: Authority, silo: str) -> Pair:
    """A certificate by which a silo's proxy shows who it is."""
    names = x509.SubjectAlternativeName([x509.DNSName(silo)])
    return _issue(authority, silo, ExtendedKeyUsageOID.CLIENT_AUTH, names)


def check_pair(pair: Pair, where: str) -> None:
    """Refuse a certificate that does not belong to its key.

    Raises:
        ConfigError: one of the two can't be read, or they don't match.
    """
    try:
        certificate = x509.load_pem_x509_certificate(pair.certificate)
        key = serialization.load_pem_private_key(pair.key, password=None)
    except (ValueError, TypeError):
        raise ConfigError(f"{where}: expected a certificate and an unencrypted key, both as PEM") from None
    if _public_bytes(certificate.public_key()) != _public_bytes(key.public_key()):
        raise ConfigError(f"{where}: the certificate does not match the key")


def revoked_list(authority: Authority, serials: Iterable[int]) -> bytes:
    """The authority's list of revoked certificates as PEM, good as long as the authority is.

    A list that ends sooner would lock every silo out on that day: nginx refuses all when it is too old.
    """
    now = _now()
    builder = x509.CertificateRevocationListBuilder().issuer_name(authority.certificate.subject)
    builder = builder.last_update(now - _EARLIER).next_update(authority.certificate.not_valid_after_utc)
    for serial in sorted(set(serials)):
        revoked = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now).build()
        builder = builder.add_revoked_certificate(revoked)
    signed = builder.sign(authority.key, hashes.SHA384())
    return signed.public_bytes(serialization.Encoding.PEM)


def serials_of(pem: bytes) -> set[int]:
    """The serial numbers on a list of revoked certificates."""
    return {entry.serial_number for entry in x509.load_pem_x509_crl(pem)}


def serial_of(certificate: bytes) -> int:
    """The serial number of a certificate."""
    return x509.load_pem_x509_certificate(certificate).serial_number


def _issue(
    authority: Authority, common_name: str, use: x509.ObjectIdentifier, names: x509.SubjectAlternativeName
) -> Pair:
    key = _new_key()
    issuer = authority.certificate.subject
    organisation = issuer.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value
    builder = _builder(_subject(str(organisation), common_name), issuer, key.public_key(), PARTY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([use]), critical=False)
    builder = builder.add_extension(names, critical=False)
    builder = builder.add_extension(_key_id(key), critical=False)
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    builder = builder.add_extension(issuer_id, critical=False)
    return Pair(_pem(builder.sign(authority.key, hashes.SHA384())), _key_pem(key))


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = _now()
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + datetime.timedelta(days=days))
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, key_cert_sign=authority, crl_sign=authority,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _subject(organisation: str, common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]),
        ]
    )


def _key_id(key: ec.EllipticCurvePrivateKey) -> x509.SubjectKeyIdentifier:
    return x509.SubjectKeyIdentifier.from_public_key(key.public_key())


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _public_bytes(key: object) -> bytes:
    encoding, form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_bytes(encoding, form)  # type: ignore[attr-defined, no-any-return]
