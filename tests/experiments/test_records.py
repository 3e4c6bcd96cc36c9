"""Records come back from their file with any text in them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import DamagedError
from experiments.records import Record, read_records, write_records


def test_records_hold_any_text(tmp_path: Path) -> None:
    records = [
        Record("new", "gcd", "generate", str(i), correct=1, reply="a\u2028b\u2029c\u0085d\n\re") for i in range(2)
    ]
    write_records(tmp_path / "items.jsonl", records)
    assert read_records(tmp_path / "items.jsonl") == records


WHOLE = Record("kept", "capitals", "chat", "a", 1, 0.5, 3, 1, 2, ("x", "y"), (-1, -0.5), "r", True, "0")


@pytest.mark.parametrize(
    ("name", "value"),
    [("suite", None), ("task", 1), ("item", 3), ("form", ["chat"]), ("correct", 2), ("correct", -1), ("correct", 0.5),
     ("correct", "1"), ("value", "0.5"), ("value", [1]), ("tokens", 1.5), ("choice", 2), ("choice", -1),
     ("choice", 1.0), ("options", ()), ("options", (1, 2)), ("scores", ("a", "b")), ("parsed", "no"), ("reply", 5)],
)  # fmt: skip
def test_a_value_that_no_record_has_is_refused(name: str, value: Any, tmp_path: Path) -> None:
    """A record gives a figure, or an error that names its file and line."""
    file = tmp_path / "items.jsonl"
    write_records(file, [WHOLE, Record("drift", "replies", "kl", "b", value=float("nan"), tokens=0)])
    assert read_records(file)[0] == WHOLE
    write_records(file, [WHOLE, dataclasses.replace(WHOLE, **{name: value})])
    with pytest.raises(DamagedError, match=r"items\.jsonl, line 2 is not an item record \(.*\); delete"):
        read_records(file)
