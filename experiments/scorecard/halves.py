"""Split items into a half that chooses and a half that is reported, so that no choice looks better than it is."""

from __future__ import annotations

from collections.abc import Iterable

from experiments.common.hashing import sha256
from experiments.records import Record


def even(record: Record) -> bool:
    """Return whether an item is in the half that chooses: the parity of a hash of its id.

    It is the same in all runs and forms, and on all machines.
    """
    return int(sha256(f"{record.suite}/{record.task}/{record.item}")[:2], 16) % 2 == 0


def of_half(records: Iterable[Record], choosing: bool | None) -> list[Record]:
    """Select the half that chooses (True), the reported half (False), or all records (None)."""
    return [record for record in records if choosing is None or even(record) == choosing]
