"""Whether messages and replies are signed, and by whom: the server's and the sites' own files."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedmerge.deployment.doctor.finding import CLOSED, NOTE, OPEN, Finding, judged
from fedmerge.deployment.installed_only import COMMANDS, REFUSED_COMMANDS
from fedmerge.deployment.site_policy import KEYS
from fedmerge.errors import ConfigError
from fedmerge.wire.signatures import load_key, load_public, public_text

SERVER_VARIABLE = "FEDMERGE_SERVER"


def server(folder: Path) -> Iterator[Finding]:
    """Whether the server signs what it sends and knows the key of every silo whose replies it takes."""
    door, path = "signed messages", folder / "server.toml"
    own = _read(path)
    if own is None:
        close = f"fedmerge deploy init writes one; the ServerApp finds it through {SERVER_VARIABLE}"
        yield Finding(door, OPEN, str(path), "none: any reply in any silo's name is taken", close)
        return
    yield _key(folder / str(own.get("signing-key", "signing.key")), door)
    yield from roster(folder / str(own.get("roster", "roster.toml")))


def roster(path: Path) -> Iterator[Finding]:
    """Whether every silo of the roster has a key that can be one, and no two the same."""
    silos = (_read(path) or {}).get("silos", {})
    if not isinstance(silos, dict) or not silos:
        yield Finding("roster", OPEN, str(path), "it names no silo", "fedmerge deploy init writes one")
        return
    wrong, seen = [], dict[str, str]()
    for name, entry in silos.items():
        text = str(entry.get("key", "")) if isinstance(entry, dict) else ""
        try:
            load_public(text)
        except ConfigError:
            wrong.append(f"{name} has no key")
            continue
        if text in seen:
            wrong.append(f"{name} has the key of {seen[text]}")
        seen[text] = name
    told = "; ".join(wrong) or f"{len(silos)} silos, each with a key of its own"
    yield judged("roster", bool(wrong), str(path), told, "fedmerge deploy rotate")
    if revoked := [name for name, entry in silos.items() if isinstance(entry, dict) and entry.get("revoked")]:
        yield Finding("revoked silos", NOTE, str(path), ", ".join(revoked))


def told_to_sign(folder: Path) -> Finding:
    """Whether the process that runs the ServerApp is told where server.toml is."""
    texts = {path: path.read_text(encoding="utf-8") for path in _starters(folder)}
    saying = [path.name for path, text in texts.items() if re.search(rf"\b{SERVER_VARIABLE}\b", text)]
    told = f"set in {', '.join(saying)}" if saying else "set nowhere: the ServerApp runs without signatures"
    close = f"Environment={SERVER_VARIABLE}=/etc/fedmerge/server/server.toml in the SuperExec's unit"
    return judged(
        "signatures switched on", not saying, f"{SERVER_VARIABLE} in bin/ and systemd/", told, close
    )


def site(folder: Path) -> Iterator[Finding]:
    """Whether a site signs its replies, checks the server's signature, and limits what it is asked to do."""
    path = folder / "site.toml"
    own = _read(path)
    if own is None:
        close = "fedmerge deploy init writes one"
        yield Finding("site's own file", OPEN, str(path), "none: it trains whatever it is sent", close)
        return
    yield _key(folder / str(own.get("signing-key", "signing.key")), "signed replies")
    yield _server_key(path, str(own.get("server-key", "")))
    policy = own.get("policy")
    given = policy if isinstance(policy, dict) else {}
    implied = {"label-columns"} if given.get("columns") else set()  # then none is told
    free = [name for name in KEYS if not given.get(name) and name not in implied]
    told = f"no limit on {', '.join(free)}" if free else "every limit is set"
    yield Finding("site policy", NOTE if free else CLOSED, str(path), told)
    yield judged(
        "site log",
        not own.get("log"),
        str(path),
        str(own.get("log", "none")),
        'log = "/var/log/fedmerge/left.jsonl"',
    )


def told_of_site(folder: Path) -> Finding:
    """Whether the SuperNode is told where site.toml is."""
    texts = {path: path.read_text(encoding="utf-8") for path in _starters(folder)}
    saying = [path.name for path, text in texts.items() if re.search(r"\bsite\s*=.*site\.toml", text)]
    told = f"set in {', '.join(saying)}" if saying else "set nowhere: policy and signatures are off"
    close = "--node-config \"site='/etc/fedmerge/site.toml'\""
    return judged("site's file in use", not saying, "--node-config in bin/ and systemd/", told, close)


def installed_only(folder: Path) -> Finding:
    """Whether apps are started by fedmerge's own commands, which run nothing that a bundle brings along."""
    starter = folder / "bin" / "superexec.sh"
    text = starter.read_text(encoding="utf-8") if starter.is_file() else ""
    first = re.search(r"^\s*PATH=\"?\$HERE/apps:", text, re.MULTILINE)
    missing = [name for name in (*COMMANDS, *REFUSED_COMMANDS) if not _ours(folder / "apps" / name)]
    wrong = not first or bool(missing)
    told = "fedmerge's own commands" if not wrong else "Flower's own: code that comes with a bundle is run"
    close = "PATH=$HERE/apps:$PATH in superexec.sh, and apps/ as fedmerge deploy init writes it"
    return judged("code in bundles", wrong, "apps/ and bin/superexec.sh", told, close)


def metrics(folder: Path) -> Iterator[Finding]:
    """Whether /metrics and /health, which ask nobody who they are, are served to other machines."""
    address = (_read(folder / "server.toml") or {}).get("metrics")
    if isinstance(address, str) and address:
        wide = not address.startswith(("127.", "localhost:", "[::1]:"))
        close = 'metrics = "127.0.0.1:9464"; who collects them comes through a proxy of yours'
        yield judged("metrics from outside", wide, "metrics in server.toml", address, close)


def runs(folder: Path) -> Path | None:
    """The parent of the run folders, as server.toml says it."""
    given = (_read(folder / "server.toml") or {}).get("runs")
    return folder / given if isinstance(given, str) and given else None


def places(folder: Path) -> Iterator[tuple[str, Path]]:
    """Where a site keeps its rows, its state and its log, as site.toml says it; those that are there."""
    own = _read(folder / "site.toml") or {}
    for name in ("data", "state", "log"):
        given = own.get(name)
        if isinstance(given, str) and given and (folder / given).exists():
            yield name, folder / given


def _ours(path: Path) -> bool:
    return path.is_file() and "fedmerge.deployment.installed_only" in path.read_text(encoding="utf-8")


def _server_key(path: Path, text: str) -> Finding:
    close = f"server-key = ... in {path.name}: what OUT/server/signing.pub holds"
    try:
        load_public(text)
    except ConfigError as error:
        return Finding("server's signature", OPEN, str(path), f"{error}: orders of anybody are taken", close)
    return Finding("server's signature", CLOSED, str(path), "only messages of its key are taken")


def _key(path: Path, door: str) -> Finding:
    try:
        public = public_text(load_key(path))
    except ConfigError as error:
        return Finding(door, OPEN, str(path), str(error), "fedmerge deploy rotate")
    return Finding(door, CLOSED, str(path), f"by the key {public[:12]}...")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _starters(folder: Path) -> list[Path]:
    return sorted(
        [*(folder / "bin").glob("*"), *(folder / "systemd").glob("*"), *folder.glob("compose.y*ml")]
    )
