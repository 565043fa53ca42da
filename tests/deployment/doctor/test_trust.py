from pathlib import Path

import pytest

from fedmerge.deployment.doctor import trust
from fedmerge.deployment.doctor.finding import CLOSED, NOTE, OPEN
from fedmerge.deployment.installed_only import COMMANDS, REFUSED_COMMANDS
from fedmerge.wire.signatures import public_text
from tests.seeded_keys import seeded_key

KEYS = {name: seeded_key(name) for name in ("server", "a", "b")}
ROSTER = "\n".join(
    f'[silos.{name}]\nkey = "{public_text(KEYS[name])}"\nmax-examples = 0\n' for name in ("a", "b")
)


def write_key(path: Path, owner: str) -> None:
    path.touch(mode=0o600)
    path.write_bytes(KEYS[owner])


@pytest.fixture
def server(tmp_path: Path) -> Path:
    (tmp_path / "server.toml").write_text(
        'federation = "f"\nsigning-key = "signing.key"\nroster = "roster.toml"\n'
    )
    write_key(tmp_path / "signing.key", "server")
    (tmp_path / "roster.toml").write_text(ROSTER)
    return tmp_path


def doors(findings) -> dict[str, str]:
    return {finding.door: finding.state for finding in findings}


def test_a_server_that_signs(server: Path) -> None:
    assert doors(trust.server(server)) == {"signed messages": CLOSED, "roster": CLOSED}


def test_a_server_without_its_file_takes_any_reply(tmp_path: Path) -> None:
    assert doors(trust.server(tmp_path)) == {"signed messages": OPEN}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (public_text(KEYS["b"]), "", "b has no key"),
        (public_text(KEYS["b"]), "bm90IGEga2V5", "b has no key"),
        (public_text(KEYS["b"]), public_text(KEYS["a"]), "b has the key of a"),
        (ROSTER, "", "it names no silo"),
    ],
)
def test_a_roster_that_lets_others_in(server: Path, old: str, new: str, said: str) -> None:
    (server / "roster.toml").write_text(ROSTER.replace(old, new))
    (finding,) = (finding for finding in trust.server(server) if finding.door == "roster")
    assert finding.state == OPEN
    assert said in finding.answered


def test_who_is_revoked_is_said(server: Path) -> None:
    (server / "roster.toml").write_text(ROSTER + "revoked = true\n")
    assert doors(trust.server(server))["revoked silos"] == NOTE


@pytest.mark.parametrize(
    ("address", "found"),
    [("127.0.0.1:9464", [CLOSED]), ("localhost:9464", [CLOSED]), ("0.0.0.0:9464", [OPEN]), ("", [])],
)
def test_where_metrics_are_served(tmp_path: Path, address: str, found: list[str]) -> None:
    (tmp_path / "server.toml").write_text(f'metrics = "{address}"\n')
    assert [finding.state for finding in trust.metrics(tmp_path)] == found


def test_the_variable_that_switches_signatures_on(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    starter = tmp_path / "bin" / "superexec.sh"
    starter.write_text("exec flower-superexec\n")
    assert trust.told_to_sign(tmp_path).state == OPEN
    starter.write_text("FEDMERGE_SERVER=/etc/fedmerge/server.toml\nexport FEDMERGE_SERVER\n")
    assert trust.told_to_sign(tmp_path).state == CLOSED


def test_a_site(tmp_path: Path) -> None:
    assert doors(trust.site(tmp_path)) == {"site's own file": OPEN}
    write_key(tmp_path / "signing.key", "a")
    server_key = public_text(KEYS["server"])
    text = f'silo = "a"\nserver-key = "{server_key}"\nlog = "left.jsonl"\n[policy]\nmax-rounds = 5\n'
    (tmp_path / "site.toml").write_text(text)
    expected = {
        "signed replies": CLOSED,
        "server's signature": CLOSED,
        "site policy": NOTE,
        "site log": CLOSED,
    }
    assert doors(trust.site(tmp_path)) == expected
    (tmp_path / "site.toml").write_text(text.replace("server-key", "other-key").replace("log =", "lag ="))
    (tmp_path / "signing.key").unlink()
    opened = {"signed replies": OPEN, "server's signature": OPEN, "site log": OPEN}
    assert doors(trust.site(tmp_path)) == expected | opened


def test_who_starts_apps(tmp_path: Path) -> None:
    for name in ("bin", "apps"):
        (tmp_path / name).mkdir()
    (tmp_path / "bin" / "superexec.sh").write_text(
        '. "place.sh"\nPATH=$HERE/apps:$PATH\nexec flower-superexec\n'
    )
    for command in (*COMMANDS, *REFUSED_COMMANDS):
        assert trust.installed_only(tmp_path).state == OPEN
        (tmp_path / "apps" / command).write_text("exec python3 -m fedmerge.deployment.installed_only\n")
    assert trust.installed_only(tmp_path).state == CLOSED
    (tmp_path / "bin" / "superexec.sh").write_text("exec flower-superexec\n")
    assert trust.installed_only(tmp_path).state == OPEN
