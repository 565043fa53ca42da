"""Where a base's files are: in the package, in a folder or on the Hub; and which base they are."""

from __future__ import annotations

from pathlib import Path

from fedmerge.errors import ConfigError
from fedmerge.silo.fingerprint import fingerprint_of
from fedmerge.silo.settings import BaseSettings

BUILTIN = Path(__file__).parent / "builtin" / "base"

_NOT_WEIGHTS = ("*.json", "*.txt", "*.model", "*.jinja")


def base_folder(settings: BaseSettings) -> Path:
    """The folder with the base's files; a Hub id is fetched where the Hub can be reached.

    Raises:
        ConfigError: there is no such folder, or the Hub's files are neither here nor to be had.
    """
    model = settings.model
    folder = BUILTIN if model == "builtin" else Path(model).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if model == "builtin" or folder.is_dir():
        raise ConfigError(f"base.model = {model!r}: {str(folder)!r} holds no model (no config.json)")
    if folder.is_absolute() or model.startswith((".", "~")):
        raise ConfigError(f"base.model = {model!r}: there is no such folder")
    return _from_hub(model)


def check_fingerprint(settings: BaseSettings, notes: Path | None = None) -> str:
    """The base's fingerprint.

    Args:
        settings: model, and the fingerprint that it must have.
        notes: folder in which hashes of files are remembered; None takes the user's cache.

    Raises:
        ConfigError: it isn't the one that `base.fingerprint` asks for.
    """
    found = fingerprint_of(base_folder(settings), notes)
    if settings.fingerprint not in {"", found}:
        raise ConfigError(
            f"base.fingerprint = {settings.fingerprint!r}, but base {settings.model!r} has {found!r}: "
            "other weights, or another tokenizer",
            code="base/fingerprint",
        )
    return found


def _from_hub(model: str) -> Path:
    from huggingface_hub import snapshot_download  # noqa: PLC0415  half a second that few need
    from huggingface_hub.errors import (  # noqa: PLC0415
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
    )

    try:
        folder = Path(snapshot_download(model, allow_patterns=["*.safetensors", *_NOT_WEIGHTS]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(model, allow_patterns=["pytorch_model*.bin", *_NOT_WEIGHTS]))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as err:
        raise ConfigError(
            f"base.model = {model!r} is no folder here, and the Hub's copy is not to be had "
            f"({type(err).__name__}). With a network: `hf download {model}`; without one: copy the files "
            "over and give their folder, or point HF_HOME at a cache that holds them"
        ) from err
    return folder
