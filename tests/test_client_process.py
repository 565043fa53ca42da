"""What a site starts in the place of `flwr-clientapp`; the contract test for the names that it replaces."""

from __future__ import annotations

import inspect
import io
import zipfile
from collections.abc import Iterator

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp.client_app import LoadClientAppError
from flwr.supernode.runtime import run_clientapp as flower

from fedmerge import client_app, client_process
from fedmerge.engine.identity import server_identity, stamp
from fedmerge.wire.sender import read_sender

REPLACED = ("install_from_fab", "install_app_dependencies", "get_load_client_app_fn")


@pytest.fixture(autouse=True)
def guarded() -> Iterator[None]:
    before = {name: getattr(flower, name) for name in REPLACED}
    client_process.guard()
    yield
    vars(flower).update(before)


def bundle(*names: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in ("pyproject.toml", "LICENSE", "README.md", ".info/CONTENT", *names):
            archive.writestr(name, "print('it runs')")
    return content.getvalue()


def test_flower_calls_the_names_that_are_replaced() -> None:
    source = inspect.getsource(flower.run_clientapp)
    for name in REPLACED:
        assert f" {name}(" in source
    # An error of ours is told to the server without its text.
    assert "isinstance(ex, LoadClientAppError)" in source


def test_configuration_passes() -> None:
    flower.install_from_fab(bundle("strategies/ties.toml", "data/notes.jsonl"), skip_prompt=True)


@pytest.mark.parametrize(
    "name", ["fedmerge/client_app.py", "torch.so", "sitecustomize.pyc", "run.sh", "a.pth"]
)
def test_fault_45_a_bundle_with_code_is_refused(name: str) -> None:
    with pytest.raises(LoadClientAppError, match="expected configuration alone"):
        flower.install_from_fab(bundle(name), skip_prompt=True)


def test_what_is_no_bundle_is_refused() -> None:
    with pytest.raises(LoadClientAppError, match="no zip file"):
        flower.install_from_fab(b"code", skip_prompt=True)


def test_the_client_app_is_the_installed_one_whatever_a_bundle_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_app._Standing, "sites_only", False)
    load = flower.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
    assert load("someone/else", "1.0", "hash") is client_app.app


def test_a_node_without_a_site_serves_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_app._Standing, "sites_only", False)
    flower.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)("a", "1.0", "hash")
    with server_identity(run_id=1):
        message = Message(RecordDict(), dst_node_id=2, message_type="query")
    stamp(message, "1")
    context = Context(1, 2, {}, RecordDict(), {"data.source": "/etc/patients.jsonl"})
    sender = read_sender(client_app.app(message, context).content)
    assert (sender.failure, sender.code, sender.sentence) == ("ConfigError", "site/file", "")


def test_nothing_is_installed_for_a_bundle() -> None:
    with pytest.raises(LoadClientAppError):
        flower.install_app_dependencies("folder", launch_id="1")
