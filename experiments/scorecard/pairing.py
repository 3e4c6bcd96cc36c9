"""Pair each record of a tuned model with the base's record of the same item."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from experiments.records import Record

Pair = tuple[Record, Record]  # the same question and form, before and after training
Key = tuple[str, str, str, str]  # suite, task, form, item
ALONE = ("drift", "alignment")  # suites of distances to the base: their records need no partner


def pair_records(base: Iterable[Record], after: Iterable[Record]) -> list[Pair]:
    """Pair records of the same key, sorted by it. Records of suites `drift` and `alignment` may lack a partner.

    Raises ValueError naming a record that occurs twice, lacks its partner, covers other tokens, was asked in other
    words, or has other options or another right answer.
    """
    first, second = by_key(base, "base"), by_key(after, "after")
    for have, lack, side in ((first, second, "after"), (second, first, "base")):
        missing = sorted(key for key in have.keys() - lack.keys() if key[0] not in ALONE)
        if missing:
            raise ValueError(
                f"no partner among the {side} records for {'/'.join(missing[0])} ({len(missing)} missing in all): "
                "evaluate both on the same items, with the same evaluation section and seed"
            )
    pairs = [(first[key], second[key]) for key in sorted(first.keys() & second.keys())]
    for r0, r in pairs:
        if r.form == "nll" and r0.tokens != r.tokens:
            raise ValueError(
                f"{'/'.join(r.key)} covers {r0.tokens} tokens in base and {r.tokens} in after: use one tokenizer"
            )
        if r0.prompt and r.prompt and r0.prompt != r.prompt:
            raise ValueError(
                f"{'/'.join(r.key)} was asked in other words in base and after (other examples in the prompt?): "
                "measure both in the same way"
            )
        if any(None not in (one, other) and one != other for one, other in zip(facts(r0), facts(r), strict=True)):
            raise ValueError(
                f"{'/'.join(r.key)} has other options or another right answer in base and after: evaluate both on the "
                "same questions"
            )
    return pairs


def facts(record: Record) -> tuple[list[str] | None, Any]:
    """Return the options, in any order, and the right answer's text; None for what is not known."""
    options, answer = record.options, record.answer
    return sorted(options) if options else None, options[answer] if options and isinstance(answer, int) else answer


def by_key(records: Iterable[Record], side: str) -> dict[Key, Record]:
    """Index records by key. side: their name in the error. Raises ValueError if two records have one key."""
    found: dict[Key, Record] = {}
    for record in records:
        if record.key in found:
            raise ValueError(f"{'/'.join(record.key)} occurs twice among the {side} records: evaluate once per item")
        found[record.key] = record
    return found


def require(record: Record, name: str) -> Any:
    """Return a field of the record. Raises ValueError if it is None."""
    value = getattr(record, name)
    if value is None:
        raise ValueError(f"{'/'.join(record.key)} has no {name!r}, which suite {record.suite!r} needs: evaluate again")
    return value


def chosen(record: Record) -> str | None:
    """Return the text of the chosen option: it can be compared under another order of the options."""
    if record.choice is None or not record.options:
        return None
    return record.options[record.choice]
