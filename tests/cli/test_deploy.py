"""`fedmerge deploy init`, `rotate`, `revoke` and `submit` as commands."""

import json

import pytest

FINGERPRINT = "ab" * 32
TEXT = """
name = "heart-study"
[server]
hosts = ["fed.example.org"]
[silos.hospital-a]
data = "/srv/rows"
[silos.hospital-b]
data = "/srv/rows"
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "federation.toml"
    path.write_text(TEXT)
    return path


@pytest.fixture
def out(fedmerge, file, tmp_path):
    assert fedmerge("deploy", "init", file, "-o", tmp_path / "out").exit_code == 0
    return tmp_path / "out"


def test_init_says_which_folder_is_whose(fedmerge, file, tmp_path):
    said = fedmerge("deploy", "init", file, "-o", tmp_path / "out")
    assert said.exit_code == 0
    for line in (
        "out/ca: stays with you",
        "out/server: to the server",
        "out/silos/hospital-b: to hospital-b",
    ):
        assert line in said.stdout


def test_json_is_one_object(fedmerge, file, tmp_path):
    made = json.loads(fedmerge("deploy", "init", file, "-o", tmp_path / "out", "--json").stdout)
    assert made == {
        "folder": str(tmp_path / "out"),
        "federation": "heart-study",
        "silos": ["hospital-a", "hospital-b"],
    }
    rotated = json.loads(fedmerge("deploy", "rotate", tmp_path / "out", "hospital-a", "--json").stdout)
    assert rotated["party"] == "hospital-a" and "server/roster.toml" in rotated["files"] and rotated["next"]
    revoked = json.loads(fedmerge("deploy", "revoke", tmp_path / "out", "hospital-a", "--json").stdout)
    assert revoked["unregistered"] is None and "server/crl.pem" in revoked["files"] and revoked["next"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("init", "nowhere.toml", "-o", "new"), "can't be read"),
        (("rotate", "nowhere", "server"), "can't be read"),
        (("revoke", "nowhere", "hospital-a"), "can't be read"),
        (("submit", "nowhere", "builtin"), "expected the server's folder"),
    ],
)
def test_an_error_is_a_sentence_and_a_status(fedmerge, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    done = fedmerge("deploy", *arguments)
    assert done.exit_code == 1 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_init_does_not_write_over_anything(fedmerge, file, out):
    before = (out / "ca" / "ca.key").read_bytes()
    done = fedmerge("deploy", "init", file, "-o", out)
    assert done.exit_code == 1 and "something already" in done.stderr
    assert (out / "ca" / "ca.key").read_bytes() == before


def test_where_flower_does_not_answer_revoke_fails_and_the_silo_is_out_nevertheless(fedmerge, out):
    (out / "server/nodes/hospital-a.id").write_text("17\n")
    for command in ("unregister.sh", "proxy.sh"):
        (out / "server/bin" / command).write_text("#!/bin/sh\nexit 1\n")
    done = fedmerge("deploy", "revoke", out, "hospital-a")
    assert done.exit_code == 1 and "its node is still known" in done.stdout
    assert "revoked = true" in (out / "server/roster.toml").read_text()


def test_a_submitted_run_is_the_recipe_as_a_federation_runs_it(out, tmp_path):
    from fedmerge.config import overlay
    from fedmerge.deployment.revocation import revoke
    from fedmerge.deployment.submission import deployed

    recipe = overlay(sets=["run.rounds=3", "data.partition=iid(silos=2)", f"base.fingerprint={FINGERPRINT}"])
    run = deployed(recipe, out / "server").flat
    assert run["run.rounds"] == 3 and run["run.resume"] == "auto" and run["base.fingerprint"] == FINGERPRINT
    assert (
        run["data.silos"] == "hospital-a, hospital-b" and run["data.partition"] == run["run.baselines"] == ""
    )
    assert str(run["run.output"]).startswith("/var/lib/fedmerge/runs/builtin-fedavg-")
    assert deployed(recipe, out / "server").flat == run  # submitted again, it is the same run
    revoke(out, "hospital-a")
    assert deployed(recipe, out / "server").flat["data.silos"] == "hospital-b"
