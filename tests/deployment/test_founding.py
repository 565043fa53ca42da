"""The folders that `deploy init` writes: what each party gets, and that it can be used as it is."""

from __future__ import annotations

import configparser
import re
import shutil
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import tomli_w
import yaml
from cryptography.hazmat.primitives import serialization

from fedmerge.deployment.certificates import check_pair, serials_of
from fedmerge.deployment.federation import parse_federation
from fedmerge.deployment.founding import found
from fedmerge.deployment.installed_only import COMMANDS, REFUSED_COMMANDS
from fedmerge.deployment.office import open_office, read_pair
from fedmerge.wire.signatures import load_key, load_public, public_text
from tests.deployment.live import NGINX, federation_table

SECRETS = {
    "ca.key", "signing.key", "superlink.key", "superexec.secret", "node.key", "client.key", "runtime.key",
    "serials.toml",
}  # fmt: skip
APPS = {f"apps/{command}" for command in (*COMMANDS, *REFUSED_COMMANDS)}
SERVER = APPS | {
    "server.toml", "roster.toml", "signing.key", "signing.pub", "ca.crt", "superlink.pem",
    "superlink.key", "superexec.secret", "crl.pem", "nodes/hospital-a.pub", "nodes/hospital-b.pub",
    "flwr/config.toml", "compose.yaml", "nginx.conf", "README.md", "bin/place.sh", "bin/proxy.sh",
    "bin/superlink.sh", "bin/superexec.sh", "bin/register.sh", "bin/unregister.sh", "bin/run.sh",
    "bin/status.sh", "bin/logs.sh", "bin/watch.sh", "systemd/fedmerge-superlink.service",
    "systemd/fedmerge-superexec.service", "systemd/fedmerge-proxy.service",
    "systemd/fedmerge-watch.service",
}  # fmt: skip
SILO = APPS | {
    "site.toml", "signing.key", "node.key", "node.pub", "ca.crt", "client.pem", "client.key",
    "runtime.pem", "runtime.key", "superexec.secret", "compose.yaml", "nginx.conf", "README.md",
    "bin/place.sh", "bin/proxy.sh", "bin/supernode.sh", "bin/superexec.sh",
    "systemd/fedmerge-supernode.service", "systemd/fedmerge-superexec.service",
    "systemd/fedmerge-proxy.service",
}  # fmt: skip

# What the Compose Specification (github.com/compose-spec/compose-spec, spec.md) says of the keys that our
# files use, and nothing of others: a misspelt key is an error here as it is there.
TEXTS = {"type": "array", "items": {"type": "string"}}
VOLUME = {
    "type": "object",
    "required": ["type", "source", "target"],
    "additionalProperties": False,
    "properties": {
        "type": {"enum": ["bind"]},
        "source": {"type": "string", "pattern": "^/"},
        "target": {"type": "string", "pattern": "^/"},
        "read_only": {"type": "boolean"},
        "bind": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"create_host_path": {"type": "boolean"}},
        },
    },
}
SERVICE = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "image": {"type": "string"},
        "command": TEXTS,
        "user": {"type": "string"},
        "network_mode": {"enum": ["host"]},
        "init": {"type": "boolean"},
        "restart": {"enum": ["no", "always", "on-failure", "unless-stopped"]},
        "stop_grace_period": {"type": "string", "pattern": "^[0-9]+s$"},
        "read_only": {"type": "boolean"},
        "tmpfs": TEXTS,
        "cap_drop": TEXTS,
        "security_opt": TEXTS,
        "depends_on": TEXTS,
        "volumes": {"type": "array", "items": VOLUME},
    },
}
COMPOSE = {
    "type": "object",
    "required": ["name", "services"],
    "additionalProperties": False,
    "patternProperties": {"^x-": SERVICE},
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"},
        "services": {"type": "object", "additionalProperties": {**SERVICE, "required": ["image", "command"]}},
    },
}


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def parties(out: Path) -> list[Path]:
    return [out / "server", *sorted((out / "silos").iterdir())]


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A federation whose folders lie where they say that they do."""
    home = tmp_path_factory.mktemp("here")
    text = tomli_w.dumps(federation_table(home, ["hospital-a", "hospital-b"]))
    return found(parse_federation(text), home / "out")


def test_each_party_gets_what_it_needs_and_nothing_else(founded, text):
    assert files_of(founded / "server") == SERVER
    assert files_of(founded / "silos/hospital-a") == files_of(founded / "silos/hospital-b") == SILO
    assert files_of(founded / "ca") == {"ca.key", "ca.crt", "serials.toml"}
    assert {child.name for child in founded.iterdir()} == {"federation.toml", "ca", "server", "silos"}
    assert (founded / "federation.toml").read_text() == text


def test_no_partys_folder_holds_another_ones_secret(founded):
    secrets = {path: path.read_bytes().strip() for path in founded.rglob("*") if path.name in SECRETS}
    assert len(secrets) == 2 + 3 + 2 * 5
    for path, secret in secrets.items():
        elsewhere = [other for other in founded.rglob("*") if other.is_file() and other.parent != path.parent]
        assert not [other for other in elsewhere if secret in other.read_bytes()], path


def test_secrets_are_their_owners_and_commands_can_be_run(founded):
    for path in filter(Path.is_file, founded.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        command = path.parent.name in ("bin", "apps") and path.name != "place.sh"
        assert mode == (0o600 if path.name in SECRETS else 0o755 if command else 0o644), path
    assert stat.S_IMODE(founded.stat().st_mode) == 0o700


def test_what_belongs_together_matches(founded):
    office = open_office(founded)
    check_pair(read_pair(founded / "server", "superlink.pem", "superlink.key"), "server")
    server = tomllib.loads((founded / "server/server.toml").read_text())
    assert server["federation"] == "heart-study" and server["runs"] == "/var/lib/fedmerge/runs"
    public = (founded / "server/signing.pub").read_text().strip()
    assert public == public_text(load_key(founded / "server" / server["signing-key"]))
    assert not serials_of((founded / "server/crl.pem").read_bytes())
    for name in ("hospital-a", "hospital-b"):
        site = founded / "silos" / name
        table = tomllib.loads((site / "site.toml").read_text())
        assert (table["silo"], table["federation"], table["server-key"]) == (name, "heart-study", public)
        assert office.members[name].key == public_text(load_key(site / table["signing-key"]))
        load_public(office.members[name].key)
        assert (founded / "server/nodes" / f"{name}.pub").read_bytes() == (site / "node.pub").read_bytes()
        node = serialization.load_ssh_private_key((site / "node.key").read_bytes(), password=None)
        line = node.public_key().public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        )
        assert (site / "node.pub").read_bytes().startswith(line)
    policy = tomllib.loads((founded / "silos/hospital-a/site.toml").read_text())["policy"]
    assert policy == {
        "bases": ["00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff00ff"],
        "max-rounds": 50,
    }
    assert office.members["hospital-a"].max_examples == 5000


def test_flower_finds_its_connection(founded, monkeypatch):
    from flwr.cli.flower_config import read_superlink_connection

    monkeypatch.setenv("FLWR_HOME", str(founded / "server" / "flwr"))
    connection = read_superlink_connection("heart-study")
    assert connection.address == "127.0.0.1:8000" and not connection.insecure
    assert connection.root_certificates == "/etc/fedmerge/ca.crt"


def test_commands_are_shell(founded):
    for path in founded.rglob("bin/*.sh"):
        subprocess.run(["sh", "-n", str(path)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flower-superlink", "flower-supernode", "flower-superexec"])
def test_commands_use_only_flags_that_flower_has(founded, name):
    command = [str(Path(sys.executable).parent / name), "--help"]
    known = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    texts = [path.read_text() for path in founded.rglob("bin/*.sh")]
    used = [text.partition(f"exec {name} ")[2] for text in texts if f"exec {name} " in text]
    assert used
    for text in used:
        assert not {flag for flag in re.findall(r"(?<= )--[a-z-]+", text) if flag not in known}


def test_the_commands_close_what_flower_leaves_open(founded):
    for party in parties(founded):
        for name in ("superlink", "supernode"):
            path = party / "bin" / f"{name}.sh"
            if path.is_file():
                text = path.read_text()
                assert "--isolation process" in text and "--superexec-auth-secret-file" in text
                assert "--host 127.0.0.1" in text and "--insecure" not in text
        assert "umask 0077" in (party / "bin/place.sh").read_text()
    link = (founded / "server/bin/superlink.sh").read_text()
    assert "--enable-supernode-auth" in link and "--database" in link


def test_compose_files_are_valid_and_start_the_commands_that_are_there(here):
    for party in parties(here):
        table = yaml.safe_load((party / "compose.yaml").read_text())
        jsonschema.validate(table, COMPOSE)
        for name, service in table["services"].items():
            assert service["command"] == [str(party / "bin" / f"{name}.sh")]
            assert Path(service["command"][0]).is_file()
            assert set(service.get("depends_on", [])) <= set(table["services"])
            assert {volume["source"]: volume.get("read_only") for volume in service["volumes"]}[str(party)]


def test_units_start_the_commands_that_compose_starts(here):
    for party in parties(here):
        services = yaml.safe_load((party / "compose.yaml").read_text())["services"]
        units = {path.stem.removeprefix("fedmerge-"): path for path in (party / "systemd").iterdir()}
        if watch := units.pop("watch", None):  # started for a run, and not again where that failed
            written = re.findall(r"^ReadWritePaths=(.*)$", watch.read_text(), re.MULTILINE)
            assert f"{party}/flwr" in written[0].split()  # `flwr` keeps a file there
        assert units.keys() == services.keys()
        for name, path in units.items():
            unit = configparser.ConfigParser(strict=False, interpolation=None)
            unit.optionxform = str
            unit.read_string(path.read_text())
            service = unit["Service"]
            assert [service["ExecStart"]] == services[name]["command"]
            assert service["User"] == "fedmerge" and service["UMask"] == "0077"
            assert service["KillMode"] == "control-group" and service["Restart"] == "always"
            assert name != "supernode" or int(service["RestartSec"]) > 60
            assert name != "superexec" or "silos" in path.parts or "server.toml" in service["Environment"]


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not here")
def test_systemd_takes_the_units(here):
    for party in parties(here):
        units = [str(path) for path in sorted((party / "systemd").iterdir())]
        done = subprocess.run(
            ["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False
        )
        said = [line for line in done.stderr.splitlines() if "fedmerge-" in line]
        assert done.returncode == 0 and not said, done.stderr


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: apt-get install nginx)")
def test_nginx_takes_the_configurations(here, tmp_path):
    for party in parties(here):
        prefix = tmp_path / party.name
        prefix.mkdir()
        command = [str(NGINX), "-t", "-e", "stderr", "-p", f"{prefix}/", "-c", str(party / "nginx.conf")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0 and "[warn]" not in done.stderr, done.stderr


def test_pages_name_the_partys_own_place(founded):
    for party in parties(founded):
        page = (party / "README.md").read_text()
        assert "{{" not in page and "/etc/fedmerge/systemd" in page and "fed.example.org" in page
        assert "useradd" in page and "docker compose up" in page


def test_the_example_is_a_federation(project_root):
    made = parse_federation((project_root / "deploy/federation.toml").read_text())
    assert [silo.name for silo in made.silos] == ["hospital-a", "hospital-b"]
    uncommented = re.sub(r"(?m)^# (?=[a-z-]+ += )", "", (project_root / "deploy/federation.toml").read_text())
    assert parse_federation(uncommented).server == made.server  # defaults stand there as they are
