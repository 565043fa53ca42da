"""The package's own namespace: public names, and what importing it does not load."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import fedmerge

PACKAGE = Path(fedmerge.__file__).parent


def run(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE.parent)}
    return subprocess.run(
        [sys.executable, "-c", code], check=True, env=environment, capture_output=True, text=True
    ).stdout.strip()


def test_names_are_sorted_and_there():
    assert fedmerge.__all__ == sorted(fedmerge.__all__)
    assert set(fedmerge.__all__) <= set(dir(fedmerge))


@pytest.mark.parametrize("name", sorted(set(fedmerge.__all__) - {"MergeStrategy"}))
def test_every_name_resolves(name):
    assert getattr(fedmerge, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'merg'"):
        _ = fedmerge.merg


def test_importing_loads_nothing_heavy():
    heavy = ["torch", "flwr", "transformers", "peft", "numpy"]
    assert (
        run(f"import sys, fedmerge; fedmerge.RuleError; print([m for m in {heavy} if m in sys.modules])")
        == "[]"
    )


def test_merging_loads_neither_flower_nor_transformers():
    heavy = ["flwr", "transformers", "peft", "datasets", "huggingface_hub"]
    code = (
        "import sys, fedmerge, torch; fedmerge.merge([{'x': torch.ones(1)}], rule='ties(density=1.0)');"
        "fedmerge.load_adapter; fedmerge.geometry.compare; fedmerge.rules.ties;"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    assert run(code) == "[]"


def test_merge_is_a_function_whatever_was_imported_before():
    assert run("import fedmerge.adapters.merge, fedmerge; print(callable(fedmerge.merge))") == "True"
