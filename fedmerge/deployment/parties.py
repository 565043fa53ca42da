"""What each party gets: its own keys and certificates, its commands, and nothing of anybody else's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from fedmerge import __version__
from fedmerge.deployment.certificates import (
    LOOPBACK,
    SERVER_NAME,
    Authority,
    Pair,
    issue_client,
    issue_server,
)
from fedmerge.deployment.federation import Federation, Silo
from fedmerge.deployment.keys import NodeKey, new_node_key, new_secret
from fedmerge.deployment.roster import Member
from fedmerge.deployment.templates import rendered
from fedmerge.deployment.writing import SECRET, File, Files
from fedmerge.wire.signatures import new_key, public_text


@dataclass(frozen=True)
class ServerKeys:
    """What only the server has."""

    link: Pair
    signing: bytes = field(default_factory=new_key)
    secret: bytes = field(default_factory=new_secret)

    @property
    def public(self) -> str:
        """By which sites know its broadcasts."""
        return public_text(self.signing)


@dataclass(frozen=True)
class SiloKeys:
    """What only this silo has."""

    node: NodeKey
    client: Pair
    runtime: Pair
    signing: bytes = field(default_factory=new_key)
    secret: bytes = field(default_factory=new_secret)

    @property
    def public(self) -> str:
        """By which the server knows its replies."""
        return public_text(self.signing)


def new_server_keys(authority: Authority, federation: Federation) -> ServerKeys:
    """New keys for the server; its certificate names every host, and the loopback interface."""
    hosts = (SERVER_NAME, *federation.server.hosts, *LOOPBACK)
    return ServerKeys(issue_server(authority, SERVER_NAME, hosts))


def new_silo_keys(authority: Authority, silo: str) -> SiloKeys:
    """New keys for a silo."""
    runtime = issue_server(authority, f"{silo} runtime", LOOPBACK)
    return SiloKeys(new_node_key(silo), issue_client(authority, silo), runtime)


def member(silo: Silo, keys: SiloKeys) -> Member:
    """A silo as the roster has it."""
    return Member(silo.name, keys.public, silo.max_examples)


def server_secrets(keys: ServerKeys) -> Files:
    """The files of the server that `rotate` makes anew."""
    return {
        "superlink.pem": File(keys.link.certificate),
        "superlink.key": File(keys.link.key, SECRET),
        "signing.key": File(keys.signing, SECRET),
        "signing.pub": File(f"{keys.public}\n".encode()),
        "superexec.secret": File(keys.secret, SECRET),
    }


def silo_secrets(keys: SiloKeys) -> Files:
    """The files of a silo that `rotate` makes anew."""
    return {
        "signing.key": File(keys.signing, SECRET),
        "node.key": File(keys.node.private, SECRET),
        "node.pub": File(keys.node.public),
        "client.pem": File(keys.client.certificate),
        "client.key": File(keys.client.key, SECRET),
        "runtime.pem": File(keys.runtime.certificate),
        "runtime.key": File(keys.runtime.key, SECRET),
        "superexec.secret": File(keys.secret, SECRET),
    }


def server_templates(federation: Federation, members: Sequence[Member]) -> Files:
    """The server's commands, units and configuration."""
    server = federation.server
    values: dict[str, object] = _common(federation) | {"party": server, "roster": members}
    listen = {"listen": "127.0.0.1" if federation.one_machine else "0.0.0.0", "v6": _has_v6(federation)}
    return rendered("server", values | listen)


def silo_templates(federation: Federation, silo: Silo, server_key: str) -> Files:
    """A silo's commands, units and configuration."""
    values = _common(federation) | {"party": silo, "silo": silo, "server_key": server_key}
    return rendered("silo", values | {"log_folder": str(PurePosixPath(silo.log).parent)})


def _common(federation: Federation) -> dict[str, object]:
    return {
        "federation": federation,
        "server": federation.server,
        "server_name": SERVER_NAME,
        "version": __version__,
    }


def _has_v6(federation: Federation) -> bool:
    """Whether the server is to listen on IPv6 too; a machine without it could not."""
    return not federation.one_machine and any(":" in host for host in federation.server.hosts)
