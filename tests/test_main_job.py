"""What the main job shows, over 3 seeds. Text differs between Python versions: relations, no figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import mean, stdev

import pytest

from fedmerge.config import read_config
from fedmerge.engine.local import run_local

BASE = Path(__file__).parent.parent / "fedmerge" / "silo" / "builtin" / "base"
SEEDS = (0, 1, 2)


def beyond_two_standard_errors(differences: list[float]) -> bool:
    """Whether the mean over seeds is above 0 by more than twice its standard error."""
    return mean(differences) > 2 * stdev(differences) / math.sqrt(len(differences))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict]]:
    """The candidates' scores of the main job without pooled training, for each seed."""
    found = []
    for seed in SEEDS:
        folder = tmp_path_factory.mktemp(f"seed{seed}") / "run"
        flat = {"run.seed": seed, "run.output": str(folder), "run.baselines": "alone", "strategy.shadows": ""}
        run_local(read_config(flat))
        found.append(json.loads((folder / "result.json").read_text(encoding="utf-8"))["candidates"])
    return found


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_each_silo_improves_on_its_own_text(tables: list[dict[str, dict]]) -> None:
    for silo in tables[0]["base"]["test"]:
        gains = [table["base"]["test"][silo] - table[f"alone/{silo}"]["test"][silo] for table in tables]
        assert beyond_two_standard_errors(gains), (silo, gains)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_merge_beats_the_base_and_every_single_silo_on_the_mean(tables: list[dict[str, dict]]) -> None:
    for rival in [name for name in tables[0] if name == "base" or name.startswith("alone/")]:
        gains = [table[rival]["mean"] - table["merged"]["mean"] for table in tables]
        assert beyond_two_standard_errors(gains), (rival, gains)


def test_the_base_is_as_good_as_its_training_log_says() -> None:
    report = json.loads((BASE / "training.json").read_text(encoding="utf-8"))
    assert report["held_out_bits_per_byte"] <= 1.55
    assert len(report["corpus_sha256"]) == len(report["held_out_sha256"]) == 64
    assert (BASE / "model.safetensors").stat().st_size <= 5_000_000


@pytest.mark.slow
def test_the_figure_of_the_base_on_this_pythons_held_out_text() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from fedmerge.silo.builtin.corpus import pretraining_documents

    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    stream: list[int] = []
    for document in pretraining_documents(held_out=True):
        stream += [byte + 3 for byte in document.text.encode("utf-8", "surrogatepass")] + [1]
    rows = torch.tensor(stream[: len(stream) // 256 * 256]).view(-1, 256)
    nats = 0.0
    with torch.no_grad():
        for batch in rows.split(16):
            logits = model(input_ids=batch[:, :-1]).logits
            nats += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
            ).item()
    total = rows.shape[0] * 255
    report = json.loads((BASE / "training.json").read_text(encoding="utf-8"))
    # Other Pythons carry other text.
    assert nats / math.log(2) / total == pytest.approx(report["held_out_bits_per_byte"], abs=0.05)
