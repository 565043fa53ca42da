"""The recipes under simulations/ on their own data: who holds what, and that each silo learns something."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedmerge import project
from fedmerge.config import Config, overlay, read_config
from fedmerge.engine.local import run_local
from fedmerge.silo.data import load_silos

SILOS = {
    "builtin": 4,
    "clinc-dirichlet": 10,
    "clinc-domains": 10,
    "hwu64-scenarios": 18,
    "shakespeare-roles": 10,
}
SHARED = "../shared/data/"


@pytest.fixture
def recipe(shared_data: Callable[[str], Path]) -> Callable[..., Config]:
    """A recipe with its data set where the tests find it; skips, with the reason, where that is missing."""

    def read(name: str, **changes: str) -> Config:
        flat = overlay(project.root() / "simulations" / f"{name}.toml")
        source = str(flat["data.source"])
        if source.startswith(SHARED):
            folder, _, file = source.removeprefix(SHARED).partition("/")
            flat["data.source"] = str(shared_data(folder) / file)
        return read_config(flat | {key.replace("__", "."): value for key, value in changes.items()})

    return read


def test_every_simulation_has_a_row_here() -> None:
    assert set(SILOS) == set(project.recipes("simulations"))


@pytest.mark.parametrize("name", SILOS)
def test_every_silo_of_a_recipe_has_rows_of_all_splits(recipe: Callable[..., Config], name: str) -> None:
    config = recipe(name)
    silos = load_silos(config.silo.data)
    assert len(silos) == SILOS[name]
    assert all(silo.train and silo.validation and silo.test for silo in silos.values())


def test_the_scenarios_of_hwu64_are_uneven_and_share_no_intent(recipe: Callable[..., Config]) -> None:
    silos = load_silos(recipe("hwu64-scenarios").silo.data).values()
    intents = [{row["intent"] for row in silo.train} for silo in silos]
    assert sum(map(len, intents)) == len(set().union(*intents)) == 64
    sizes = sorted(len(silo.train) for silo in silos)
    assert sizes[0] == 20 and sizes[-1] == 200


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("name", ["hwu64-scenarios", "shakespeare-roles"])
def test_silos_learn_and_the_merge_helps(
    recipe: Callable[..., Config], request: pytest.FixtureRequest, tmp_path: Path, name: str
) -> None:
    own = {"base__model": request.getfixturevalue("minilm")} if name == "hwu64-scenarios" else {}
    folder = run_local(recipe(name, run__baselines="alone", run__output=str(tmp_path / "run"), **own))
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    rows, sign = result["candidates"], 1 if result["higher_is_better"] else -1
    for silo, before in rows["base"]["test"].items():
        assert sign * rows[f"alone/{silo}"]["test"][silo] >= sign * before, silo
    assert sign * rows["merged"]["mean"] > sign * rows["base"]["mean"]
