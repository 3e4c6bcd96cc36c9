"""Graders whose check may run long are checked in a process without rights (`isolated`), as `regex` is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, field_validator

from experiments.data.grader import Grader
from experiments.data.isolated import Isolated
from experiments.data.items import Scorer
from experiments.data.matching import exact_match
from experiments.data.rights import supported

ANSWER = "{answer}"  # in a pattern: the answer of the item


class InIsolation(Grader):
    """A grader that checks each reply in a process without rights, for a limited time."""

    limit: ClassVar[float] = 5.0  # seconds of the processor

    def scorer(self) -> Scorer:
        return Isolated(self, self.limit) if supported() else self


class Regex(InIsolation):
    """A regular expression is found in the reply. On Linux, a search of more than two seconds is ended as wrong.

    {answer} in it is the answer as it is. If the pattern has a group, the text of its last match must be the answer; of
    several, that of the first which is not empty. An answer in which it is found too is read so as well: the 72 of
    "48 + 24 = 72\\n#### 72".
    """

    main = "pattern"
    version = 2  # answers are read as replies are
    limit = 2.0
    pattern: str = Field(description="regular expression of Python, such as '#### (.+)' or 'is {answer}\\b'")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value.replace(ANSWER, "x"))
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from None
        pattern = re.compile(value.replace(ANSWER, "x"))
        if pattern.search("") and not pattern.groups and "(?" not in value:  # which may say what must not be there
            raise ValueError(f"{value!r} is found in an empty reply, so any reply would be right")
        return value

    def __call__(self, reply: str, entry: Mapping[str, Any]) -> float:
        pattern = re.compile(self.pattern.replace(ANSWER, re.escape(str(entry["answer"]))))
        if not pattern.groups:
            return float(pattern.search(reply) is not None)
        wanted = "" if ANSWER in self.pattern else _last_group(pattern, str(entry["answer"]))
        said = _last_group(pattern, reply)
        answers = [entry, {**entry, "answer": wanted}] if wanted else [entry]
        return max(exact_match(said, one) for one in answers) if pattern.search(reply) else 0.0


def _last_group(pattern: re.Pattern[str], text: str) -> str:
    """Return what the group of the last match holds, of several groups the first that is not empty."""
    found = [held for match in pattern.finditer(text) if (held := next(filter(None, match.groups()), ""))]
    return found[-1] if found else ""
