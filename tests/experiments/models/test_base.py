"""The base model: the shipped file."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.common.errors import ModelError
from experiments.models.base import _gguf_file as gguf_file


def test_a_damaged_model_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.models.base.GGUF_SHA256", "0" * 64)
    with pytest.raises(ModelError, match=r"has SHA-256 b179c952.*expected 0000"):
        gguf_file()
    monkeypatch.setattr("experiments.models.base.WHEEL", "no-such-wheel")
    with pytest.raises(ModelError, match=r"not installed: run `make setup`"):
        gguf_file()
