import socket

import pytest

from fedmerge.deployment.federation import parse_federation, read_federation
from fedmerge.deployment.founding import found
from fedmerge.errors import ConfigError

LOCAL = """
name = "trial"
[server]
hosts = ["localhost", "127.0.0.1"]
port = {port}
superlink-port = {superlink}
folder = "{home}/server"
state = "{home}/state/server"
[silos.a]
data = "/srv/rows"
folder = "{home}/a"
state = "{home}/state/a"
log = "{home}/state/a/left.jsonl"
proxy-port = {proxy}
runtime-port = {runtime}
"""
BASES = f'bases = ["{"00ff" * 16}"]'
PORTS = {"port": 28443, "superlink": 28000, "proxy": 28444, "runtime": 29094}


def test_what_is_left_out_has_a_default(text):
    made = parse_federation(text)
    assert [silo.name for silo in made.silos] == ["hospital-a", "hospital-b"]
    assert made.server.folder == made.silos[0].folder == "/etc/fedmerge"
    assert made.silos[0].max_examples == 5000 and not made.silos[1].policy
    assert not made.one_machine


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("[silos.hospital-b]", "[silos.hospital-a]", "stands there twice"),
        ("[silos.hospital-b]", "[silos.Hospital-A]", "the same name"),
        ("[silos.hospital-b]", "[silos.server]", "what the server is called"),
        ("[silos.hospital-b]", '[silos."../b"]', "letters, digits and hyphens"),
        ("[silos.hospital-b]", '[silos."b c"]', "letters, digits and hyphens"),
        ("[silos.hospital-b]", '[silos."\u0430b"]', "letters, digits and hyphens"),
        ('name = "heart-study"', 'name = "heart study"', "letters, digits and hyphens"),
        ('name = "heart-study"', "", "letters, digits and hyphens"),
        ('name = "heart-study"', 'nam = "heart-study"', "did you mean 'name'"),
        ("max-examples = 5000", "max-example = 5000", "did you mean 'max-examples'"),
        ("max-examples = 5000", "max-examples = -1", "expected rows"),
        ("max-rounds = 50", "max-round = 50", "did you mean 'max-rounds'"),
        ("max-rounds = 50", "max-rounds = 0", "at least 1"),
        (BASES, "bases = []", "no run could meet it"),
        (BASES, 'bases = "00ff"', "a list of texts"),
        (BASES, 'bases = ["00ff"]', "64 hexadecimal digits"),
        (BASES, 'encodings = ["exakt"]', "did you mean 'exact'"),
        ("max-examples = 5000", 'network = "no"', "true or false"),
        ('"203.0.113.7"', '"https://fed.org"', "neither a DNS name nor an address"),
        ('"203.0.113.7"', '"fed.org:8443"', "neither a DNS name nor an address"),
        ('hosts = ["fed.example.org", "203.0.113.7"]', "", "needs hosts"),
        ("[server]", "[server]\nport = 70000", "expected a port"),
        ("[server]", "[server]\nport = 8000", "both 8000"),
        ("[server]", '[server]\nfolder = "etc/fedmerge"', "an absolute path"),
        ("[server]", '[server]\nstate = "/var/$(reboot)"', "letters, digits and"),
        ('data = "/srv/fedmerge/rows.jsonl"', "", "needs data"),
        ('data = "/srv/fedmerge/rows.jsonl"', 'data = "/srv/it\'s"', "quotes"),
        ("[silos.hospital-b]", "[silos.hospital-b", "not valid TOML"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(text, tmp_path, old, new, said):
    assert old in text
    path = tmp_path / "federation.toml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ConfigError, match=said) as raised:
        found(read_federation(path), tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert [child.name for child in tmp_path.iterdir()] == ["federation.toml"]


def test_a_federation_without_silos_is_none(text):
    with pytest.raises(ConfigError, match=r"no table \[silos\]"):
        parse_federation(text.partition("[silos")[0])


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.toml: can't be read"):
        read_federation(tmp_path / "nowhere.toml")


@pytest.mark.parametrize("key", ["superlink", "proxy", "runtime"])
def test_parties_on_one_machine_share_no_port(tmp_path, key):
    ports = PORTS | {key: PORTS["port"]}
    with pytest.raises(ConfigError, match="28443"):
        parse_federation(LOCAL.format(home=tmp_path, **ports))


def test_parties_on_one_machine_share_no_folder(tmp_path):
    text = LOCAL.format(home=tmp_path, **PORTS).replace(f"{tmp_path}/a", f"{tmp_path}/server", 1)
    with pytest.raises(ConfigError, match=r"is also that of \[server\] folder"):
        parse_federation(text)


def test_a_port_in_use_is_said_before_anything_is_written(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = PORTS | {"runtime": taken.getsockname()[1]}
        made = parse_federation(LOCAL.format(home=tmp_path, **ports))
        with pytest.raises(ConfigError, match=rf"runtime-port = {ports['runtime']}: the port is in use"):
            found(made, tmp_path / "out")
    assert not list(tmp_path.iterdir())
