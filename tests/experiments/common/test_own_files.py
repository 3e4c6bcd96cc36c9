"""A command replaces its own earlier files, and no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from experiments.common.own_files import BEGINNING, is_own


@pytest.mark.parametrize(
    ("text", "own"),
    [("kind,run\n", True), ("", True), ('""\n', True), ("mine\nkind,run", False), ("\xff", False)],
)
def test_a_file_with_the_mark_or_without_content_is_own(text: str, own: bool, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(text.encode("latin-1"))
    assert is_own(tmp_path / "x", r"\Akind,run") is own


def test_what_is_no_file_is_written_to_and_long_files_are_read_at_their_beginning(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert is_own(tmp_path / "pipe", "mark")
    assert is_own(tmp_path / "nothing", "mark")
    (tmp_path / "long").write_text("." * BEGINNING + "mark", encoding="utf-8")
    assert not is_own(tmp_path / "long", "mark")
