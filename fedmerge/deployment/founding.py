"""`fedmerge deploy init`: from federation.toml to a folder for each party."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fedmerge.deployment.certificates import Authority, new_authority, revoked_list, serial_of
from fedmerge.deployment.federation import Federation
from fedmerge.deployment.office import SERIALS, serials_file
from fedmerge.deployment.parties import (
    SiloKeys,
    member,
    new_server_keys,
    new_silo_keys,
    server_secrets,
    server_templates,
    silo_secrets,
    silo_templates,
)
from fedmerge.deployment.ports import refuse_ports_in_use
from fedmerge.deployment.writing import SECRET, File, Files, write_folder


def found(federation: Federation, out: Path) -> Path:
    """Write the folders of all parties; nothing is there unless all is.

    Raises:
        ConfigError: `out` is there already or can't be written, or a port of this machine is taken.
    """
    if federation.one_machine:
        refuse_ports_in_use(federation)
    write_folder(out, _files(federation))
    return out


def _files(federation: Federation) -> Files:
    authority = new_authority(federation.name)
    server_keys = new_server_keys(authority, federation)
    silo_keys = {silo.name: new_silo_keys(authority, silo.name) for silo in federation.silos}
    members = [member(silo, silo_keys[silo.name]) for silo in federation.silos]
    certificate = {"ca.crt": File(authority.pair.certificate)}
    server = {
        **server_templates(federation, members),
        **server_secrets(server_keys),
        **certificate,
        **_known_to_server(authority, silo_keys),
    }
    silos = {
        silo.name: {
            **silo_templates(federation, silo, server_keys.public),
            **silo_secrets(silo_keys[silo.name]),
            **certificate,
        }
        for silo in federation.silos
    }
    return {
        "federation.toml": File(federation.text.encode()),
        **_below("ca", {"ca.key": File(authority.pair.key, SECRET), **certificate}),
        SERIALS: serials_file({n: (serial_of(k.client.certificate),) for n, k in silo_keys.items()}),
        **_below("server", server),
        **{
            place: file
            for name, files in silos.items()
            for place, file in _below(f"silos/{name}", files).items()
        },
    }


def _known_to_server(authority: Authority, silo_keys: Mapping[str, SiloKeys]) -> Files:
    """What the server knows of the silos: their nodes' public keys, and that none is revoked."""
    nodes = {f"nodes/{name}.pub": File(keys.node.public) for name, keys in silo_keys.items()}
    return {**nodes, "crl.pem": File(revoked_list(authority, ()))}


def _below(folder: str, files: Files) -> dict[str, File]:
    return {f"{folder}/{name}": file for name, file in files.items()}
