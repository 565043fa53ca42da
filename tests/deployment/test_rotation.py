import shutil
import tomllib
from pathlib import Path

import pytest
from cryptography import x509

from fedmerge.deployment.certificates import check_pair, serial_of, serials_of
from fedmerge.deployment.office import open_office, read_pair
from fedmerge.deployment.revocation import revoke
from fedmerge.deployment.roster import read_members
from fedmerge.deployment.rotation import rotate
from fedmerge.errors import ConfigError
from fedmerge.wire.signatures import load_key, public_text


def snapshot(folder):
    return {
        path.relative_to(folder).as_posix(): (path.read_bytes(), path.stat().st_mode)
        for path in folder.rglob("*")
        if path.is_file()
    }


def changed(before, after):
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_a_silos_keys_are_new_and_nothing_else_is(out):
    before, old = snapshot(out), serial_of((out / "silos/hospital-a/client.pem").read_bytes())
    done = rotate(out, "hospital-a")
    after = snapshot(out)
    assert changed(before, after) == set(done.files)
    site = "silos/hospital-a/"
    secrets = {name for name in done.files if name.startswith(site)}
    assert secrets == {
        site + name
        for name in ("signing.key", "node.key", "node.pub", "client.pem", "client.key", "runtime.pem",
                     "runtime.key", "superexec.secret")
    }  # fmt: skip
    assert {name: before[name][1] for name in secrets} == {name: after[name][1] for name in secrets}
    members = read_members(out / "server/roster.toml")
    assert members["hospital-a"].key == public_text(load_key(out / site / "signing.key"))
    assert members["hospital-a"].max_examples == 5000
    assert serials_of((out / "server/crl.pem").read_bytes()) == {old}
    assert (out / "server/nodes/hospital-a.pub").read_bytes() == (out / site / "node.pub").read_bytes()
    for name in ("client", "runtime"):
        check_pair(read_pair(out / site, f"{name}.pem", f"{name}.key"), name)
    assert any("unregister.sh hospital-a" in step for step in done.following)


def test_a_silo_whose_folder_the_operator_did_not_keep_gets_a_whole_one(out):
    old = serial_of((out / "silos/hospital-a/client.pem").read_bytes())
    names = {name for name in snapshot(out) if name.startswith("silos/hospital-a/")}
    shutil.rmtree(out / "silos/hospital-a")
    rotate(out, "hospital-a")
    assert {name for name in snapshot(out) if name.startswith("silos/hospital-a/")} == names
    assert serials_of((out / "server/crl.pem").read_bytes()) == {old}


def test_the_servers_new_key_is_in_every_site_file_and_their_own_lines_stay(out):
    site = out / "silos/hospital-b/site.toml"
    site.write_text(site.read_text() + "max-rounds = 7\n")
    before = snapshot(out)
    done = rotate(out, "server")
    assert changed(before, snapshot(out)) == set(done.files)
    key = (out / "server/signing.pub").read_text().strip()
    assert key == public_text(load_key(out / "server/signing.key"))
    tables = [tomllib.loads(path.read_text()) for path in sorted(out.glob("silos/*/site.toml"))]
    assert [table["server-key"] for table in tables] == [key, key]
    assert tables[1]["policy"] == {"max-rounds": 7}
    names = x509.load_pem_x509_certificate((out / "server/superlink.pem").read_bytes()).extensions
    hosts = names.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "fed.example.org" in hosts.get_values_for_type(x509.DNSName)


def test_a_revoked_silo_is_out_everywhere_and_others_are_not(out):
    serials = {
        name: serial_of((out / f"silos/{name}/client.pem").read_bytes())
        for name in ("hospital-a", "hospital-b")
    }
    rotate(out, "hospital-a")
    newer = serial_of((out / "silos/hospital-a/client.pem").read_bytes())
    shutil.rmtree(out / "silos/hospital-a")  # carried to the site and not kept
    done = revoke(out, "hospital-a")
    members = read_members(out / "server/roster.toml")
    assert members["hospital-a"].revoked and not members["hospital-b"].revoked
    assert serials_of((out / "server/crl.pem").read_bytes()) == {serials["hospital-a"], newer}
    assert [path.name for path in (out / "server/nodes").iterdir()] == ["hospital-b.pub"]
    assert done.unregistered is None and any("unregister.sh" in step for step in done.following)
    again = snapshot(out)
    revoke(out, "hospital-a")
    assert changed(again, snapshot(out)) <= {"server/crl.pem"}  # signed anew
    with pytest.raises(ConfigError, match="is revoked"):
        rotate(out, "hospital-a")


def test_where_flower_does_not_answer_the_silo_is_out_and_that_is_said(out):
    (out / "server/nodes/hospital-a.id").write_text("17\n")
    command = Path(out / "server/bin/unregister.sh")
    command.write_text("#!/bin/sh\nexit 1\n")
    done = revoke(out, "hospital-a")
    assert done.unregistered is False and read_members(out / "server/roster.toml")["hospital-a"].revoked
    command.write_text(f'#!/bin/sh\necho "$@" >{out}/said\n')
    assert revoke(out, "hospital-a").unregistered
    assert (out / "said").read_text() == "hospital-a\n"


def test_a_number_is_kept_until_flower_says_that_it_forgot_the_node(out, tmp_path):
    """flwr exits with 0 also where no SuperLink answered."""
    number = out / "server/nodes/hospital-a.id"
    number.write_text("17\n")
    place, flwr = out / "server/bin/place.sh", tmp_path / "flwr"
    place.write_text(f"{place.read_text()}\nPATH={tmp_path}:$PATH\n")
    flwr.write_text('#!/bin/sh\necho \'{"success": false, "error-message": "SuperLink is unavailable"}\'\n')
    flwr.chmod(0o755)
    done = revoke(out, "hospital-a")
    assert done.unregistered is False and number.read_text() == "17\n"
    assert any("unregister.sh hospital-a" in step for step in done.following)
    flwr.write_text('#!/bin/sh\necho unregistered\necho \'{\n  "success": true,\n  "node-id": 17\n}\'\n')
    assert revoke(out, "hospital-a").unregistered and not number.exists()


@pytest.mark.parametrize("party", ["hospital-c", "", "../server"])
@pytest.mark.parametrize("act", [rotate, revoke])
def test_an_unknown_party_is_named_and_nothing_changes(out, act, party):
    before = snapshot(out)
    with pytest.raises(ConfigError, match="There are: hospital-a, hospital-b"):
        act(out, party)
    assert snapshot(out) == before


def swap(one, two):
    kept = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(kept)


@pytest.mark.parametrize(
    ("one", "two", "party"),
    [
        ("ca/ca.key", "server/superlink.key", "hospital-a"),
        ("silos/hospital-a/client.key", "silos/hospital-a/runtime.key", "hospital-a"),
        ("server/superlink.key", "silos/hospital-a/runtime.key", "server"),
    ],
)
def test_a_certificate_that_does_not_match_its_key_stops_a_rotation(out, one, two, party):
    swap(out / one, out / two)
    before = snapshot(out)
    with pytest.raises(ConfigError, match="the certificate does not match the key"):
        rotate(out, party)
    assert snapshot(out) == before


@pytest.mark.parametrize("name", ["federation.toml", "ca/ca.key", "ca/serials.toml", "server/roster.toml"])
def test_a_folder_that_lacks_something_is_named(out, name):
    (out / name).unlink()
    with pytest.raises(ConfigError, match=f"{name}: can't be read"):
        open_office(out)
