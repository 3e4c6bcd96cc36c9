"""Records come back from their file with any text in them."""

from __future__ import annotations

from pathlib import Path

from experiments.records import Record, read_records, write_records


def test_records_hold_any_text(tmp_path: Path) -> None:
    records = [
        Record("new", "gcd", "generate", str(i), correct=1, reply="a\u2028b\u2029c\u0085d\n\re") for i in range(2)
    ]
    write_records(tmp_path / "items.jsonl", records)
    assert read_records(tmp_path / "items.jsonl") == records
