"""An archive that somebody else made: bombs, names outside of the runs, links and foreign files are refused."""

from __future__ import annotations

import io
import lzma
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import DamagedError
from experiments.studies import archive
from experiments.studies.archive import FILE, TRIALS, open_archive, run_of

NAME = "runs/r/base/items.jsonl"


def made(folder: Path, *members: tarfile.TarInfo | str, form: int = tarfile.PAX_FORMAT) -> Path:
    """Write an archive of empty trials and members, each of zeros."""
    with tarfile.open(folder / FILE, "w:xz", format=form) as tar:
        for member in (TRIALS, *members):
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            tar.addfile(info, io.BytesIO(bytes(info.size)))
    return folder


def member(name: str = NAME, **changes: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for field, value in changes.items():
        setattr(info, field, value)
    return info


def refused(folder: Path, fault: str) -> None:
    said = rf"trials\.tar\.xz cannot be read: {fault}.*leave out --from"
    with pytest.raises(DamagedError, match=said), open_archive(folder):
        pass


OUTSIDE = (
    "../out",
    "/etc/out",
    "runs/../../out",
    "runs/../base/items.jsonl",
    "./runs/r/config.yaml",
    "runs//config.yaml",
)
FOREIGN = (
    *(
        "studies/x/out",
        "runs/out",
        "runs/r/journal-1.jsonl",
        "runs/r/mlflow.json",
        "runs/r/base/journal.delivered.json",
    ),
    *("runs/r/arms/a/trained/model.safetensors", "runs/r/arms/a/checkpoints/checkpoint-2/optimizer.pt"),
    *("runs/r/arms/a/b/items-1.jsonl", "runs/r/config.yaml/items-1.jsonl", "trials.json/x", "trials/run.py"),
    f"runs/{'r' * 256}/config.yaml",
)


@pytest.mark.parametrize("name", OUTSIDE + FOREIGN)
def test_names_that_are_never_written_are_refused(name: str, tmp_path: Path) -> None:
    refused(made(tmp_path, name), "it was not written by `control-llm report`: it has ")
    assert not run_of(name)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(kind: bytes, tmp_path: Path) -> None:
    link = member(type=kind, linkname="/etc/passwd")
    refused(made(tmp_path, link), "it was not written by `control-llm report`: it has 'runs/r/base/items.jsonl'")


def test_a_name_with_control_characters_is_shown_escaped(tmp_path: Path) -> None:
    refused(made(tmp_path, "runs/\x1b[31m"), r".*it has 'runs/\\x1b\[31m'")


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    refused(made(tmp_path, NAME, NAME), "it has 'runs/r/base/items.jsonl' twice")


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file says 8 GB in its header; what follows would unpack to them."""
    raw = member(size=2**33).tobuf(tarfile.GNU_FORMAT) + bytes(2**20)
    (tmp_path / FILE).write_bytes(lzma.compress(member(TRIALS).tobuf() + raw))
    start = time.monotonic()
    refused(tmp_path, "it unpacks to more than 4 GB")
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_bounds_hold_while_it_is_read(form: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Members whose sum is too large, a header that would fill the memory, and too many members."""
    several = [f"runs/r/arms/a/items-{n}.jsonl" for n in range(20)]
    made(tmp_path, *(member(name, size=10**5) for name in several), form=form)
    with monkeypatch.context() as lower:
        lower.setattr(archive, "MOST", 10**6)
        refused(tmp_path, "it unpacks to more than 0 GB")
    with monkeypatch.context() as lower:
        lower.setattr(archive, "MEMBERS", 10)
        refused(tmp_path, "it has more than 10 members")
    made(tmp_path, f"runs/{'r' * 10**5}/config.yaml", form=form)
    monkeypatch.setattr(archive, "AT_ONCE", 10**4)
    refused(tmp_path, "it holds 0 MB in one piece")


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    """Its size after unpacking has no bound by the size of the stream."""
    raw = bytearray(member(size=0, type=tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    raw[483:495] = b"00000000777\0"  # the size that it says it has
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    (tmp_path / FILE).write_bytes(lzma.compress(member(TRIALS).tobuf() + bytes(raw) + bytes(1024)))
    refused(tmp_path, "it was not written by")


def test_a_member_of_negative_size_ends(tmp_path: Path) -> None:
    raw = bytearray(member().tobuf(tarfile.GNU_FORMAT))
    raw[124:136] = b"\xff" * 10 + b"\xfc\x00"  # -1024, so that the next header is the one before
    raw[148:156] = b" " * 8
    raw[148:156] = b"%06o\0 " % sum(raw[:512])
    (tmp_path / FILE).write_bytes(lzma.compress(member(TRIALS).tobuf() + bytes(raw) + bytes(1024)))
    refused(tmp_path, "")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    with open_archive(made(tmp_path, member(size=9), "runs/r/config.yaml", "runs/q/arms/a/result.json")) as found:
        assert found.runs == {"runs/q", "runs/r"}
        found.unpack(NAME, tmp_path)
    assert (tmp_path / NAME).read_bytes() == bytes(9)
