from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmerge.errors import ConfigError
from fedmerge.silo.policy import Policy
from fedmerge.silo.site import Site, is_deployed, read_site, site_of
from fedmerge.wire.signatures import new_key, public_text

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a whole site.toml, with lines changed, dropped (None) or added; the path of it."""

    def make(policy: str = "", **changes: str | None) -> Path:
        rows, state, key = tmp_path / "rows.jsonl", tmp_path / "state", tmp_path / "signing.key"
        rows.touch()
        state.mkdir(exist_ok=True)
        if not key.exists():
            key.write_bytes(new_key())
            key.chmod(0o600)
        lines = {
            "silo": '"hospital-a"',
            "data": f'"{rows}"',
            "state": f'"{state}"',
            "federation": '"heart-study"',
            "signing-key": '"signing.key"',
            "server-key": f'"{public_text(new_key())}"',
            "log": f'"{tmp_path / "left.jsonl"}"',
        } | {key.replace("_", "-"): value for key, value in changes.items()}
        text = "".join(f"{key} = {value}\n" for key, value in lines.items() if value is not None)
        path = tmp_path / "site.toml"
        path.write_text(f"{text}[policy]\n{policy}\n", encoding="utf-8")
        return path

    return make


def test_a_whole_file(write: Write, tmp_path: Path) -> None:
    bases = f'bases = ["{"0" * 64}"]'
    site = read_site(
        write(f'{bases}\ntasks = ["classification"]\nencodings = ["exact"]\nmax-rounds = 50\nmin-silos = 3')
    )
    assert (site.silo, site.data, site.federation) == (
        "hospital-a",
        str(tmp_path / "rows.jsonl"),
        "heart-study",
    )
    assert (site.state, site.log) == (tmp_path / "state", tmp_path / "left.jsonl")
    assert site.signing_key == tmp_path / "signing.key"
    assert (site.network, site.base) == (False, "")
    assert site.policy == Policy(
        bases=("0" * 64,), tasks=("classification",), encodings=("exact",), max_rounds=50, min_silos=3
    )
    assert hash(site) == hash(dataclasses.replace(site))


def test_silo_and_data_are_enough(write: Write) -> None:
    bare = dict.fromkeys(("state", "federation", "signing_key", "server_key", "log"))
    site = read_site(write(**bare))
    assert (site.state, site.signing_key, site.log, site.policy) == (None, None, None, Policy())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sillo": '"a"'}, r"unknown key 'sillo'; did you mean 'silo'"),
        ({"silo": None}, "silo must be given"),
        ({"silo": None, "data": None}, "silo and data must be given"),
        ({"silo": '""'}, "silo = '': expected text, or leave the key out"),
        ({"silo": "3"}, "silo = 3: expected text"),
        ({"silo": '"a\\u0007"'}, "silo: expected at most 200 printable characters"),
        ({"data": '"rows.jsonl"'}, "data = 'rows.jsonl': expected the absolute path"),
        ({"data": '"/nowhere/rows.jsonl"'}, "data = '/nowhere/rows.jsonl': no such file or folder"),
        ({"state": '"state"'}, "state = 'state': expected the absolute path of a folder"),
        ({"state": '"/nowhere/state"'}, "state = '/nowhere/state': no such file or folder"),
        ({"base": '"bert"'}, "base = 'bert': expected the absolute path of a model's folder"),
        ({"network": '"yes"'}, "network = 'yes': expected true or false"),
        ({"federation": None}, "federation: missing beside the others"),
        ({"federation": '"heart study"'}, "federation = 'heart study': expected letters, digits and hyphens"),
        ({"server_key": '"AAAA"'}, "'AAAA' is no public key"),
        ({"signing_key": '"other.key"'}, r"signing-key = '.*other.key': can't be read \(No such file"),
        ({"log": '"left.jsonl"'}, "log = 'left.jsonl': expected the absolute path of a file, in a folder"),
        ({"log": '"/nowhere/left.jsonl"'}, "log = '/nowhere/left.jsonl': expected the absolute path"),
        ({"policy": "3"}, "not valid TOML"),
        ({"silo": "no text"}, "not valid TOML"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_the_file_and_the_key(
    changes: dict[str, str | None], sentence: str, write: Write
) -> None:
    path = write(**changes)
    with pytest.raises(ConfigError, match=sentence) as caught:
        read_site(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.code == "site/file"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        ("max-round = 3", "unknown key 'policy.max-round'; did you mean 'max-rounds'"),
        ("bases = []", r"policy.bases = \[\]: no run could meet it"),
        ('bases = "0"', "policy.bases = '0': expected a list of texts"),
        ('bases = ["abc"]', "policy.bases: 'abc': expected 64 hexadecimal digits"),
        ("tasks = [3]", r"policy.tasks = \[3\]: no run could meet it"),
        ('encodings = ["exakt"]', "policy.encodings: 'exakt': did you mean 'exact'"),
        ("max-rounds = 0", "policy.max-rounds = 0: no run could meet it"),
        ("max-steps = 1.5", "policy.max-steps = 1.5: no run could meet it"),
        ("min-silos = true", "policy.min-silos = True: no run could meet it"),
    ],
)
def test_a_policy_that_no_run_could_meet(policy: str, sentence: str, write: Write) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_site(write(policy))


def test_a_key_that_others_may_read(write: Write, tmp_path: Path) -> None:
    path = write()
    (tmp_path / "signing.key").chmod(0o640)
    with pytest.raises(ConfigError, match=r"others may read it \(mode 0640\); chmod 600"):
        read_site(path)


def test_a_file_that_everybody_may_write_or_nobody_can_read(write: Write, tmp_path: Path) -> None:
    path = write()
    path.chmod(0o666)
    with pytest.raises(ConfigError, match=r"everybody may write it \(mode 0666\)"):
        read_site(path)
    path.write_bytes(b"silo = '\xff'")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="not UTF-8 at byte 8"):
        read_site(path)
    with pytest.raises(ConfigError, match=r"can't be read \(No such file or directory\)"):
        read_site(tmp_path / "nowhere.toml")


def test_a_node_without_a_file_gives_silo_data_and_state(tmp_path: Path) -> None:
    site = site_of({"silo": "a", "data": "/srv/a.jsonl", "state": str(tmp_path)})
    assert site == Site("a", "/srv/a.jsonl", tmp_path)
    assert is_deployed({"silo": "a"}) and is_deployed({"site": "/x"}) and not is_deployed({})
    assert site_of({"partition-id": 3}) is None
    with pytest.raises(ConfigError, match="lacks data; start it with flower-supernode"):
        site_of({"silo": "a"})


def test_a_contradiction_between_file_and_node_config(write: Write) -> None:
    path = str(write())
    assert site_of({"site": path, "silo": "hospital-a"}) == read_site(Path(path))
    with pytest.raises(ConfigError, match=r"node-config has silo = 'b', .* has 'hospital-a'") as caught:
        site_of({"site": path, "silo": "b"})
    assert caught.value.code == "site/file"
    with pytest.raises(ConfigError, match=r"site = 'site.toml': expected the absolute path"):
        site_of({"site": os.path.relpath(path, start=Path(path).parent)})
