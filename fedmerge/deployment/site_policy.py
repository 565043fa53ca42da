"""The policy of a site in federation.toml: known keys, and values that some run could meet."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fedmerge.deployment.names import refuse_unknown
from fedmerge.errors import ConfigError, nearest

_LISTS = ("bases", "tasks", "columns", "label-columns", "encodings")
_COUNTS = ("max-rounds", "max-steps", "min-silos")
KEYS = _LISTS + _COUNTS
_ENCODINGS = ("exact", "bf16", "fp16")  # wire.encoding's; its own table would import torch
_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


def check_policy(policy: object, where: str) -> None:
    """Refuse a policy that is none.

    Args:
        policy: as TOML gives it.
        where: for the sentence.

    Raises:
        ConfigError: an unknown key, a value of the wrong kind, or one that no run could meet.
    """
    if not isinstance(policy, Mapping):
        raise ConfigError(f"{where} policy: expected a table [silos.<name>.policy]")
    refuse_unknown(policy, KEYS, f"{where} policy")
    for key, value in policy.items():
        (_check_list if key in _LISTS else _check_count)(value, f"{where} policy: {key}")
    for base in policy.get("bases", ()):
        if not _FINGERPRINT.fullmatch(base):
            raise ConfigError(f"{where} policy: bases: {base!r}: expected 64 hexadecimal digits (a SHA-256)")
    for encoding in policy.get("encodings", ()):
        if encoding not in _ENCODINGS:
            raise ConfigError(f"{where} policy: encodings: {encoding!r}: {nearest(encoding, _ENCODINGS)}")


def _check_list(value: object, where: str) -> None:
    if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise ConfigError(f"{where} = {value!r}: expected a list of texts")
    if not value:
        raise ConfigError(f"{where} = []: no run could meet it; leave it out to allow all")


def _check_count(value: object, where: str) -> None:
    if type(value) is not int or value < 1:
        raise ConfigError(f"{where} = {value!r}: expected an integer of at least 1")
