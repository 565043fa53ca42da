"""Adapters on disk, in PEFT's format: `adapter_config.json` and `adapter_model.safetensors`.

Written whole or not at all, and with the same bytes for the same adapter. What is read is not trusted: no
pickle, no name that could be a path, no header that its file does not bear out.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fedmerge.adapters.adapter import Adapter, Lora
from fedmerge.adapters.pairs import split_names
from fedmerge.errors import AdapterMismatch, ConfigError, WireError
from fedmerge.wire.folders import file_in, find_folder, read_json
from fedmerge.wire.tensorfile import Pieces, read_tensors, sync_folder, tensor_pieces, write_file

CONFIG_FILE = "adapter_config.json"
TENSOR_FILE = "adapter_model.safetensors"
PICKLE_FILE = "adapter_model.bin"
CARD_FILE = "README.md"

LARGEST_CONFIG = 1 << 20

PREFIX = "base_model.model."
"""What PEFT puts before the base's own module names."""

TARGETS = "fedmerge.target_modules"
"""Metadata key: `Lora.target_modules` as given, where the config names the modules in full."""

OTHER_MATHEMATICS = (
    "use_dora", "use_qalora", "lora_bias", "rank_pattern", "alpha_pattern", "layer_replication",
    "target_parameters", "trainable_token_indices", "alora_invocation_tokens", "use_bdlora", "kasa_config",
    "velora_config", "monteclora_config", "arrow_config",
)  # fmt: skip
"""Fields of PEFT's config that make the update something else than `scaling * B @ A`."""

PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of PEFT's init_lora_weights that leave the base as it is; PiSSA's like take B_0 A_0 out of it."""

KEPT = ("modules_to_save", "fan_in_fan_out")
"""Fields of PEFT's config that a loader needs and a merge does not; they travel in the metadata as JSON."""


def load_adapter(source: str | Path, *, fetch: bool = True) -> Adapter:
    """Read an adapter in PEFT's format.

    Args:
        source: a folder, or the Hub id of an adapter ("owner/name"), which is downloaded once and then
            cached.
        fetch: whether a Hub id may be downloaded.

    Returns:
        The adapter on the CPU, with its LoRA settings; its metadata tell `base_model` and `task_type` where
        they are known.

    Raises:
        ConfigError: there is no such folder, and the Hub does not have it or can't be reached.
        WireError: files that are missing, damaged, pickled, or not what they claim to be.
        AdapterMismatch: another kind of adapter than plain LoRA, or factors that do not fit the settings.

    Example:
        >>> import tempfile, torch
        >>> pair = {"q.lora_A.weight": torch.ones(2, 3), "q.lora_B.weight": torch.zeros(4, 2)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_adapter(Adapter(pair, Lora(rank=2, alpha=4)), folder + "/out")
        ...     load_adapter(folder + "/out").lora.scaling
        2.0
    """
    folder = find_folder(source, "adapter", (CONFIG_FILE, TENSOR_FILE), fetch=fetch)
    config = _read_config(folder)
    path = file_in(folder, TENSOR_FILE)
    if path is None:
        pickled = (folder / PICKLE_FILE).exists()
        why = f"; it has {PICKLE_FILE}, a pickle, which can run code and is never read" if pickled else ""
        raise WireError(f"{folder} has no {TENSOR_FILE}{why}")
    tensors, metadata = read_tensors(path)
    try:
        lora = _lora(config, metadata.pop(TARGETS, None))
        _check_ranks(tensors, lora)
    except (ConfigError, AdapterMismatch) as error:
        raise type(error)(f"{folder}: {error}") from None
    return Adapter(tensors, lora, metadata | _told(config))


def save_adapter(
    adapter: Adapter,
    folder: str | Path,
    *,
    base_model: str = "",
    task_type: str | None = None,
    overwrite: bool = False,
    card: str = "",
) -> Path:
    """Write an adapter in PEFT's format: `PeftModel.from_pretrained(base, folder)` loads it.

    A new folder appears whole or not at all; in one that is there, each file is replaced whole. For PEFT to
    find the modules the tensors are named as PEFT names them, `base_model.model.<module>.lora_A.weight`.
    Tensors that are no LoRA pair travel in the same file.

    Args:
        adapter: with LoRA settings.
        folder: new, empty, or an adapter's own.
        base_model: name or path of the base; "": what the adapter's metadata say under `base_model`.
        task_type: PEFT's, such as "CAUSAL_LM"; None: what the metadata say under `task_type`.
        overwrite: write into a folder that holds something else; its other files stay.
        card: a README.md to write beside; "": none.

    Returns:
        The folder.

    Raises:
        AdapterMismatch: no LoRA settings, or factors that do not fit them.
        WireError: the folder holds something else, a name is not fit for a file, or the disk refuses.
    """
    folder = Path(folder)
    _check_target(folder, overwrite)
    config = _config(adapter, base_model, task_type)
    written: dict[str, bytes | Pieces] = {
        CONFIG_FILE: _json(config),
        TENSOR_FILE: tensor_pieces(adapter.tensors, _file_metadata(adapter, config)),
    }
    if card:
        written[CARD_FILE] = card.encode()
    try:
        _write_folder(folder, written)
    except OSError as error:
        raise WireError(f"{folder} can't be written: {error}") from error
    return folder


def _read_config(folder: Path) -> dict[str, Any]:
    path = file_in(folder, CONFIG_FILE)
    if path is None:
        raise WireError(f"{folder} is no adapter: it has no {CONFIG_FILE}")
    return read_json(path, LARGEST_CONFIG)


def _lora(config: Mapping[str, Any], targets: str | None) -> Lora:
    if config.get("peft_type") != "LORA":
        raise AdapterMismatch(f"peft_type is {config.get('peft_type')!r}, only LORA adapters are read")
    strange = [field for field in OTHER_MATHEMATICS if config.get(field)]
    if config.get("bias", "none") != "none":
        strange.append("bias")
    if config.get("init_lora_weights", True) not in PLAIN_STARTS:
        strange.append("init_lora_weights")
    if strange:
        values = ", ".join(f"{field} = {config[field]!r}" for field in strange)
        raise AdapterMismatch(f"its updates are more than scaling * B @ A: {values}")
    modules = json.loads(targets) if targets else config.get("target_modules") or []
    modules = sorted(modules) if isinstance(modules, list) else [modules]
    rank, alpha = config.get("r"), config.get("lora_alpha")
    return Lora(rank, alpha, bool(config.get("use_rslora")), tuple(map(str, modules)))  # type: ignore[arg-type]


def _told(config: Mapping[str, Any]) -> dict[str, str]:
    """What the config says besides LoRA settings, as metadata; only what is there."""
    names = {"base_model": config.get("base_model_name_or_path"), "task_type": config.get("task_type")}
    kept = {field: json.dumps(config[field]) for field in KEPT if config.get(field)}
    return {key: str(value) for key, value in names.items() if value} | kept


def _check_ranks(tensors: Mapping[str, Tensor], lora: Lora) -> None:
    pairs, others = split_names(tensors)
    strange = [name for name in others if ".lora_" in name]
    if strange:
        raise AdapterMismatch(f"{strange[0]!r} is no factor of a plain LoRA pair")
    for pair in pairs:
        a, b = tensors[pair.a], tensors[pair.b]
        if a.ndim < 2 or b.ndim < 2 or a.shape[0] != lora.rank or b.shape[1] != lora.rank:
            raise AdapterMismatch(
                f"{pair.module!r}: A has shape {tuple(a.shape)} and B {tuple(b.shape)}, "
                f"expected ({lora.rank}, inputs) and (outputs, {lora.rank}) at rank {lora.rank}"
            )


def _check_target(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise WireError(f"{folder} is a file, expected a folder to write the adapter into")
    strange = folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG_FILE).is_file()
    if strange and not overwrite:
        raise WireError(
            f"{folder} holds something that is no adapter; name another folder, or give overwrite=True"
        )


def _config(adapter: Adapter, base_model: str, task_type: str | None) -> dict[str, Any]:
    """PEFT's config; only modules that really have factors are targets, each by its full name."""
    if adapter.lora is None:
        raise AdapterMismatch(
            "the adapter has no LoRA settings, which PEFT's format needs: give lora=Lora(...)"
        )
    _check_ranks(adapter.tensors, adapter.lora)
    lora, told = adapter.lora, adapter.metadata
    pairs, _ = split_names(adapter.tensors)
    return {
        "peft_type": "LORA",
        "task_type": task_type or told.get("task_type"),
        "base_model_name_or_path": base_model or told.get("base_model"),
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        "use_rslora": lora.rslora,
        "lora_dropout": 0.0,
        "bias": "none",
        "use_dora": False,
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "target_modules": [pair.module.removeprefix(PREFIX) for pair in pairs] or list(lora.target_modules),
    } | {field: json.loads(told[field]) for field in KEPT if field in told}


def _file_metadata(adapter: Adapter, config: Mapping[str, Any]) -> dict[str, str]:
    """The adapter's metadata, without what the config says already."""
    metadata = {key: value for key, value in adapter.metadata.items() if key not in _told(config)}
    if adapter.lora is not None and sorted(adapter.lora.target_modules) != config["target_modules"]:
        metadata[TARGETS] = json.dumps(adapter.lora.target_modules)
    return metadata


def _json(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()


def _write_folder(folder: Path, files: Mapping[str, bytes | Pieces]) -> None:
    """A new folder is renamed into place with its files; an old one's files are replaced one by one."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.is_dir():
        for name, data in files.items():
            write_file(folder / name, data)
        return
    hidden = folder.parent / f".{folder.name}.{secrets.token_hex(4)}"
    hidden.mkdir()
    try:
        for name, data in files.items():
            write_file(hidden / name, data)
        hidden.rename(folder)
    except BaseException:
        shutil.rmtree(hidden, ignore_errors=True)
        raise
    sync_folder(folder.parent)
