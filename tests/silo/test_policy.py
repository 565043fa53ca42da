from __future__ import annotations

from typing import Any

import pytest

from fedmerge.errors import PolicyError
from fedmerge.silo.policy import ENCODINGS, Policy, columns_read
from fedmerge.wire import encodings

RUN: dict[str, Any] = {
    "task": "classification",
    "columns": ("text", "label"),
    "encoding": "exact",
    "rounds": 50,
}
ORDER: dict[str, Any] = {"round": 3, "steps": 100, "asked": 4}


def test_no_policy_lets_anything_pass() -> None:
    Policy().check_run(**RUN)
    Policy().check_base("0" * 64)
    Policy().check_order(**ORDER)


def test_a_policy_that_a_run_just_meets() -> None:
    policy = Policy(
        bases=("0" * 64,),
        tasks=("classification",),
        columns=("label", "text"),
        encodings=("exact",),
        max_rounds=50,
        max_steps=100,
        min_silos=4,
    )
    policy.check_run(**RUN)
    policy.check_base("0" * 64)
    policy.check_order(**ORDER)


@pytest.mark.parametrize(
    ("policy", "code", "sentence"),
    [
        (Policy(tasks=("causal-lm",)), "policy/tasks", "task.kind is 'classification': policy.tasks allows"),
        (Policy(columns=("text",)), "policy/columns", "a column of the rows is 'label': policy.columns"),
        (Policy(encodings=("bf16",)), "policy/encodings", "wire.encoding is 'exact'"),
        (Policy(max_rounds=49), "policy/max-rounds", "run.rounds = 50: policy.max-rounds is 49"),
    ],
)
def test_a_run_that_is_not_allowed(policy: Policy, code: str, sentence: str) -> None:
    with pytest.raises(PolicyError, match=sentence) as caught:
        policy.check_run(**RUN)
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("policy", "code", "sentence"),
    [
        (Policy(max_rounds=2), "policy/max-rounds", "round 3: policy.max-rounds is 2"),
        (Policy(max_steps=99), "policy/max-steps", "100 optimizer steps: policy.max-steps is 99"),
        (Policy(min_silos=5), "policy/min-silos", "4 silos are asked: policy.min-silos is 5"),
    ],
)
def test_a_message_that_asks_for_more_than_the_run_s_config_says(
    policy: Policy, code: str, sentence: str
) -> None:
    with pytest.raises(PolicyError, match=sentence) as caught:
        policy.check_order(**ORDER)
    assert caught.value.code == code


def test_another_base() -> None:
    with pytest.raises(PolicyError, match="the base's fingerprint is '1111") as caught:
        Policy(bases=("0" * 64,)).check_base("1" * 64)
    assert caught.value.code == "policy/bases"


def test_the_encodings_are_those_of_the_wire() -> None:
    assert set(ENCODINGS) == set(encodings.ENCODINGS)


def test_every_column_that_a_config_names_is_one_that_is_read(silo_settings: Any) -> None:
    def read(task: str = "causal-lm", **data: str) -> tuple[str, ...]:
        return columns_read(silo_settings("nowhere", task={"kind": task}, data=data))

    assert read("classification", text="note", label="finding") == ("note", "finding")
    assert read(prompt="q", completion="a") == ("q", "a")
    assert read(messages="turns") == ("turns",)
    assert read("classification", text="note", label="finding", messages="turns") == (
        "note",
        "turns",
        "finding",
    )
