"""A site: what a deployed node knows of itself, read from a file of its own and never from the server.

The SuperNode's node-config names the file: ``--node-config "site='/etc/fedmerge/site.toml'"``. All of it::

    silo = "hospital-a"
    data = "/srv/fedmerge/rows.parquet"   # file or folder of rows; also "builtin", "entry:name"
    state = "/var/lib/fedmerge"           # folder for what never leaves: private tensors, hashes of bases
    base = "/srv/models/MiniLM"           # where the base lies here; left out: where the run's config says
    network = false                       # may a base that the run names be fetched from the Hub?
    preload = true                        # keep torch loaded between messages (0.5 GB), or load it for each?
    federation = "heart-study"            # this and the two keys: all three, or none where nothing is signed
    signing-key = "signing.key"           # Ed25519, mode 0600; relative to this file
    server-key = "base64 of the server's Ed25519 public key"
    log = "/var/log/fedmerge/left.jsonl"  # what left, a line a message; unless written, nothing leaves
    [policy]                              # what runs may ask for; see `fedmerge.silo.policy`
    bases = ["<fingerprint>"]
    tasks = ["classification"]
    columns = ["text", "label"]
    label-columns = ["label"]
    encodings = ["exact"]
    max-rounds = 50
    max-steps = 2000
    min-silos = 3

`silo` and `data` are needed, the others may be left out. A node without a file can still give `silo`, `data`
and `state` in its node-config; then there is no policy and no log. Nothing here imports torch: a site refuses
before it loads anything.
"""

from __future__ import annotations

import re
import stat
import tomllib
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedmerge.errors import ConfigError, FedMergeError, nearest
from fedmerge.silo.policy import Policy
from fedmerge.wire.signatures import load_public

SITE = "site"
"""The node-config key with the path of a site's file."""

OWN = ("silo", "data", "state")
"""The node-config keys of a node without such a file."""

CODE = "site/file"
"""What the server is told where a site's file can't be used."""

_TEXTS = ("silo", "data", "state", "base", "federation", "signing-key", "server-key", "log")
_KEYS = (*_TEXTS, "network", "preload", "policy")
_SIGNED = ("federation", "signing-key", "server-key")
_LISTS = ("bases", "tasks", "columns", "label-columns", "encodings")
_COUNTS = ("max-rounds", "max-steps", "min-silos")
_NAME = re.compile(r"[A-Za-z0-9-]+")

NodeConfig = Mapping[str, str | int | float | bool]


@dataclass(frozen=True)
class Site:
    """What a deployed node is.

    Args:
        silo: its name.
        data: any `data.source`.
        state: folder for what never leaves; None where there is none.
        base: in place of the run's `base.model`; "" leaves that.
        network: whether a base may be fetched.
        preload: whether the site keeps a process with torch loaded, from which ClientApps are forked.
        federation: that messages are signed for; "" where nothing is signed.
        signing_key: file of the silo's private key.
        server_key: the server's public key, as base64.
        log: file of what left this site; None keeps none.
        policy: what runs may ask for.
    """

    silo: str
    data: str
    state: Path | None = None
    base: str = ""
    network: bool = True
    preload: bool = True
    federation: str = ""
    signing_key: Path | None = None
    server_key: str = ""
    log: Path | None = None
    policy: Policy = field(default_factory=Policy)


def is_deployed(node_config: NodeConfig) -> bool:
    """Whether a node is one silo, with data of its own."""
    return SITE in node_config or "silo" in node_config


def site_of(node_config: NodeConfig) -> Site | None:
    """What a node's configuration, and the file that it names, make of it; None in a simulation.

    Raises:
        ConfigError: the file can't be used, or contradicts the node-config.
    """
    if SITE not in node_config:
        return _without_file(node_config) if "silo" in node_config else None
    site = read_site(_site_path(node_config))
    for key, value in {"silo": site.silo, "data": site.data, "state": str(site.state or "")}.items():
        if key in node_config and str(node_config[key]) != value:
            raise ConfigError(
                f"node-config has {key} = {str(node_config[key])!r}, {node_config[SITE]} has {value!r}: "
                "leave it out of the node-config",
                code=CODE,
            )
    return site


def read_site(path: Path) -> Site:
    """Read and check a site's file, and look whether what it names is there.

    Raises:
        ConfigError: one sentence with the file, the key, what it is and what was expected.
    """
    try:
        return _checked(_table(path), path.parent)
    except FedMergeError as err:
        raise ConfigError(f"{path}: {err}", code=CODE) from None


def _site_path(node_config: NodeConfig) -> Path:
    path = Path(str(node_config[SITE]))
    if not path.is_absolute():
        raise ConfigError(
            f"node-config has {SITE} = {str(path)!r}: expected the absolute path of a site.toml", code=CODE
        )
    return path


def _without_file(node_config: NodeConfig) -> Site:
    given = {key: str(node_config.get(key, "")).strip() for key in OWN}
    if missing := [key for key in ("silo", "data") if not given[key]]:
        raise ConfigError(
            f"this node's configuration lacks {' and '.join(missing)}; start it with flower-supernode "
            """--node-config "site='/etc/fedmerge/site.toml'", or 'silo="hospital-a" data="/srv/a.jsonl"'"""
        )
    return Site(given["silo"], given["data"], Path(given["state"]) if given["state"] else None)


def _table(path: Path) -> dict[str, Any]:
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as err:
        raise ConfigError(f"not UTF-8 at byte {err.start}") from None
    except OSError as err:
        raise ConfigError(f"can't be read ({err.strerror})") from None
    if mode & stat.S_IWOTH:
        raise ConfigError(f"everybody may write it (mode {stat.S_IMODE(mode):04o}); chmod o-w")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        raise ConfigError(f"not valid TOML: {err}") from None


def _checked(table: Mapping[str, Any], folder: Path) -> Site:
    _refuse_unknown(table, _KEYS)
    texts = {key: _text(table, key) for key in _TEXTS}
    if missing := [key for key in ("silo", "data") if not texts[key]]:
        raise ConfigError(f"{' and '.join(missing)} must be given")
    if not texts["silo"].isprintable() or len(texts["silo"]) > 200:
        raise ConfigError("silo: expected at most 200 printable characters")
    return Site(
        silo=texts["silo"],
        data=_data(texts["data"]),
        state=_folder("state", texts["state"]),
        base=_base(texts["base"]),
        network=_switch(table, "network", usual=False),
        preload=_switch(table, "preload", usual=True),
        federation=texts["federation"],
        signing_key=_signing(texts, folder),
        server_key=texts["server-key"],
        log=_log(texts["log"]),
        policy=_policy(table.get("policy", {})),
    )


def _refuse_unknown(table: Mapping[str, Any], known: Collection[str], prefix: str = "") -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"unknown key {prefix + key!r}; {nearest(key, known)}")


def _text(table: Mapping[str, Any], key: str) -> str:
    value = table.get(key, "")
    if not isinstance(value, str) or (key in table and not value.strip()):
        raise ConfigError(f"{key} = {value!r}: expected text, or leave the key out")
    return value.strip()


def _switch(table: Mapping[str, Any], key: str, *, usual: bool) -> bool:
    value = table.get(key, usual)
    if not isinstance(value, bool):
        raise ConfigError(f"{key} = {value!r}: expected true or false")
    return value


def _data(source: str) -> str:
    if source != "builtin" and not source.startswith("entry:"):
        _there("data", source, Path.exists, "of a file or folder of rows")
    return source


def _base(model: str) -> str:
    if model not in ("", "builtin"):
        _there("base", model, Path.is_dir, "of a model's folder")
    return model


def _folder(key: str, named: str) -> Path | None:
    return _there(key, named, Path.is_dir, "of a folder") if named else None


def _log(named: str) -> Path | None:
    if not named:
        return None
    path = Path(named)
    if not path.is_absolute() or path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"log = {named!r}: expected the absolute path of a file, in a folder that is there")
    return path


def _there(key: str, named: str, there: Callable[[Path], bool], what: str) -> Path:
    path = Path(named)
    if not path.is_absolute():
        raise ConfigError(f"{key} = {named!r}: expected the absolute path {what}")
    if not there(path):
        raise ConfigError(
            f"{key} = {named!r}: no such file or folder; expected the path {what} that is there"
        )
    return path


def _signing(texts: Mapping[str, str], folder: Path) -> Path | None:
    """The silo's key file, where messages are signed: all three keys then, and nobody else may read it."""
    if not any(texts[key] for key in _SIGNED):
        return None
    if missing := [key for key in _SIGNED if not texts[key]]:
        raise ConfigError(f"{' and '.join(missing)}: missing beside the others of {', '.join(_SIGNED)}")
    if not _NAME.fullmatch(texts["federation"]):
        raise ConfigError(f"federation = {texts['federation']!r}: expected letters, digits and hyphens")
    load_public(texts["server-key"])
    path = folder / texts["signing-key"]
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as err:
        raise ConfigError(f"signing-key = {str(path)!r}: can't be read ({err.strerror})") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"signing-key = {str(path)!r}: others may read it (mode {mode:04o}); chmod 600")
    return path


def _policy(table: object) -> Policy:
    if not isinstance(table, Mapping):
        raise ConfigError(f"policy = {table!r}: expected a table, [policy]")
    _refuse_unknown(table, (*_LISTS, *_COUNTS), "policy.")
    for key in _LISTS:
        if not isinstance(table.get(key, []), list):
            raise ConfigError(f"policy.{key} = {table[key]!r}: expected a list of texts")
    limits: dict[str, Any] = {key.replace("-", "_"): tuple(table[key]) for key in _LISTS if key in table}
    limits |= {key.replace("-", "_"): table[key] for key in _COUNTS if key in table}
    return Policy(**limits)
