"""What lies on disk: modes, units, scripts, disks, rounds, versions."""

import hashlib
import json
import subprocess
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psutil
import pytest

from fedmerge.deployment.doctor import (
    apis,
    chain,
    clocks,
    disk,
    examination,
    modes,
    processes,
    proxies,
    scripts,
    units,
    versions,
)
from fedmerge.deployment.doctor.asking import Place
from fedmerge.deployment.doctor.finding import CLOSED, NOTE, OPEN, UNKNOWN
from fedmerge.server.chain import sealed


@pytest.mark.parametrize(
    ("mode", "state"), [(0o600, CLOSED), (0o400, CLOSED), (0o640, OPEN), (0o644, OPEN), (0o666, OPEN)]
)
def test_secrets(tmp_path: Path, mode: int, state: str) -> None:
    for name in ("signing.key", "superexec.secret", "public.pem"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(mode)
    found = {finding.door: finding.state for finding in modes.secrets(tmp_path)}
    assert found == {"secret signing.key": state, "secret superexec.secret": state}


def test_a_database_as_flower_makes_it(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o755)
    for name in ("state.db", "state.db-wal", "state.db-shm"):
        (folder / name).touch()
        (folder / name).chmod(0o644)
    assert [finding.state for finding in modes.database(folder / "state.db")] == [OPEN] * 3
    folder.chmod(0o700)
    assert [finding.state for finding in modes.database(folder / "state.db")] == [CLOSED] * 3
    assert [finding.state for finding in modes.database(tmp_path / "none.db")] == [UNKNOWN]


UNIT = """
[Service]
User=fedmerge
ExecStart=/opt/bin/flower-supernode \\
  --superlink fed.example.org:8443
Restart=always
RestartSec=75
KillMode=control-group
"""


@pytest.mark.parametrize(
    ("old", "new", "door"),
    [
        ("", "", ""),
        ("User=fedmerge", "", "user"),
        ("User=fedmerge", "User=root", "user"),
        ("RestartSec=75", "RestartSec=30", "restart"),
        ("RestartSec=75", "RestartSec=1min", "restart"),
        ("RestartSec=75", "RestartSec=1min 15s", ""),
        ("RestartSec=75", "", "restart"),
        ("Restart=always", "", "restart"),
        ("KillMode=control-group", "KillMode=process", "children"),
        ("KillMode=control-group", "", ""),
    ],
)
def test_units(tmp_path: Path, old: str, new: str, door: str) -> None:
    (tmp_path / "systemd").mkdir()
    (tmp_path / "systemd" / "node.service").write_text(UNIT.replace(old, new, 1))
    opened = [f.door for f in units.of_folder(tmp_path) if f.state == OPEN]
    assert opened == ([f"{door} of node.service"] if door else [])


def test_flags_of_a_script(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "place.sh").write_text("HERE=$(pwd)\nSTATE=/var/lib/fedmerge\n")
    (tmp_path / "bin" / "superlink.sh").write_text(
        "#!/bin/sh\n# --insecure would be wrong\nexec flower-superlink --port 8000 \\\n"
        '  --database "$STATE/state.db" --ssl-certfile "$HERE/superlink.pem" \\\n'
        "  --enable-supernode-auth --isolation=process\n"
    )
    assert scripts.read(tmp_path).flags("superlink.sh") == {
        "--port": "8000",
        "--database": "/var/lib/fedmerge/state.db",
        "--ssl-certfile": f"{tmp_path}/superlink.pem",
        "--enable-supernode-auth": "",
        "--isolation": "process",
    }
    assert scripts.read(tmp_path).flags("nothing.sh") == {}


NGINX = """
http {
  server {
    listen 8443 ssl;
    ssl_verify_client on;
    location ~ ^/v1/fleet/(get-run|get-fab)$ {
      limit_except POST { deny all; }
      proxy_pass https://superlink$uri;
    }
    location / { return 403; }
  }
}
"""


@pytest.mark.parametrize(
    ("old", "new", "opened"),
    [
        ("", "", 0),
        ("ssl_verify_client on;", "", 1),
        ("ssl_verify_client on;", "ssl_verify_client optional;", 1),
        ("ssl;", "ssl reuseport;", 0),
        ("  server {", "  server { listen 8444 ssl; }\n  server {", 1),
        ("^/v1/fleet/", "^/v1/", 1),
        ("^/v1/fleet/(get-run|get-fab)$", "^/v1/fleet/|^/v1/control/", 1),
        ("^/v1/fleet/(get-run|get-fab)$", "/v1/fleet/", 1),
        ("return 403;", "proxy_pass https://127.0.0.1:8000;", 1),
    ],
)
def test_the_servers_proxy(tmp_path: Path, old: str, new: str, opened: int) -> None:
    (tmp_path / "nginx.conf").write_text(NGINX.replace(old, new, 1))
    assert [finding.state for finding in proxies.of_server(tmp_path)].count(OPEN) == opened
    assert "127.0.0.1:8443" in proxies.own_addresses(tmp_path)


@pytest.mark.parametrize(
    ("listen", "state"),
    [
        ("listen 127.0.0.1:8444 ssl;", CLOSED),
        ("listen 0.0.0.0:8444 ssl reuseport;", OPEN),
        ("listen 8444 default_server ssl http2;", OPEN),
        ("", UNKNOWN),
    ],
)
def test_where_a_sites_proxy_listens(tmp_path: Path, listen: str, state: str) -> None:
    (tmp_path / "nginx.conf").write_text(f"server {{\n  {listen}\n  proxy_ssl_verify on;\n}}\n")
    assert next(proxies.of_site(tmp_path)).state == state


def test_a_plain_superlink_past_the_proxy_is_open_and_silence_is_closed() -> None:
    class Post(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(405)

        def log_message(self, *_: object) -> None:
            """Silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Post) as server:
        place = Place("127.0.0.1", server.server_port)
        Thread(target=server.serve_forever, daemon=True).start()
        assert apis.shut(examination.as_spoken(place)).state == OPEN
        server.shutdown()
    assert apis.shut(examination.as_spoken(place)).state == CLOSED


def test_room_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"total": 100 << 30, "free": 50 << 30})
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda _: usage)
    assert disk.room(tmp_path / "not" / "there", "the runs").state == CLOSED
    for usage.total, usage.free in ((100 << 30, 4 << 30), (20 << 30, 1 << 30)):
        assert disk.room(tmp_path, "the runs").state == OPEN


def test_size_of_a_database(tmp_path: Path) -> None:
    assert list(disk.database_size(tmp_path / "state.db")) == []
    (tmp_path / "state.db").write_bytes(bytes(1 << 20))
    (tmp_path / "state.db-wal").write_bytes(bytes(1 << 20))
    (finding,) = disk.database_size(tmp_path / "state.db")
    assert finding.state == NOTE
    assert finding.answered.startswith("2.0 MiB")


def rounds(run: Path) -> None:
    before = ""
    for number in range(3):
        folder = run / "rounds" / f"{number:04d}"
        folder.mkdir(parents=True)
        (folder / "broadcast.safetensors").write_bytes(b"%d" % number)
        hashes = {
            "broadcast.safetensors": hashlib.sha256(b"%d" % number).hexdigest(),
            "deltas/a.safetensors": "0",
        }
        data = sealed({"round": number, "previous": before, "sha256": hashes})
        (folder / "state.json").write_bytes(data)
        before = hashlib.sha256(data).hexdigest()


def test_rounds_as_they_were_written(tmp_path: Path) -> None:
    assert chain.whole(tmp_path).state == UNKNOWN
    rounds(tmp_path)
    assert chain.whole(tmp_path).state == CLOSED


def test_rounds_whose_adapters_are_not_kept(tmp_path: Path) -> None:
    """The first is needed, and what the last one leans on: here nothing."""
    rounds(tmp_path)
    (tmp_path / "config.toml").write_text("[run]\nkeep-rounds = 2\n")
    (tmp_path / "rounds/0003").mkdir()
    last = tmp_path / "rounds/0002/state.json"
    previous = hashlib.sha256(last.read_bytes()).hexdigest()
    (tmp_path / "rounds/0003/state.json").write_bytes(
        sealed({"round": 3, "previous": previous, "sha256": {}})
    )
    (tmp_path / "rounds/0001/broadcast.safetensors").unlink()
    assert chain.whole(tmp_path).state == CLOSED
    (tmp_path / "rounds/0000/broadcast.safetensors").unlink()
    assert "0000/broadcast.safetensors is missing" in chain.whole(tmp_path).answered


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("0001/broadcast.safetensors", b"other", "0001/broadcast.safetensors was changed"),
        ("0001/state.json", b"{", "0001/state.json is damaged"),
        ("0001/state.json", sealed({"round": 1, "previous": "", "sha256": {}}), "does not follow"),
        ("0001/broadcast.safetensors", None, "is missing"),
    ],
)
def test_rounds_that_were_changed(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    rounds(tmp_path)
    path = tmp_path / "rounds" / name
    path.unlink() if content is None else path.write_bytes(content)
    finding = chain.whole(tmp_path)
    assert finding.state == OPEN
    assert said in finding.answered


def test_versions_of_the_last_run(tmp_path: Path) -> None:
    assert [finding.state for finding in versions.agree(versions.last_run(tmp_path))] == [UNKNOWN]
    for number, flwr in ((1, "1.41.0"), (2, "1.40.0")):
        nodes = {"7": {"versions": {"flwr": "1.41.0", "peft": "0.18"}}, "8": {"versions": {"flwr": flwr}}}
        (tmp_path / f"run-{number}").mkdir()
        text = json.dumps({"versions": {"flwr": "1.41.0"}, "nodes": nodes})
        (tmp_path / f"run-{number}" / "environment.json").write_text(text)
        (finding,) = versions.agree(tmp_path / f"run-{number}")
        assert finding.state == (CLOSED if flwr == "1.41.0" else OPEN)
    assert finding.answered == "node 8: flwr 1.40.0, the server 1.41.0"


@pytest.mark.parametrize(
    ("ahead", "state"), [(0, CLOSED), (-3, CLOSED), (40, CLOSED), (-20, OPEN), (90, OPEN), (4000, OPEN)]
)
def test_clocks(ahead: float, state: str) -> None:
    now = datetime.now(UTC)
    date = format_datetime(now + timedelta(seconds=ahead), usegmt=True)
    assert clocks.compared(date, now, now, "Date").state == state


def test_no_date_is_not_known() -> None:
    assert clocks.compared("yesterday", datetime.now(UTC), datetime.now(UTC), "Date").state == UNKNOWN


def test_a_process_of_root_and_a_token_in_ps() -> None:
    found = [
        processes.Running(7, "flower-superlink", ("flower-superlink",), root=True),
        processes.Running(8, "flwr-serverapp", ("flwr-serverapp", "--token", "secret"), root=False),
    ]
    assert [finding.state for finding in processes.as_root(found)] == [OPEN, CLOSED]
    told = list(processes.tokens(found))
    assert all(finding.state == NOTE for finding in told)
    assert "secret" not in str(told)


def test_a_process_that_has_ended_is_none(tmp_path: Path) -> None:
    command = tmp_path / "flwr-serverapp"
    command.write_text("#!/bin/sh\nread line\n")
    command.chmod(0o755)
    with subprocess.Popen([command], stdin=subprocess.PIPE) as process:
        wait_for(lambda: psutil.Process(process.pid).name() == "flwr-serverapp")
        assert process.pid in [found.number for found in processes.running()]
        assert process.stdin is not None
        process.stdin.close()
        wait_for(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
        assert process.pid not in [found.number for found in processes.running()]


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_no_words_have_no_flags() -> None:
    assert units.flags_of([]) == {}


def test_flags_of_a_superlink_on_flowers_defaults_and_on_ours() -> None:
    stock = processes.Running(7, "flower-superlink", ("flower-superlink", "--insecure"), root=False)
    assert {finding.state for finding in processes.superlink_flags(stock)} == {OPEN}
    ours = (
        "flower-superlink --ssl-certfile a --enable-supernode-auth --isolation process "
        "--superexec-auth-secret-file b --disable-runtime-dependency-installation"
    )
    running = processes.Running(7, "flower-superlink", tuple(ours.split()), root=False)
    assert {finding.state for finding in processes.superlink_flags(running)} == {CLOSED}
