"""`fedmerge compare` on a simulation of seconds; what is compared is tested in tests/study."""

import json

import pytest
import tomli_w

FEW = ("run", "base", "data", "lora", "train", "engine")


@pytest.fixture
def simulation(tiny_flat, tmp_path):
    """A recipe of seconds."""
    flat = tiny_flat(run__rounds=1, run__baselines="alone")
    nested: dict = {}
    for key, value in flat.items():
        table, name = key.split(".")
        if table in FEW and name != "output":
            nested.setdefault(table, {})[name] = value
    path = tmp_path / "tiny.toml"
    path.write_text(tomli_w.dumps(nested))
    return path


def test_a_table_and_a_file(fedmerge, simulation, tmp_path):
    done = fedmerge("compare", simulation, "ties", "--tune", "scale=0.5,1", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "compare.json").read_text())
    names = [row["name"] for row in found["rows"]]
    assert set(names) == {"fedavg", "ties", "base", "best single silo"}
    for word in ("fedavg", "ties", "95 % interval", "tuned: scale", "one seed:", "page     fedmerge report"):
        assert word in done.stdout.replace("\n", " ")
    again = fedmerge("compare", simulation, "ties", "--tune", "scale=0.5,1", "-o", tmp_path / "out", "--json")
    payload = json.loads(again.stdout)
    assert payload["computed"] == 0
    assert payload["rows"] == found["rows"]
    page = fedmerge("report", tmp_path / "out")
    assert page.exit_code == 0, page.output
    assert "ties" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["ties", "--seeds", "0,x"], "expected whole numbers with commas between"),
        (["ties", "--seeds", "0,0"], "expected different whole numbers"),
        (["ties", "--tune", "trim"], "say which values to try"),
        (["ties", "--tune", "scale", "--tune-rounds", "-1"], "--tune-rounds -1"),
        (["ties", "--rows", "-3"], "--rows -3"),
        (["ties", "--space", "prodct()"], "did you mean 'product'"),
        (["ties", "--reference", "tise"], "did you mean 'ties'"),
        (["nosuch"], "no packaged recipe of that name"),
        (["ties", "--set", "train.stepz=3"], "did you mean 'train.steps'"),
    ],
)
def test_bad_input_is_one_sentence(arguments, sentence, fedmerge, simulation, tmp_path):
    done = fedmerge("compare", simulation, *arguments, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert sentence in done.stderr.replace("\n", " ")
    assert not (tmp_path / "out").exists()
