"""The base: the frozen pretrained model and its tokenizer, from the package, a folder or the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from fedmerge.errors import ConfigError
from fedmerge.silo.base_files import BUILTIN, base_folder, check_fingerprint
from fedmerge.silo.device import pick_device
from fedmerge.silo.settings import BaseSettings

__all__ = [
    "BUILTIN",
    "Architecture",
    "Base",
    "base_folder",
    "check_fingerprint",
    "load_base",
    "load_tokenizer",
    "outline_base",
    "pick_device",
]

Architecture = Literal["causal-lm", "encoder"]
"""What a task needs of a base: next-token logits, or hidden states."""

_AUTO_CLASSES: dict[str, Any] = {"causal-lm": AutoModelForCausalLM, "encoder": AutoModel}


@dataclass(frozen=True)
class Base:
    """A loaded base.

    Args:
        model: in evaluation mode, all parameters frozen, on its device.
        tokenizer: with a pad token.
        folder: its files.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path


def load_base(settings: BaseSettings, architecture: Architecture, device: torch.device) -> Base:
    """Load weights and tokenizer.

    Args:
        settings: model, dtype, quantization.
        architecture: "causal-lm" for next-token logits, "encoder" for hidden states.
        device: where the weights go.

    Raises:
        ConfigError: not found, not loadable, or weights are missing from the files.
    """
    folder = base_folder(settings)
    options: dict[str, Any] = {
        "dtype": _dtype(settings),
        "local_files_only": True,
        "trust_remote_code": False,
    }
    if settings.quantization != "none":
        options["quantization_config"] = _quantization(settings)
    if settings.quantization != "none" or device.type == "cuda":
        options["device_map"] = {"": device}
    with _told_as_config_error(settings), _no_progress_bar():
        model, report = _AUTO_CLASSES[architecture].from_pretrained(
            folder, output_loading_info=True, **options
        )
    _check_complete(settings, architecture, report["missing_keys"])
    model.requires_grad_(False)
    model.config.use_cache = False  # of keys and values, for generation only
    return Base(model.eval(), load_tokenizer(settings), folder)


def load_tokenizer(settings: BaseSettings) -> PreTrainedTokenizerBase:
    """The base's tokenizer; where it has no pad token, the end token pads (padding is masked anyway).

    Raises:
        ConfigError: not found or not loadable.
    """
    with _told_as_config_error(settings):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            base_folder(settings), local_files_only=True, trust_remote_code=False
        )
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def outline_base(settings: BaseSettings, architecture: Architecture) -> PreTrainedModel:
    """The base's modules on torch's meta device: names and shapes without weights.

    Raises:
        ConfigError: not found, or of an architecture that the task can't use.
    """
    with _told_as_config_error(settings), torch.device("meta"):
        config = AutoConfig.from_pretrained(
            base_folder(settings), local_files_only=True, trust_remote_code=False
        )
        model: PreTrainedModel = _AUTO_CLASSES[architecture].from_config(config)
    return model


def _quantization(settings: BaseSettings) -> BitsAndBytesConfig:
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"base.quantization = {settings.quantization!r} needs bitsandbytes: `pip install bitsandbytes`, "
            "or base.quantization = 'none'"
        )
    if settings.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=_computing_dtype(settings),
    )


def _dtype(settings: BaseSettings) -> torch.dtype | str:
    """What `from_pretrained` takes: "auto" loads the weights as they are stored."""
    return "auto" if settings.dtype == "auto" else _torch_dtype(settings.dtype)


def _computing_dtype(settings: BaseSettings) -> torch.dtype:
    """What 4-bit weights are unpacked to; "auto" takes what the base's configuration names."""
    if settings.dtype != "auto":
        return _torch_dtype(settings.dtype)
    config = AutoConfig.from_pretrained(base_folder(settings), local_files_only=True, trust_remote_code=False)
    named = config.dtype
    return named if isinstance(named, torch.dtype) else torch.float32


def _torch_dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    assert isinstance(dtype, torch.dtype)
    return dtype


def _check_complete(settings: BaseSettings, architecture: Architecture, missing: set[str]) -> None:
    # Pooled outputs are never used: embeddings are means over the tokens.
    lost = sorted(name for name in missing if "pooler" not in name)
    if lost:
        raise ConfigError(
            f"base.model = {settings.model!r} has no weights for {', '.join(lost[:3])}"
            f"{' ...' if lost[3:] else ''}, which a {architecture} needs: choose another base or task.kind"
        )


@contextmanager
def _told_as_config_error(settings: BaseSettings) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as err:
        raise ConfigError(f"base.model = {settings.model!r} can't be loaded: {err}") from err


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
