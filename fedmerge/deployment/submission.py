"""Submitting a run to a federation: a recipe, what a deployment adds to it, and `flwr run`."""

from __future__ import annotations

import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fedmerge.config import Config, Flat, read_config
from fedmerge.deployment.flwr import NoAnswer, ask
from fedmerge.deployment.roster import read_members
from fedmerge.engine.bundle import write_bundle
from fedmerge.errors import ConfigError


def deployed(flat: Flat, server: Path) -> Config:
    """A simulation's run-config as a federation runs it.

    Rows are each site's own, so nothing of the recipe's data but its columns and labels is used; the silos
    are those of the roster that are not revoked; a lost run goes on where it was.

    Args:
        flat: a complete run-config.
        server: the server's folder, with server.toml and roster.toml.

    Raises:
        ConfigError: the folder is no server's, or the configuration can't be used.
    """
    table = server_table(server)
    roster = read_members(server / str(table.get("roster", "roster.toml")))
    silos = ", ".join(name for name, member in sorted(roster.items()) if not member.revoked)
    fixed: Flat = {
        "run.resume": "auto",
        "run.baselines": "",  # no silo may see another's rows
        "data.partition": "",
        "data.silos": silos,
        "base.fingerprint": flat["base.fingerprint"] or _fingerprint(flat),
    }
    config = read_config(flat | fixed)
    output = Path(str(table["runs"])) / (config.run.output or config.folder.name)
    return read_config(config.flat | {"run.output": str(output)})


def server_table(server: Path) -> dict[str, Any]:
    """What server.toml says.

    Raises:
        ConfigError: it is not there, or no TOML, or lacks its federation or runs.
    """
    path = server / "server.toml"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error.strerror}); expected the server's folder") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    if missing := [key for key in ("federation", "runs") if not isinstance(table.get(key), str)]:
        raise ConfigError(f"{path} lacks {' and '.join(missing)}")
    return table


def submit(server: Path, flat: Mapping[str, str | int | float | bool]) -> str:
    """Submit a run-config as it is; returns Flower's number of the run.

    Raises:
        NoAnswer: Flower did not take it, with what it said; or did not say so.
    """
    name = str(server_table(server)["federation"])
    with tempfile.TemporaryDirectory(prefix="fedmerge-") as text:
        bundle = write_bundle(Path(text, "bundle"))
        run = Path(text, "run.toml")
        run.write_text(tomli_w.dumps(dict(flat)), encoding="utf-8")
        answer = flwr(server, "run", str(bundle), name, "--run-config", str(run))
    if not answer.get("run-id"):
        raise NoAnswer("`flwr run` gave the run no number")
    return str(answer["run-id"])


def flwr(server: Path, *arguments: str) -> dict[str, Any]:
    """The JSON answer of a `flwr` command on the server's machine, with the server's connection.

    Raises:
        NoAnswer: the command failed, or did not answer in time.
    """
    return ask(server / "flwr", *arguments)


def _fingerprint(flat: Flat) -> str:
    from fedmerge.silo.base import check_fingerprint  # noqa: PLC0415 (imports torch and transformers)

    return check_fingerprint(read_config(flat).silo.base)
