"""Text as tokens, the bytes they stand for, and what a causal language model learns of rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, BertTokenizer, ByT5Tokenizer

from fedmerge.errors import ConfigError
from fedmerge.silo.base import load_base
from fedmerge.silo.lora import AdaptedModel
from fedmerge.silo.settings import SiloSettings
from fedmerge.silo.tasks import CausalLanguage, task_class
from fedmerge.silo.tasks.task import IGNORED, Example, collate
from fedmerge.silo.tokens import tokenize

Settings = Callable[..., SiloSettings]
BYTES = ByT5Tokenizer(extra_ids=0)
SPECIAL = ("</s>", "<pad>", "<unk>")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def words(wordy: Path) -> Any:
    return AutoTokenizer.from_pretrained(wordy)


def causal(make: Settings, tokenizer: Any, **tables: dict[str, Any]) -> CausalLanguage:
    return CausalLanguage(make("x", **tables), tokenizer)


@given(st.text(max_size=60).filter(lambda text: not any(name in text for name in SPECIAL)))
@settings(max_examples=60, deadline=None)
def test_bytes_are_tokenized_as_byt5_does(text: str) -> None:
    for special in (False, True):
        ours = tokenize(BYTES, [text], special=special)[0]
        assert ours.numbers.tolist() == BYTES(text, add_special_tokens=special).input_ids
        assert ours.ends[-1:].tolist() == [len(text.encode())][: len(ours.ends)]


def test_bytes_are_cut_off_as_byt5_does() -> None:
    ours = tokenize(BYTES, ["a long text"], special=True, max_length=5)[0]
    assert ours.numbers.tolist() == BYTES("a long text", truncation=True, max_length=5).input_ids


def test_a_special_name_in_the_text_is_text() -> None:
    assert tokenize(BYTES, ["</s>"])[0].numbers.tolist() == [ord(letter) + 3 for letter in "</s>"]


@given(st.text(max_size=60))
@settings(max_examples=60, deadline=None)
def test_every_byte_belongs_to_a_token(words: Any, text: str) -> None:
    tokens = tokenize(words, [text])[0]
    assert (np.diff(tokens.ends, prepend=0) >= 0).all()
    assert tokens.ends[-1:].tolist() == [len(text.encode())][: len(tokens.ends)]


def test_a_slow_tokenizer_spreads_the_bytes(words: Any) -> None:
    class Slow:
        is_fast = False

        def __call__(self, texts: list[str], **_options: object) -> dict[str, list[list[int]]]:
            return {"input_ids": [[7, 8, 9, 10] for _ in texts]}

    assert tokenize(Slow(), ["12345678"])[0].ends.tolist() == [2, 4, 6, 8]
    assert tokenize(words, []) == []


def test_packed_sequences_predict_every_token_once(silo_settings: Settings) -> None:
    rows = [{"text": "hello"}, {"text": "wörld"}, {"text": ""}, {"text": "x" * 70}]
    examples = causal(silo_settings, BYTES).encode(rows)
    assert [len(example.tokens) for example in examples] == [32, 32, 21]
    stream = [token for row in rows for token in [*BYTES(row["text"], add_special_tokens=False).input_ids, 1]]
    assert torch.cat([example.target for example in examples]).tolist() == stream
    assert torch.cat([example.tokens for example in examples]).tolist() == [1, *stream[:-1]]
    assert sum(example.bytes for example in examples) == len("hellowörld".encode()) + 70
    assert sum(example.count for example in examples) == len(stream)


def test_without_packing_a_row_is_a_sequence(silo_settings: Settings) -> None:
    task = causal(silo_settings, BYTES, train={"packing": False, "max_length": 8})
    examples = task.encode([{"text": "abc"}, {"text": "0123456789"}])
    assert examples[0].tokens.tolist() == [1, *(ord(letter) + 3 for letter in "abc")]
    assert examples[0].target.tolist() == [*(ord(letter) + 3 for letter in "abc"), 1]
    assert (examples[0].count, examples[0].bytes) == (4, 3)
    assert examples[1].target.tolist() == [ord(letter) + 3 for letter in "01234567"]
    assert (examples[1].count, examples[1].bytes) == (8, 8)


def test_a_beginning_token_opens_a_text(words: Any, silo_settings: Settings) -> None:
    example = causal(silo_settings, words).encode([{"text": "the cat"}])[0]
    assert example.tokens[0] == words.bos_token_id
    assert example.target[-1] == words.eos_token_id
    assert example.bytes == 7


def scored_text(tokenizer: Any, example: Example) -> str:
    return str(tokenizer.decode(example.target[example.target != IGNORED].tolist()))


@pytest.mark.parametrize("name", ["bytes", "words"])
def test_only_the_completion_is_predicted(name: str, words: Any, silo_settings: Settings) -> None:
    tokenizer = BYTES if name == "bytes" else words
    task = causal(silo_settings, tokenizer, data={"prompt": "ask", "completion": "reply"})
    example = task.encode([{"ask": "the cat? ", "reply": "the hat"}])[0]
    assert scored_text(tokenizer, example).strip() == "the hat</s>"  # " the" is one token of the other
    assert example.bytes == len("the hat")
    assert len(example.tokens) == len(example.target)


def test_the_assistants_turns_are_predicted(words: Any, silo_settings: Settings) -> None:
    task = causal(silo_settings, words, data={"messages": "turns"}, train={"max_length": 100})
    turns = [("user", "the cat"), ("assistant", "the mat"), ("user", "and"), ("assistant", "hat")]
    example = task.encode([{"turns": [{"role": role, "content": text} for role, text in turns]}])[0]
    assert scored_text(words, example) == "the mat</s>hat</s>"
    assert words.decode(example.tokens.tolist()).startswith("<user>the cat</s><assistant>the mat")


CHAT_ERRORS = [
    (
        [("system", "be kind"), ("assistant", "yes")],
        "row 1: the base's chat template refuses .*no system role",
    ),
    ([("user", "hello")], "row 1: no assistant turn to learn from in a chat of roles user"),
]


@pytest.mark.parametrize(("turns", "message"), CHAT_ERRORS)
def test_chats_that_can_not_be_learnt(
    turns: list[tuple[str, str]], message: str, words: Any, silo_settings: Settings
) -> None:
    task = causal(silo_settings, words, data={"messages": "turns"})
    with pytest.raises(ConfigError, match=message):
        task.encode([{"turns": [{"role": role, "content": text} for role, text in turns]}])


def test_a_chat_wants_a_template(silo_settings: Settings) -> None:
    task = causal(silo_settings, BYTES, data={"messages": "turns"})
    with pytest.raises(ConfigError, match="the base's tokenizer has no chat template"):
        task.encode([{"turns": [{"role": "assistant", "content": "yes"}]}])


def test_rows_with_nothing_to_predict(silo_settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    task = causal(
        silo_settings, BYTES, data={"prompt": "ask", "completion": "reply"}, train={"max_length": 8}
    )
    long, short = {"ask": "much too long", "reply": "yes"}, {"ask": "hm?", "reply": "yes"}
    assert len(task.encode([long, short])) == 1
    assert "1 of 2 rows have nothing to predict within train.max-length = 8" in caplog.text
    with pytest.raises(ConfigError, match=r"no row has anything to predict within train.max-length = 8"):
        task.encode([long])


def test_no_end_token(silo_settings: Settings, minilm: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    assert isinstance(tokenizer, BertTokenizer)
    with pytest.raises(ConfigError, match=r"BertTokenizer\) has no end token"):
        causal(silo_settings, tokenizer).encode([{"text": "hello"}])


def test_bits_per_byte_is_all_bits_over_all_bytes(tiny_llama: Path, silo_settings: Settings) -> None:
    settings = silo_settings(tiny_llama, train={"packing": False})
    model = AdaptedModel(load_base(settings.base, "causal-lm", CPU), settings)
    task = CausalLanguage(settings, BYTES)
    rows = [{"text": "hello world"}, {"text": "héé"}]
    examples = task.encode(rows)
    with torch.no_grad():
        scores = task.score(model, [collate(examples, 0, CPU)], [])
        nats = 0.0
        for row in rows:
            numbers = torch.tensor([[1, *BYTES(row["text"]).input_ids]])
            logits = model.base(input_ids=numbers[:, :-1]).logits.log_softmax(-1)
            nats -= logits.gather(2, numbers[:, 1:, None]).sum().item()
    assert scores["bits_per_byte"] == pytest.approx(nats / math.log(2) / 16, rel=1e-5)
    assert scores["loss"] == pytest.approx(nats / 18, rel=1e-5)
    assert scores["count"] == 16


def test_unknown_tasks() -> None:
    with pytest.raises(ConfigError, match=r"task.kind = 'causal': no such task; did you mean 'causal-lm'\?"):
        task_class("causal")


def test_a_task_of_another_package(installed: Callable[[str, str], None]) -> None:
    installed(
        "[fedmerge.tasks]\nmine = elsewhere:Mine\nhalf = elsewhere:Half\n",
        """
        from fedmerge.silo.tasks import CausalLanguage
        class Mine(CausalLanguage):
            metric = "mine"
        class Half:
            metric = "half"
        """,
    )
    assert task_class("mine").metric == "mine"
    with pytest.raises(ConfigError, match=r"task.kind = 'half': .* is no task, it has no architecture"):
        task_class("half")
