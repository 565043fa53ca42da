import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedmerge.deployment.certificates import (
    Pair,
    check_pair,
    issue_client,
    issue_server,
    new_authority,
    read_authority,
    revoked_list,
    serial_of,
    serials_of,
)
from fedmerge.errors import ConfigError

AUTHORITY = new_authority("heart-study")


def loaded(pair):
    return x509.load_pem_x509_certificate(pair.certificate)


def days(certificate):
    return (certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).days


def test_the_authority_signs_parties_and_no_further_authority():
    certificate = AUTHORITY.certificate
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    usage = certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.key_cert_sign and usage.crl_sign and not usage.digital_signature
    assert isinstance(AUTHORITY.key.curve, ec.SECP384R1)
    assert 5 * 365 - 2 <= days(certificate) <= 5 * 365


def test_a_servers_certificate_holds_under_its_names_and_no_other():
    pair = issue_server(AUTHORITY, "superlink", ["fed.example.org", "203.0.113.7", "fed.example.org"])
    verifier = PolicyBuilder().store(Store([AUTHORITY.certificate]))
    verifier.build_server_verifier(x509.DNSName("fed.example.org")).verify(loaded(pair), [])
    with pytest.raises(VerificationError):
        verifier.build_server_verifier(x509.DNSName("evil.example.org")).verify(loaded(pair), [])
    names = loaded(pair).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["203.0.113.7"]
    assert days(loaded(pair)) in (396, 397)


def test_who_may_ask_may_not_serve_and_the_other_way_round():
    client, server = issue_client(AUTHORITY, "hospital-a"), issue_server(AUTHORITY, "x", ["localhost"])
    uses = [
        list(loaded(pair).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
        for pair in (client, server)
    ]
    assert uses == [[ExtendedKeyUsageOID.CLIENT_AUTH], [ExtendedKeyUsageOID.SERVER_AUTH]]
    verifier = PolicyBuilder().store(Store([AUTHORITY.certificate])).build_client_verifier()
    assert verifier.verify(loaded(client), [])
    with pytest.raises(VerificationError):
        verifier.verify(loaded(server), [])


def test_a_certificate_that_does_not_match_its_key_is_refused():
    one, two = issue_client(AUTHORITY, "a"), issue_client(AUTHORITY, "b")
    check_pair(one, "a")
    with pytest.raises(ConfigError, match=r"^site: the certificate does not match the key$"):
        check_pair(Pair(one.certificate, two.key), "site")
    with pytest.raises(ConfigError, match="does not match"):
        read_authority(Pair(AUTHORITY.pair.certificate, two.key), "ca")
    with pytest.raises(ConfigError, match="both as PEM"):
        check_pair(Pair(b"nothing", two.key), "ca")


def test_the_list_of_revoked_ones_is_signed_and_lasts_as_long_as_the_authority():
    serial = serial_of(issue_client(AUTHORITY, "a").certificate)
    pem = revoked_list(AUTHORITY, [serial, serial])
    assert serials_of(pem) == {serial} and serials_of(revoked_list(AUTHORITY, ())) == set()
    made = x509.load_pem_x509_crl(pem)
    assert made.is_signature_valid(AUTHORITY.key.public_key())
    assert made.next_update_utc == AUTHORITY.certificate.not_valid_after_utc
