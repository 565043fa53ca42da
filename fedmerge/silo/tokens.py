"""Text to tokens, with the bytes of text that each token stands for.

Bits per byte needs them: scores in bits per token can't be compared between tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase

BYTE_SHIFT = 3  # ByT5: byte b is token b + 3; 0, 1 and 2 are pad, end and unknown

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """Text as tokens.

    Args:
        numbers: token numbers (length,).
        ends: bytes of UTF-8 text up to the end of each token (length,).
    """

    numbers: Numbers
    ends: Numbers


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    special: bool = False,
    max_length: int | None = None,
) -> list[Tokens]:
    """Tokens of each text.

    ByT5's tokens are the bytes themselves, computed here 100 times faster than by its own Python loop.
    Names of special tokens that stand in the text ("</s>") are text there, not special tokens.

    Args:
        tokenizer: of the base.
        texts: any strings.
        special: add the special tokens that the base expects around a text.
        max_length: tokens of a text, special ones included; None keeps all.

    Returns:
        One for each text, in order.
    """
    if not texts:
        return []
    if isinstance(tokenizer, ByT5Tokenizer):
        return [_bytes(text, [tokenizer.eos_token_id] if special else [], max_length) for text in texts]
    encoded = tokenizer(
        list(texts),
        add_special_tokens=special,
        return_offsets_mapping=tokenizer.is_fast,
        return_attention_mask=False,
        truncation=max_length is not None,
        max_length=max_length,
        verbose=False,  # texts longer than the base's context are cut up later
    )
    offsets = encoded["offset_mapping"] if tokenizer.is_fast else [None] * len(texts)
    return [
        Tokens(np.asarray(numbers, dtype=np.int64), _ends(text, numbers, spans))
        for text, numbers, spans in zip(texts, encoded["input_ids"], offsets, strict=True)
    ]


def _bytes(text: str, closing: list[int], max_length: int | None) -> Tokens:
    kept = None if max_length is None else max(0, max_length - len(closing))
    raw = np.frombuffer(text.encode("utf-8", "surrogatepass")[:kept], dtype=np.uint8).astype(np.int64)
    numbers = np.concatenate([raw + BYTE_SHIFT, np.asarray(closing, dtype=np.int64)])
    return Tokens(numbers, np.minimum(np.arange(1, len(numbers) + 1), len(raw)))


def _ends(text: str, numbers: Sequence[int], spans: Any) -> Numbers:
    """Byte offsets from a fast tokenizer's character offsets; spread evenly where there are none."""
    bytes_before = byte_offsets(text)
    if spans is None:
        return np.linspace(0, bytes_before[-1], len(numbers) + 1)[1:].round().astype(np.int64)
    characters = np.asarray(spans, dtype=np.int64).reshape(-1, 2)[:, 1]
    # Special tokens have the span (0, 0), and the pieces of one character share its span.
    return np.maximum.accumulate(bytes_before[characters])


def byte_offsets(text: str) -> Numbers:
    """Bytes of UTF-8 before each character and after the last one (characters + 1,).

    Example:
        >>> byte_offsets("aé!").tolist()
        [0, 1, 3, 4]
    """
    raw = np.frombuffer(text.encode("utf-8", "surrogatepass"), dtype=np.uint8)
    starts = np.flatnonzero((raw & 0xC0) != 0x80)
    return np.append(starts, len(raw)).astype(np.int64)
