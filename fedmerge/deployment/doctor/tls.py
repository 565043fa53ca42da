"""TLS as it is spoken at an address: whether, how old, by whom, and whether both sides show who they are."""

from __future__ import annotations

import ssl
import warnings
from datetime import datetime

from cryptography import x509

from fedmerge.deployment.doctor.apis import FLEET, REFUSED, UNSIGNED
from fedmerge.deployment.doctor.asking import HungUp, Place, Unreachable, ask, handshake, unchecked
from fedmerge.deployment.doctor.certificates import lifetime
from fedmerge.deployment.doctor.finding import CLOSED, OPEN, UNKNOWN, Finding

_PLAIN = {"wrong version number", "record layer failure", "packet length too long", "http request"}


def speaks(place: Place) -> bool:
    """Whether somebody answers in TLS.

    Raises:
        Unreachable: nobody is there.
    """
    try:
        handshake(place, unchecked(place.identity)).close()
    except HungUp as error:
        return str(error) not in _PLAIN
    return True


def encryption(place: Place) -> Finding:
    """Whether what travels is encrypted."""
    door, asked = "TLS", f"a TLS handshake with {place.netloc}"
    try:
        if speaks(place):
            return Finding(door, CLOSED, asked, "it speaks TLS")
    except Unreachable as error:
        return Finding(door, UNKNOWN, asked, str(error), "ask again while the server is running")
    close = "no --insecure; --ssl-certfile, --ssl-keyfile and --ssl-ca-certfile"
    return Finding(door, OPEN, asked, "plain text: whoever is on the way reads and changes all of it", close)


def old_versions(place: Place) -> Finding:
    """Whether TLS 1.0 or 1.1 is accepted."""
    door, asked = "old TLS", f"a handshake with {place.netloc} in TLS 1.0 or 1.1"
    context = unchecked(place.identity)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    try:
        with handshake(place, context) as spoken:
            version = spoken.version()
    except HungUp as error:
        return Finding(door, CLOSED, asked, f"refused: {error}")
    except Unreachable as error:
        return Finding(door, UNKNOWN, asked, str(error))
    return Finding(door, OPEN, asked, f"it speaks {version}", "ssl_protocols TLSv1.2 TLSv1.3;")


def vouched(place: Place) -> Finding:
    """Whether the federation's CA vouches for the certificate and for the name."""
    door = "server's certificate"
    asked = f"a handshake with {place.netloc}, checked against {place.ca.name if place.ca else 'the system'}"
    context = ssl.create_default_context(cafile=place.ca)
    if place.identity is not None:
        context.load_cert_chain(*place.identity)
    try:
        handshake(place, context).close()
    except HungUp as error:
        close = (
            "fedmerge deploy rotate writes a new one; its names are those of the server in federation.toml"
        )
        return Finding(door, OPEN, asked, str(error), close)
    except Unreachable as error:
        return Finding(door, UNKNOWN, asked, str(error))
    return Finding(door, CLOSED, asked, "the CA vouches for it, and the name is right")


def served_lifetime(place: Place, now: datetime) -> Finding:
    """How long the certificate that is served still holds."""
    try:
        with handshake(place, unchecked(place.identity)) as spoken:
            encoded = spoken.getpeercert(binary_form=True) or b""
    except (HungUp, Unreachable) as error:
        return Finding("served certificate", UNKNOWN, f"the certificate of {place.netloc}", str(error))
    return lifetime(x509.load_der_x509_certificate(encoded), f"served at {place.netloc}", now)


def client_certificate(place: Place) -> Finding:
    """Whether somebody without a certificate of the CA gets through to the SuperLink."""
    door = "client certificates"
    asked = f"POST {place}{FLEET}, empty and unsigned, without a certificate"
    try:
        answer = ask(place.without_identity(), FLEET, method="POST")
    except HungUp as error:
        return Finding(door, CLOSED, asked, f"hung up: {error}")
    except Unreachable as error:
        return Finding(door, UNKNOWN, asked, str(error))
    if answer.status in REFUSED - {UNSIGNED}:
        return Finding(door, CLOSED, asked, f"{answer.status}: one is asked for")
    told = f"{answer.status}: whoever reaches the port reaches the SuperLink"
    return Finding(door, OPEN, asked, told, "ssl_verify_client on; in the proxy: Flower itself has none")
