"""Tables of the architectures that can be expanded, from the verdicts that the tests have committed."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

FILE = Path(__file__).parents[1] / "tests" / "ctrl" / "whole" / "architectures.json"
KINDS = {
    "concat": '`structure="concat"`, interpolation `lerp`, divergence `mse`',
    "dlerp": '`structure="concat"`, interpolation `dlerp`, divergence `cosine`',
    "stack": '`structure="stack"`',
}
MERGE = "; merge_back refused: "


def architectures() -> str:
    """How many architectures have which verdict, and their names by reason."""
    table = json.loads(FILE.read_text(encoding="utf-8"))
    found: dict[str, dict[str, str]] = table["architectures"]
    parts = [f"transformers {table['transformers']}: {len(found)} architectures.", _counts(found.values())]
    right = [name for name, kinds in found.items() if all(map(_is_right, kinds.values()))]
    parts += [f"## Right in all three: {len(right)}", _names(right)]
    for kind in ("concat", "stack"):
        refused = _by_reason(found, kind, "refused: ")
        parts += [f"## Refused with {kind}: {sum(map(len, refused.values()))}", _reasons(refused)]
    merges = _by_reason(found, "stack", "right" + MERGE)
    parts += [f"## merge_back of a stack refused: {sum(map(len, merges.values()))}", _reasons(merges)]
    idle = _by_reason(found, "concat", "not run: ")
    return "\n\n".join([*parts, f"## Not run: {sum(map(len, idle.values()))}", _reasons(idle)])


def _is_right(verdict: str) -> bool:
    return verdict.startswith("right")


def _counts(found: Iterable[dict[str, str]]) -> str:
    rows = ["| expansion | right | refused | not run |", "|---|---|---|---|"]
    rows_of = list(found)
    for kind, text in KINDS.items():
        count = Counter(kinds[kind].split(":")[0].split(";")[0] for kinds in rows_of)
        rows.append(f"| {text} | {count['right']} | {count['refused']} | {count['not run']} |")
    return "\n".join(rows)


def _by_reason(found: dict[str, dict[str, str]], kind: str, prefix: str) -> dict[str, list[str]]:
    names = defaultdict(list)
    for name, kinds in found.items():
        if kinds[kind].startswith(prefix):
            names[kinds[kind].removeprefix(prefix)].append(name)
    return dict(sorted(names.items(), key=lambda item: -len(item[1])))


def _reasons(names: dict[str, list[str]]) -> str:
    return "\n".join(("| reason | architectures |", "|---|---|", *(f"| {r} | {_names(n)} |" for r, n in names.items())))


def _names(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
