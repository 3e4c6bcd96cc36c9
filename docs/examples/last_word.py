"""A grader of your own: the last word of the reply is the answer, or one of the synonyms in a column of the row."""

from __future__ import annotations

import re
from typing import Any


def last_word(reply: str, entry: dict[str, Any]) -> bool:
    """entry: question, answer, and metadata with the columns that the grader names."""
    known = {entry["answer"].lower(), *(word.lower() for word in entry["metadata"]["synonyms"])}
    words = re.findall(r"\w+", reply.lower())
    return bool(words) and words[-1] in known
