"""What a merged checkpoint takes over from its base besides weights: configuration and tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from fedmerge.errors import ConfigError, WireError
from fedmerge.wire.folders import file_in

CONFIGS = ("config.json", "generation_config.json")
TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "bpe.codes", "spiece.model",
    "sentencepiece.bpe.model", "tekken.json", "*.jinja", "preprocessor_config.json", "processor_config.json",
)  # fmt: skip
VOCABULARY = (
    "tokenizer.json", "tokenizer.model", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
)  # fmt: skip
LICENCES = ("LICENSE*", "NOTICE*")

LARGEST = 1 << 27


def carried(base: Path, tokenizer: Path | None = None) -> dict[str, bytes]:
    """Files to write beside merged weights.

    Code (`*.py`) is never among them.

    Args:
        base: folder of the base: config, generation config, licence, tokenizer.
        tokenizer: folder to take the tokenizer from instead.

    Raises:
        ConfigError: `tokenizer` holds no tokenizer.
        WireError: a file that leads out of its folder, or is too large.
    """
    words = _matching(tokenizer or base, TOKENIZER)
    if tokenizer is not None and not words:
        raise ConfigError(f"{tokenizer} holds no tokenizer's files")
    return _matching(base, CONFIGS + LICENCES) | words


def tokenizers_differ(base: Path, other: Path) -> list[str]:
    """Files of the vocabulary that both have, with other contents.

    Raises:
        WireError: a file that leads out of its folder, or is too large.
    """
    ours, theirs = (_matching(folder, VOCABULARY) for folder in (base, other))
    return sorted(name for name in ours.keys() & theirs.keys() if ours[name] != theirs[name])


def _matching(folder: Path, patterns: tuple[str, ...]) -> dict[str, bytes]:
    return dict(_read(folder, patterns))


def _read(folder: Path, patterns: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    for found in sorted(folder.iterdir()):
        if any(fnmatchcase(found.name, pattern) for pattern in patterns):
            path = file_in(folder, found.name)
            if path is None:
                continue
            if path.stat().st_size > LARGEST:
                raise WireError(
                    f"{path} has {path.stat().st_size} bytes, at most {LARGEST} are carried along"
                )
            yield found.name, path.read_bytes()
