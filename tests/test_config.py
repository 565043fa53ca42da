from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedmerge import project
from fedmerge.config import Config, defaults, overlay, parse_set, read_config, read_toml, strategy_keys
from fedmerge.errors import ConfigError


def test_the_defaults_are_a_valid_config() -> None:
    config = read_config({})
    assert config.flat == defaults()
    assert config.silo.seed == config.silo.data.seed == config.run.seed
    assert config.run.baselines == ("alone", "pooled")


def test_every_key_of_the_reference_has_a_comment_or_a_neighbour_that_explains_it() -> None:
    text = (project.root() / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split("[tool.flwr.app.config.run]")[1].split("[tool.uv]")[0]
    keys = [line for line in section.splitlines() if "=" in line and not line.startswith("#")]
    bare = [line.split("=")[0].strip() for line in keys if "  # " not in line and " # " not in line]
    assert set(bare) <= {
        "completion",
        "rank",
        "dropout",
        "batch-size",
        "learning-rate",
        "weight-decay",
        "evaluation-batch-size",
        "baselines",  # their comments stand above them
        "private",
        "shadows",
    }


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("run.roundz", 1, "unknown key 'run.roundz'; did you mean 'run.rounds'?"),
        ("rounds", 1, "unknown key 'rounds'"),
        ("run.rounds", "abc", "run.rounds = 'abc': expected an integer"),
        ("run.rounds", True, "run.rounds = True: expected an integer"),
        ("run.rounds", 0, "run.rounds = 0: expected at least 1"),
        ("run.keep", "first", "run.keep = 'first'"),
        ("run.baselines", "alone, poled", "did you mean 'pooled'?"),
        ("run.seed", -1, "run.seed = -1"),
        ("engine.nodes", 0, "engine.nodes = 0"),
        ("wire.encoding", "bf17", "did you mean 'bf16'?"),
        ("train.learning-rate", -1.0, "train.learning-rate"),
        ("train.batch-size", 0, "train.batch-size"),
        ("train.schedule", "linea", "did you mean 'linear'?"),
        ("lora.rank", 0, "lora.rank"),
        ("strategy.rule", "tise()", "did you mean 'ties'?"),
        ("strategy.rule", "ties(densty=0.2)", "Did you mean 'density'?"),
        ("strategy.rule", "ties(density=2.0)", "density"),
        ("strategy.space", "prodct()", "did you mean 'product'?"),
        ("strategy.shadows", "knots() @ factors()", "use product()"),
        ("strategy.server-optimizer", "adm()", "did you mean 'adam'?"),
        ("strategy.fraction", 1.5, "strategy.fraction"),
        ("strategy.quorum", 0.0, "strategy.quorum"),
        ("strategy.weighting", "exampels", "did you mean 'examples'?"),
        ("strategy.shadows", "ties( @ product()", "ties("),
        ("strategy.shadow-scoring", "silo", "strategy.shadow-scoring is 'silo': did you mean 'silos'?"),
        (
            "strategy.shadow-scoring",
            "server",
            "'server' needs rows that the server holds: data.server",
        ),
        ("strategy.gate", "silo()", "did you mean 'silos'?"),
        (
            "strategy.gate",
            "silos(share=2)",
            "strategy.gate: share is 2, expected a number at least 0 and below 1",
        ),
        ("task.head", "lable", "did you mean 'label'?"),
        ("data.validation", 1.0, "data.validation"),
    ],
)
def test_a_bad_value_gets_a_sentence(key: str, value: object, sentence: str) -> None:
    with pytest.raises(ConfigError) as error:
        read_config({key: value})  # type: ignore[dict-item]
    assert sentence in str(error.value)


def test_an_integer_is_taken_where_a_float_is_expected() -> None:
    config = read_config({"train.learning-rate": 1})
    assert config.silo.train.learning_rate == 1.0
    assert type(config.flat["train.learning-rate"]) is float


def test_the_digest_ignores_where_and_how_fast_but_nothing_else() -> None:
    base = read_config({})
    assert read_config({"run.output": "elsewhere", "engine.workers": 2}).digest == base.digest
    for key, value in {"run.seed": 1, "strategy.rule": "ties()", "train.steps": 81}.items():
        assert read_config({key: value}).digest != base.digest, key


def test_folders_are_absolute_and_named_by_what_decides_the_result(tmp_path: Path) -> None:
    first, second = read_config({}), read_config({"strategy.rule": "ties()"})
    assert first.folder.is_absolute()
    assert first.folder != second.folder
    assert read_config({"run.output": str(tmp_path / "x")}).folder == tmp_path / "x"


def test_overlay_goes_from_left_to_right(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[run]\nrounds = 2\n[strategy]\nrule = "ties()"\n')
    (tmp_path / "b.toml").write_text('[strategy]\nrule = "median()"\n')
    flat = overlay(tmp_path / "a.toml", tmp_path / "b.toml", sets=["run.rounds=3", "run.name=new name"])
    assert (flat["strategy.rule"], flat["run.rounds"], flat["run.name"]) == ("median()", 3, "new name")


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("run = [")
    (tmp_path / "list.toml").write_text("[run]\nrounds = [1, 2]\n")
    (tmp_path / "more.toml").write_text('[strategy]\nrule = "ties()"\n[run]\nrounds = 2\n')
    for name, sentence in (("bad", "not valid TOML"), ("none", "can't be read"), ("list", "carries no list")):
        with pytest.raises(ConfigError, match=sentence):
            read_toml(tmp_path / f"{name}.toml")
    with pytest.raises(ConfigError, match=r"it also sets run\.rounds"):
        strategy_keys(tmp_path / "more.toml")


@given(st.sampled_from(sorted(defaults())), st.integers(0, 10**6))
def test_set_reads_toml_values(key: str, value: int) -> None:
    text = isinstance(defaults()[key], str)
    assert parse_set(f"{key}={value}") == (key, str(value) if text else value)
    assert parse_set(f"{key}=word{value}") == (key, f"word{value}")


def test_set_wants_an_equals_sign() -> None:
    with pytest.raises(ConfigError, match="expected key=value"):
        parse_set("run.rounds")


def recipe_files(kind: str) -> list[Path]:
    return sorted((project.root() / kind).glob("*.toml"))


@pytest.mark.parametrize("path", recipe_files("strategies"), ids=lambda path: path.stem)
def test_every_strategy_file_is_valid_alone_over_the_defaults(path: Path) -> None:
    assert strategy_keys(path)
    assert isinstance(read_config(overlay(path)), Config)
    assert path.read_text(encoding="utf-8").startswith("#"), "it opens with the paper and when to use it"


@pytest.mark.parametrize("path", recipe_files("simulations"), ids=lambda path: path.stem)
def test_every_simulation_file_is_valid(path: Path) -> None:
    assert isinstance(read_config(overlay(path)), Config)
    assert "fedmerge simulate" in path.read_text(encoding="utf-8").split("[")[0], "it opens with its command"


def test_pip_and_uv_agree_on_what_flower_must_not_fetch() -> None:
    table = tomllib.loads((project.root() / "pyproject.toml").read_text(encoding="utf-8"))
    names = {line.split("[")[0].split(">")[0].split("=")[0] for line in table["project"]["dependencies"]}
    overridden = {line.split(";")[0].strip() for line in table["tool"]["uv"]["override-dependencies"]}
    assert names == overridden
