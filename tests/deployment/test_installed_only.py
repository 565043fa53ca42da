"""A bundle brings configuration; one that brings code, or names other apps, is not unpacked."""

from __future__ import annotations

import importlib
import inspect
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from fedmerge.deployment import installed_only
from fedmerge.deployment.installed_only import check_bundle, guarded
from fedmerge.errors import ConfigError

PROJECT = Path(__file__).parent.parent.parent
OURS = """[tool.flwr.app.components]
serverapp = "fedmerge.server_app:app"
clientapp = "fedmerge.client_app:app"
"""


def bundle(files: Mapping[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_our_own_bundle_passes() -> None:
    from flwr.cli.build import build_fab_from_disk

    check_bundle(build_fab_from_disk(PROJECT))


@pytest.mark.fault(45)
@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"app.py": "import os"}, "'app.py'"),
        ({"strategies/app.PY": ""}, "'strategies/app.PY'"),
        ({"torch.so": b"\x7fELF"}, "'torch.so'"),
        ({"fedmerge/__pycache__/x.pyc": b""}, "x.pyc"),
        ({"a.pth": "import os"}, "'a.pth'"),
        ({"pyproject.toml": OURS.replace("fedmerge.client_app", "evil")}, "names the apps"),
        ({"pyproject.toml": OURS.replace("clientapp", "agentapp")}, "names the apps"),
        ({"pyproject.toml": OURS + 'agentapp = "evil:app"\n'}, "names the apps"),
        ({"pyproject.toml": "[tool]\n"}, "names the apps"),
        ({"pyproject.toml": "tool = 3\n"}, "names the apps"),
        ({"pyproject.toml": "no TOML"}, "can't be read"),
        ({"large.toml": b"\0" * (2 << 20)}, "bytes"),
        ({f"{number}.toml": "" for number in range(2000)}, "1000 files"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_refused(files: dict[str, str | bytes], said: str) -> None:
    with pytest.raises(ConfigError, match="bundle") as refusal:
        check_bundle(bundle({"pyproject.toml": OURS} | files))
    assert said in str(refusal.value)


@pytest.mark.fault(45)
@pytest.mark.parametrize(
    "content", [b"", b"PK", bundle({"README.md": ""}), bundle({"pyproject.toml": OURS})[:-9]]
)
def test_what_is_no_bundle(content: bytes) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        check_bundle(content)


@pytest.mark.fault(45)
def test_a_refused_bundle_is_never_unpacked() -> None:
    unpacked = []
    install = guarded(lambda content, **_: unpacked.append(content))
    with pytest.raises(ConfigError, match="the bundle brings"):
        install(bundle({"pyproject.toml": OURS, "app.py": ""}), skip_prompt=True)
    assert unpacked == []
    install(bundle({"pyproject.toml": OURS}), skip_prompt=True)
    assert len(unpacked) == 1


def test_the_names_of_flowers_that_this_leans_on() -> None:
    source = inspect.getsource(importlib.import_module(installed_only._RUN))
    assert source.count("install_from_fab(fab.content, skip_prompt=True)") == 1
    assert callable(importlib.import_module(installed_only._COMMAND).flwr_serverapp)


def test_flower_finds_these_commands_on_the_path() -> None:
    from flwr.supercore.constant import TASK_TYPE_TO_COMMAND

    ours = {*installed_only.COMMANDS, *installed_only.REFUSED_COMMANDS}
    assert set(TASK_TYPE_TO_COMMAND.values()) == ours


@pytest.mark.parametrize("arguments", [[], ["flwr-agentapp", "--token", "x"], ["sh", "-c", "true"]])
def test_other_commands_are_not_run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert installed_only.main(arguments) == 2
    assert "is not run here" in capsys.readouterr().err
