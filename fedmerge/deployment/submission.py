"""Submitting a run to a federation: a recipe, what a deployment adds to it, and `flwr run`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from fedmerge.config import Config, Flat, read_config
from fedmerge.deployment.roster import read_members
from fedmerge.engine.bundle import write_bundle
from fedmerge.errors import ConfigError, RoundFailed

_FLWR_SECONDS = 120.0


def deployed(flat: Flat, server: Path) -> Config:
    """A simulation's run-config as a federation runs it.

    Rows are each site's own, so nothing of the recipe's data but its columns and labels is used; the silos
    are those of the roster that are not revoked; a lost run goes on where it was.

    Args:
        flat: a complete run-config; `data.silos` that differs from the default is kept.
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
        RoundFailed: Flower did not take it; with what it said.
    """
    name = str(server_table(server)["federation"])
    with tempfile.TemporaryDirectory(prefix="fedmerge-") as text:
        bundle = write_bundle(Path(text, "bundle"))
        run = Path(text, "run.toml")
        run.write_text(tomli_w.dumps(dict(flat)), encoding="utf-8")
        answer = flwr(server, "run", str(bundle), name, "--run-config", str(run))
    return str(answer["run-id"])


def flwr(server: Path, *arguments: str) -> dict[str, Any]:
    """The JSON answer of a `flwr` command on the server's machine, with the server's connection.

    Raises:
        RoundFailed: the command failed, or did not answer in time.
    """
    command = [_beside("flwr"), *arguments, "--format", "json"]
    try:
        done = subprocess.run(
            command, env=_environment(server), capture_output=True, text=True, check=False,
            timeout=_FLWR_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RoundFailed(f"`flwr {arguments[0]}` did not answer: {error}") from None
    start = done.stdout.find("{")
    try:
        answer = json.loads(done.stdout[start:]) if start >= 0 else {}
    except ValueError:
        answer = {}
    if done.returncode or not answer.get("success"):
        said = answer.get("error-message") or done.stderr.strip() or done.stdout.strip()
        raise RoundFailed(f"`flwr {arguments[0]}` failed: {said}")
    return dict(answer)


def _environment(server: Path) -> dict[str, str]:
    bypass = ",".join(filter(None, (os.environ.get("NO_PROXY", ""), "127.0.0.1", "localhost")))
    return os.environ | {
        "FLWR_HOME": str(server / "flwr"),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "NO_PROXY": bypass,
        "no_proxy": bypass,
    }


def _beside(command: str) -> str:
    """A command of this Python's environment, or of the path."""
    here = Path(sys.executable).parent / command
    return str(here) if here.is_file() else command


def _fingerprint(flat: Flat) -> str:
    from fedmerge.silo.base import check_fingerprint  # noqa: PLC0415 (imports torch and transformers)

    return check_fingerprint(read_config(flat).silo.base)
