"""What can be known of a base without loading it, and without fetching it."""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmerge.errors import ConfigError

if TYPE_CHECKING:
    from fedmerge.silo.settings import BaseSettings

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0}
_QUANTIZED_BYTES = {"8bit": 1.0, "4bit": 0.55}


@dataclass(frozen=True)
class Shape:
    """The size of a base: counts, and the bytes that each parameter takes in memory."""

    parameters: int
    hidden: int
    layers: int
    heads: int
    vocabulary: int
    context: int
    bytes_each: float


def find_base(settings: BaseSettings) -> Path:
    """The folder of a base that is on this machine already; nothing is fetched.

    Raises:
        ConfigError: it is not here; the sentence says how to get it.
    """
    from fedmerge.silo.base import base_folder

    model = settings.model
    if model == "builtin" or Path(model).expanduser().is_dir() or model.startswith((".", "/", "~")):
        return base_folder(settings)
    if folder := _cached(model):
        return folder
    raise ConfigError(
        f"base.model = {model!r}: no folder here, nor in the Hub's cache; `hf download {model}` fetches it"
    )


def shape_of(settings: BaseSettings, folder: Path) -> Shape:
    """Read a base's size from its configuration and from the headers of its weights."""
    from transformers import AutoConfig

    from fedmerge.silo.fingerprint import weight_files

    config: Any = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    files = weight_files(folder)
    parameters = sum(_parameters(path) for path in files)
    stored = sum(path.stat().st_size for path in files) / max(1, parameters)  # what dtype "auto" loads
    each = _QUANTIZED_BYTES.get(settings.quantization, _BYTES.get(settings.dtype, stored))
    return Shape(
        parameters=parameters,
        hidden=int(config.hidden_size),
        layers=int(config.num_hidden_layers),
        heads=int(config.num_attention_heads),
        vocabulary=int(config.vocab_size),
        context=int(getattr(config, "max_position_embeddings", 0) or 1 << 20),
        bytes_each=each,
    )


def _parameters(path: Path) -> int:
    """Values in one weight file; of the older pickled files, an estimate from the size."""
    if path.suffix != ".safetensors":
        return path.stat().st_size // 4
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118  it is no mapping
    return sum(math.prod(shape) for shape in shapes)


def _cached(model: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    with contextlib.suppress(HFValidationError):
        found = try_to_load_from_cache(model, "config.json")
        if isinstance(found, str):
            return Path(found).parent
    return None
