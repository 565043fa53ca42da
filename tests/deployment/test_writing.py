import os
import stat

import pytest

from fedmerge.deployment import writing
from fedmerge.deployment.writing import SECRET, File, replace_files, write_folder
from fedmerge.errors import ConfigError


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_folder_is_there_whole_with_modes_that_no_umask_changes(tmp_path):
    before = os.umask(0)
    try:
        write_folder(tmp_path / "out", {"a/key": File(b"k", SECRET), "b": File(b"text")})
    finally:
        os.umask(before)
    assert contents(tmp_path / "out") == {"a/key": b"k", "b": b"text"}
    assert stat.S_IMODE((tmp_path / "out" / "a" / "key").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


@pytest.mark.parametrize("kind", ["folder", "file", "dangling link"])
def test_what_is_there_already_stays(tmp_path, kind):
    out = tmp_path / "out"
    {"folder": out.mkdir, "file": out.touch, "dangling link": lambda: out.symlink_to("nowhere")}[kind]()
    with pytest.raises(ConfigError, match="something already"):
        write_folder(out, {"a": File(b"")})
    assert [child.name for child in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_can_not_be_finished_leaves_nothing(tmp_path, monkeypatch):
    def full(path, file):
        if path.name == "c":
            raise OSError(28, "No space left on device")
        create(path, file)

    create = writing._create
    monkeypatch.setattr(writing, "_create", full)
    with pytest.raises(ConfigError, match="No space left on device; nothing was left"):
        write_folder(tmp_path / "out", {name: File(b"") for name in "abcd"})
    assert not list(tmp_path.iterdir())


def test_files_are_replaced_together_or_not_at_all(tmp_path, monkeypatch):
    write_folder(tmp_path / "out", {"a": File(b"1"), "b": File(b"1"), "c": File(b"1")})
    replace_files(tmp_path / "out", {"a": File(b"2"), "new/d": File(b"2")}, gone=["c", "never-there"])
    assert contents(tmp_path / "out") == {"a": b"2", "b": b"1", "new/d": b"2"}

    def full(path, file):
        if ".b." in path.name:
            raise OSError(28, "No space left on device", str(path))
        create(path, file)

    create = writing._create
    monkeypatch.setattr(writing, "_create", full)
    with pytest.raises(ConfigError, match="No space left"):
        replace_files(tmp_path / "out", {"a": File(b"3"), "b": File(b"3")}, gone=["a"])
    assert contents(tmp_path / "out") == {"a": b"2", "b": b"1", "new/d": b"2"}
