from __future__ import annotations

import pytest

from fedmerge.config import read_config
from fedmerge.errors import ConfigError
from fedmerge.server_app.authority import authority, read_authority, read_roster
from fedmerge.wire.signatures import load_key, new_key, public_text
from tests.seeded_keys import seeded_key

KEYS = {silo: public_text(seeded_key(silo)) for silo in ("a", "b")}
SERVER = 'federation = "heart-study"\nsigning-key = "signing.key"\nroster = "roster.toml"\nruns = "runs"\n'
ROSTER = "".join(f'[silos.{silo}]\nkey = "{key}"\n' for silo, key in KEYS.items())


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "server.toml").write_text(SERVER)
    (tmp_path / "roster.toml").write_text(ROSTER + "max-examples = 500\n")
    (tmp_path / "signing.key").touch(mode=0o600)
    (tmp_path / "signing.key").write_bytes(new_key())
    return tmp_path


def test_what_the_servers_file_says(folder):
    found = read_authority(folder / "server.toml")
    assert found.identity.federation == "heart-study"
    assert public_text(found.identity.key) == public_text(load_key(folder / "signing.key"))
    assert sorted(found.identity.members()) == ["a", "b"]
    assert found.identity.caps == {"b": 500}
    assert found.runs == folder / "runs"


def test_the_environment_names_the_file(folder, monkeypatch):
    monkeypatch.delenv("FEDMERGE_SERVER", raising=False)
    assert authority() is None
    monkeypatch.setenv("FEDMERGE_SERVER", str(folder / "server.toml"))
    assert authority().identity.federation == "heart-study"
    monkeypatch.setenv("FEDMERGE_SERVER", str(folder / "none.toml"))
    with pytest.raises(ConfigError, match=r"none.toml: can't be read \(No such file"):
        authority()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SERVER + 'rosters = "x"\n', "unknown key 'rosters'; did you mean 'roster'"),
        (SERVER.replace('roster = "roster.toml"\n', ""), "roster is None, expected text"),
        (SERVER.replace('"heart-study"', "3"), "federation is 3, expected text"),
        (SERVER.replace("heart-study", "../x"), "federation '../x': expected at most 64 letters"),
        (
            SERVER.replace("signing.key", "roster.toml"),
            "roster.toml: the signing key has mode|no Ed25519 private key",
        ),
        (SERVER.replace("signing.key", "no.key"), "no.key: the signing key can't be read"),
        (SERVER.replace("roster.toml", "no.toml"), "no.toml: can't be read"),
        ("federation = ", "not valid TOML"),
    ],
)
def test_a_servers_file_that_can_not_be_used(folder, text, reason):
    (folder / "server.toml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_authority(folder / "server.toml")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o660])
def test_a_signing_key_that_others_can_read(folder, mode):
    (folder / "signing.key").chmod(mode)
    with pytest.raises(ConfigError, match=rf"signing.key: the signing key has mode {mode:04o}"):
        read_authority(folder / "server.toml")


A = f'[silos.a]\nkey = "{KEYS["a"]}"\n'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", r"has no \[silos.<name>\]"),
        ("silos = 3", r"has no \[silos.<name>\]"),
        ("[silo.a]", "unknown key 'silo'; did you mean 'silos'"),
        ("[silos]\na = 3", "a: is 3, expected a table"),
        (A + "weight = 3", "a: unknown key 'weight'"),
        (A + "max-examples = -1", "a: max-examples = -1: expected a number of rows"),
        (A + "max-examples = true", "a: max-examples = True"),
        (A + "max-examples = 1.5", "a: max-examples = 1.5"),
        (A + 'revoked = "no"', "a: revoked = 'no': expected true or false"),
        ("[silos.a]", "a: key is None, expected text"),
        ('[silos.a]\nkey = "xyz"', "a: key: 'xyz' is no public key"),
        (A + A.replace("silos.a", "silos.b"), "a and b have the same key; each needs its own"),
        (
            A.replace("silos.a", 'silos."../a"'),
            r"silo '\.\./a': expected at most 64 letters, digits and hyphens",
        ),
        (A.replace("silos.a", f"silos.{'a' * 65}"), "expected at most 64"),
        (A + A, "not valid TOML"),
    ],
)
def test_a_roster_that_can_not_be_used(folder, text, reason):
    """Fault 43: two silos with one key could sign as each other."""
    (folder / "roster.toml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_authority(folder / "server.toml")


def test_a_silo_is_revoked_while_the_server_runs(folder, caplog):
    members = read_authority(folder / "server.toml").identity.members
    before = members()
    assert members() is before
    (folder / "new.toml").write_text(ROSTER + "revoked = true\n")
    (folder / "new.toml").replace(folder / "roster.toml")
    assert members()["b"].revoked and not members()["a"].revoked
    (folder / "roster.toml").write_text("nonsense")
    assert members()["b"].revoked
    assert "the roster stays as it was" in caplog.text
    (folder / "roster.toml").unlink()
    assert members()["b"].revoked


def test_runs_lie_below_the_servers_folder(folder, tiny_flat):
    here = read_authority(folder / "server.toml")
    assert (
        here.placed(read_config(tiny_flat(run__output="heart/1"))).folder == folder / "runs" / "heart" / "1"
    )
    assert here.placed(read_config(tiny_flat(run__output=str(folder / "other")))).folder == folder / "other"
    named = read_config(tiny_flat(run__output=""))
    placed = here.placed(named)
    assert placed.folder == folder / "runs" / named.folder.name
    assert placed.digest == named.digest
    with pytest.raises(ConfigError, match="leads out of"):
        here.placed(read_config(tiny_flat(run__output="../../etc")))


def test_a_roster_by_itself(folder):
    assert read_roster(folder / "roster.toml")["b"].most_examples == 500
