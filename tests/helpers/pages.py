"""Read the documents of the project: their blocks of code."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(document: Path, language: str) -> list[str]:
    """Return the blocks of a language in a document."""
    return [text for kind, text in FENCE.findall(document.read_text()) if kind == language]
