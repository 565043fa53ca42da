"""`fedmerge deploy rotate`: new keys and certificates for one party."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from fedmerge.deployment.certificates import revoked_list, serial_of, serials_of
from fedmerge.deployment.federation import SERVER, Silo
from fedmerge.deployment.office import (
    REVOKED,
    ROSTER,
    SERIALS,
    Office,
    check_pairs,
    open_office,
    serials_file,
)
from fedmerge.deployment.parties import (
    new_server_keys,
    new_silo_keys,
    server_secrets,
    silo_secrets,
    silo_templates,
)
from fedmerge.deployment.roster import roster_text
from fedmerge.deployment.writing import File, Files, replace_files
from fedmerge.errors import ConfigError

_SERVER_KEY = re.compile(r'^server-key = "[^"]*"', re.MULTILINE)


@dataclass(frozen=True)
class Rotated:
    """What was written, relative to the operator's folder, and what remains to be done, in order."""

    files: tuple[str, ...]
    following: tuple[str, ...]


def rotate(folder: Path, party: str) -> Rotated:
    """Make new keys and certificates for the server or for one silo; nothing is written unless all is.

    Raises:
        ConfigError: no such party, a revoked silo, or a certificate that does not match its key.
    """
    office = open_office(folder)
    files, following = _server(office) if party == SERVER else _silo(office, party)
    replace_files(folder, files)
    return Rotated(tuple(sorted(files)), following)


def _server(office: Office) -> tuple[Files, tuple[str, ...]]:
    check_pairs(office.folder / SERVER, ("superlink",))
    keys = new_server_keys(office.authority, office.federation)
    files = {f"{SERVER}/{name}": file for name, file in server_secrets(keys).items()}
    line = f'server-key = "{keys.public}"'
    for path in sorted(office.folder.glob("silos/*/site.toml")):
        text = _SERVER_KEY.sub(lambda _: line, path.read_text(encoding="utf-8"), count=1)
        files[path.relative_to(office.folder).as_posix()] = File(text.encode(), path.stat().st_mode & 0o777)
    return files, (
        "wait until no run is in progress: until all is done, sites refuse what the server sends",
        *office.copying("superlink.pem", "superlink.key", "signing.key", "signing.pub", "superexec.secret"),
        "server: restart fedmerge-superlink, reload fedmerge-proxy",
        f"every site: in its site.toml, {line}",
    )


def _silo(office: Office, name: str) -> tuple[Files, tuple[str, ...]]:
    if office.silo(name).revoked:
        raise ConfigError(
            f"{name} is revoked; with revoked = false in {office.folder / ROSTER} it may return"
        )
    site = office.folder / "silos" / name
    check_pairs(site, ("client", "runtime"))
    keys = new_silo_keys(office.authority, name)
    members = {**office.members, name: replace(office.silo(name), key=keys.public)}
    old = office.serials.get(name, ())
    revoked = serials_of((office.folder / REVOKED).read_bytes()) | set(old)
    files = {
        ROSTER: File(roster_text(list(members.values())).encode()),
        REVOKED: File(revoked_list(office.authority, revoked)),
        SERIALS: serials_file({**office.serials, name: (*old, serial_of(keys.client.certificate))}),
        f"server/nodes/{name}.pub": File(keys.node.public),
        **{f"silos/{name}/{file}": content for file, content in _folder(office, site, name).items()},
        **{f"silos/{name}/{file}": content for file, content in silo_secrets(keys).items()},
    }
    return files, _silo_steps(office, _declared(office, name))


def _folder(office: Office, site: Path, name: str) -> Files:
    """The rest of a silo's folder, where the operator has kept none."""
    if (site / "site.toml").is_file():
        return {}
    server_key = (office.folder / "server" / "signing.pub").read_text(encoding="ascii").strip()
    authority = {"ca.crt": File(office.authority.pair.certificate)}
    return {**silo_templates(office.federation, _declared(office, name), server_key), **authority}


def _declared(office: Office, name: str) -> Silo:
    for silo in office.federation.silos:
        if silo.name == name:
            return silo
    raise ConfigError(f"{office.folder / 'federation.toml'} has no table [silos.{name}]")


def _silo_steps(office: Office, silo: Silo) -> tuple[str, ...]:
    return (
        f"server: bin/unregister.sh {silo.name}",
        *office.copying("roster.toml", "crl.pem", f"nodes/{silo.name}.pub"),
        f"server: bin/register.sh {silo.name}; reload fedmerge-proxy",
        f"{silo.name}: copy {office.folder}/silos/{silo.name} to {silo.folder} (its own site.toml stays), "
        "then restart fedmerge-proxy and fedmerge-supernode",
    )
