"""Files are replaced as a whole; JSON lines keep every character of a string."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from experiments.common import files
from experiments.common.errors import ConfigError, DamagedError
from experiments.common.files import (
    UMASK,
    json_lines,
    link_files,
    read_json,
    read_note,
    read_text,
    remove,
    sweep,
    whole_folder,
    write_bytes,
    write_json,
    write_text,
)


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new folder" / "note.txt"
    write_text(path, "old")
    assert path.stat().st_mode & 0o777 == 0o666 & ~UMASK

    def fails(*args: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError, match="no space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]  # no temporary file


def test_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    data = bytes(range(256)) + b"\r\n"
    write_bytes(tmp_path / "picture.png", data)
    assert (tmp_path / "picture.png").read_bytes() == data


def test_what_is_left_behind_is_written_as_a_whole() -> None:
    """No module of `experiments` opens a file to write it, except those that append, or write and then rename."""
    writes = re.compile(r"\.write_text\(|\.write_bytes\(|\.savefig\(|\.to_(?:csv|parquet|json)\([^)i]|open\([^)]*\"w")
    root = Path(__file__).parents[3]
    found = {file: writes.findall(file.read_text()) for file in (root / "experiments").rglob("*.py")}
    assert {f.relative_to(root).as_posix() for f, lines in found.items() if lines} == {
        "experiments/common/files.py",
        "experiments/cli/servers.py",  # a pipe
        "experiments/desk/explore.py",  # into memory
        "experiments/reporting/page.py",  # into memory
        "experiments/posthoc/export.py",  # into a folder that is renamed
        "experiments/soften/path.py",  # into a folder that is renamed
        "experiments/soften/report.py",  # next to these weights
        "experiments/studies/archive.py",  # into a folder that is renamed
        "experiments/studies/exchange.py",  # renamed
    }


def test_json(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") == {}
    write_json(tmp_path / "a.json", {"é": [1, None]})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "é": [\n    1,\n    null\n  ]\n}\n'
    assert read_json(tmp_path / "a.json") == {"é": [1, None]}


def test_lines_end_at_newlines_alone() -> None:
    assert list(json_lines('{"a": "x\u2028y"}\n\n  \n{"b": 1}')) == [(1, '{"a": "x\u2028y"}'), (4, '{"b": 1}')]


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", bytes(9), b"\xff\xfe", b'{"a": 1'])
def test_a_damaged_note_is_named_with_the_next_step(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "note.json"
    file.write_bytes(data)
    with pytest.raises(DamagedError, match=r"note\.json is damaged \(.*\): bring it back, or delete it"):
        read_json(file)
    with pytest.raises(DamagedError, match=r": ask a friend$"):
        read_json(file, "ask a friend")
    assert read_note(file) == read_note(tmp_path / "none.json") == {}


def test_temporary_files_of_dead_processes_are_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with subprocess.Popen(["true"]) as ended:
        pass
    monkeypatch.setattr(os, "replace", killed)
    monkeypatch.setattr(os, "unlink", killed)  # as kill -9: nothing is cleaned up
    for pid, name, space in (
        (ended.pid, "dead", "pid:[1]"),
        (os.getpid(), "living", "pid:[1]"),
        (ended.pid, "unknown", "pid:[2]"),  # of a container of this name
    ):
        monkeypatch.setattr(os, "getpid", lambda pid=pid: pid)
        monkeypatch.setattr(files, "pid_namespace", lambda space=space: space)
        with pytest.raises(KeyboardInterrupt):
            write_text(tmp_path / "deep" / name, "half")
    monkeypatch.undo()
    monkeypatch.setattr(files, "pid_namespace", lambda: "pid:[1]")
    (tmp_path / ".own.part").touch()
    sweep(tmp_path)
    left = sorted(path.name.split("-")[0].split(".")[1] for path in tmp_path.rglob(".*"))
    assert left == ["living", "own", "unknown"]


def test_a_private_file_is_its_owners(tmp_path: Path) -> None:
    for _ in range(2):
        write_text(tmp_path / "a", "x", private=True)
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    """With the rights of root, /dev/null would become a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "one\n")
        assert os.read(reader, 100) == b"one\n"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    with pytest.raises(IsADirectoryError, match=re.escape(str(tmp_path))):
        write_text(tmp_path, "one")


def test_two_that_write_one_folder_do_not_mix(tmp_path: Path) -> None:
    to = tmp_path / "out"
    dead, other = (tmp_path / f".out{files._suffix(pid)}" for pid in (4194304, 1))  # none, and a living one
    away = tmp_path / ".out-elsewhere-4194304.part"  # of another machine, whose processes nobody knows here
    for left in (dead, other, away):
        left.mkdir()
    with whole_folder(to) as part:
        (part / "mine").touch()
        assert (part.parent, part.name != other.name, dead.exists(), other.exists()) == (tmp_path, True, False, True)
    assert [path.name for path in to.iterdir()] == ["mine"]
    with pytest.raises(ConfigError, match=r"^--out .*out appeared meanwhile"), whole_folder(to, "--out") as part:
        (part / "second").touch()
    assert sorted(path.name for path in tmp_path.rglob("*")) == sorted([away.name, other.name, "mine", "out"])
    dead.mkdir()
    sweep(tmp_path)
    assert not dead.exists()


def test_a_folder_is_deleted_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "arms" / "one"
    folder.mkdir(parents=True)
    for name in "ab":
        (folder / name).touch()

    monkeypatch.setattr(shutil, "rmtree", lambda path, **more: None)  # killed before the first file was deleted
    remove(folder, tmp_path / "removed")
    assert not folder.exists()
    monkeypatch.undo()
    (gone,) = tmp_path.glob(".removed-*.part")
    assert sorted(path.name for path in (gone / "one").iterdir()) == ["a", "b"]  # as a kill leaves it
    folder.mkdir()
    remove(folder, tmp_path / "removed")
    assert [path.name for path in tmp_path.iterdir()] == ["arms"]


@pytest.mark.parametrize("fault", ["another disk", "no right"])
def test_a_folder_that_cannot_be_moved_is_deleted_or_named(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object, **more: object) -> None:
        raise OSError(fault)

    (tmp_path / "one").mkdir()
    monkeypatch.setattr(os, "replace", refused)
    if fault == "another disk":
        remove(tmp_path / "one", tmp_path / "removed")
        assert not list(tmp_path.iterdir())
        return
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None if ignore_errors else refused())
    with pytest.raises(OSError, match="no right"):
        remove(tmp_path / "one", tmp_path / "removed")


def test_an_empty_folder_is_filled_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(FileNotFoundError, match="none"), whole_folder(tmp_path / "out") as part:
        (part / "none").rename(part / "half")
    assert list(tmp_path.rglob("*")) == [tmp_path / "out"]
    with whole_folder(tmp_path / "out") as part:
        (part / "file").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "file"]


def test_a_folder_gets_second_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "a" / "b" / "c", "first")
    write_text(tmp_path / "to" / "b" / "c", "old")
    for _ in range(2):  # again: the names are there
        assert link_files(tmp_path / "a", tmp_path / "to")
        assert [path.name for path in (tmp_path / "to" / "b").iterdir()] == ["c"]
    assert (tmp_path / "to" / "b" / "c").samefile(tmp_path / "a" / "b" / "c")
    assert not link_files(tmp_path / "a", None)
    (tmp_path / "a" / "z").symlink_to(tmp_path / "a" / "b" / "c")
    assert not link_files(tmp_path / "a", tmp_path / "other")  # the store would have a link that leads elsewhere
    (tmp_path / "a" / "z").unlink()

    def refused(*args: object) -> None:
        raise OSError("Operation not permitted")

    monkeypatch.setattr("os.link", refused)
    assert not link_files(tmp_path / "a", tmp_path / "none")
    assert [path for path in (tmp_path / "none").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_text_with_nuls_is_no_utf_8(encoding: str, tmp_path: Path) -> None:
    """Without a byte order mark it was read as UTF-8, with a NUL next to each letter."""
    file = tmp_path / "a.txt"
    file.write_bytes("one\r\ntwo".encode(encoding))
    with pytest.raises(UnicodeDecodeError, match="a NUL, as in UTF-16: save it as UTF-8"):
        read_text(file)
    for plain in ("utf-8", "utf-8-sig"):
        file.write_bytes("\u00e9\r\ntwo".encode(plain))
        assert read_text(file) == "\u00e9\ntwo"
