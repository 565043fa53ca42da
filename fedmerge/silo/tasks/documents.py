"""Rows as tokens for a causal language model: plain text, prompt and completion, or a chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from fedmerge.errors import ConfigError
from fedmerge.silo.columns import Rows
from fedmerge.silo.settings import DataSettings
from fedmerge.silo.tokens import Numbers, Tokens, byte_offsets, tokenize


@dataclass(frozen=True)
class Document:
    """One row as tokens.

    Args:
        tokens: numbers (length,).
        bytes: of scored text that each token adds (length,).
        scored: whether the token is to be predicted (length,), as 0 or 1.
    """

    tokens: Numbers
    bytes: Numbers
    scored: Numbers


@dataclass(frozen=True)
class _Text:
    text: str
    scored: Sequence[tuple[int, int]]  # character spans


def documents(rows: Rows, data: DataSettings, tokenizer: PreTrainedTokenizerBase) -> list[Document]:
    """Every row as a document, whichever columns `data` names.

    Plain text and completions are closed by the end token, which is predicted like any other. Of a
    prompt nothing is predicted; of a chat, the assistant's turns.

    Raises:
        ConfigError: the tokenizer has no chat template or no end token, or the template refuses a row.
    """
    if data.messages:
        texts = [_chat(row[data.messages], number, tokenizer) for number, row in enumerate(rows, start=1)]
        return _encode(texts, tokenizer, closed=False)
    if data.prompt:
        pairs = [(str(row[data.prompt]), str(row[data.completion])) for row in rows]
        texts = [_Text(p + c, [(len(p), len(p) + len(c))]) for p, c in pairs]
    else:
        texts = [_Text(row[data.text], [(0, len(row[data.text]))]) for row in rows]
    return _encode(texts, tokenizer, closed=True)


def opening(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token from which a text's first token is predicted: the beginning token, or the end token."""
    if tokenizer.bos_token_id is not None:
        return int(tokenizer.bos_token_id)
    return end_token(tokenizer)


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The number of the end token; ConfigError where the tokenizer has none."""
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"task.kind = 'causal-lm': the base's tokenizer ({type(tokenizer).__name__}) has no end token "
            "(eos_token): is the base a causal language model?"
        )
    return int(tokenizer.eos_token_id)


def _encode(texts: Sequence[_Text], tokenizer: PreTrainedTokenizerBase, *, closed: bool) -> list[Document]:
    end = [end_token(tokenizer)] if closed else []
    tokenized = tokenize(tokenizer, [text.text for text in texts])
    return [_document(text, tokens, end) for text, tokens in zip(texts, tokenized, strict=True)]


def _document(text: _Text, tokens: Tokens, end: list[int]) -> Document:
    scored, bytes_ = _within(text, tokens)
    return Document(
        tokens=np.append(tokens.numbers, end).astype(np.int64),
        bytes=np.append(bytes_, [0] * len(end)).astype(np.int64),
        scored=np.append(scored, [1] * len(end)).astype(np.int64),
    )


def _within(text: _Text, tokens: Tokens) -> tuple[Numbers, Numbers]:
    """For each token whether it ends in one of the text's spans, and its bytes that lie in them.

    A token may straddle the end of a prompt: it is predicted, and only its part of the completion counts.
    """
    starts = np.append(0, tokens.ends[:-1])[: len(tokens.ends)]
    bytes_before = byte_offsets(text.text)
    scored = np.zeros(len(tokens.ends), dtype=np.int64)
    bytes_ = np.zeros(len(tokens.ends), dtype=np.int64)
    for first, last in bytes_before[np.asarray(text.scored, dtype=np.int64).reshape(-1, 2)]:
        scored |= (tokens.ends > first) & (tokens.ends <= last)
        bytes_ += np.clip(np.minimum(tokens.ends, last) - np.maximum(starts, first), 0, None)
    return scored, bytes_ * scored


def _chat(messages: Sequence[Mapping[str, str]], number: int, tokenizer: PreTrainedTokenizerBase) -> _Text:
    """A chat by the tokenizer's template; the assistant's turns are scored.

    A template may leave out parts of earlier turns (reasoning, say): those turns are then not scored.
    """
    if not tokenizer.chat_template:
        raise ConfigError(
            "data.messages is set, but the base's tokenizer has no chat template: take an instruction-tuned "
            "base, or data.prompt and data.completion"
        )
    try:
        whole = _render(tokenizer, messages, opened=False)
        spans = []
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = _render(tokenizer, messages[:index], opened=True)
            through = _render(tokenizer, messages[: index + 1], opened=False)
            if through.startswith(before) and whole.startswith(through):
                spans.append((len(before), len(through)))
    except (TemplateError, ValueError, TypeError) as err:
        raise ConfigError(
            f"row {number}: the base's chat template refuses {_roles(messages)}: {err}"
        ) from err
    if not spans:
        raise ConfigError(f"row {number}: no assistant turn to learn from in {_roles(messages)}")
    return _Text(whole, spans)


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, str]], *, opened: bool
) -> str:
    if not messages:
        return ""
    rendered: str = tokenizer.apply_chat_template(
        [dict(message) for message in messages], tokenize=False, add_generation_prompt=opened
    )
    return rendered


def _roles(messages: Sequence[Mapping[str, str]]) -> str:
    return "a chat of roles " + ", ".join(str(message.get("role")) for message in messages)
