"""Find the code of a reply: its blocks of Markdown that are marked as Python."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

FENCE = "```"
TILDES = re.compile(r"^[ \t]*~{3,}", re.MULTILINE)  # the other fence of Markdown
MARK = re.compile(r"[ \t]*([\w+-]*)")  # of a block of code: its language


def code_of(reply: str) -> str:
    """Return the code of a reply: its blocks marked as Python, or those without a mark, or all of it.

    Sessions (>>> f(1)) are no code, if there are other blocks.
    """
    blocks = list(_blocks(reply if FENCE in reply else TILDES.sub(FENCE, reply)))
    marked = [code for mark, code in blocks if mark.lower() in ("python", "py", "python3")]
    chosen = marked or [code for mark, code in blocks if not mark]
    chosen = [code for code in chosen if not code.lstrip().startswith(">>>")] or chosen
    return "\n\n".join(textwrap.dedent(code) for code in chosen) if chosen else reply


def _blocks(reply: str) -> Iterator[tuple[str, str]]:
    """Yield the mark and the code of each block. One that is cut off goes to the end of the reply."""
    at = 0
    while (start := reply.find(FENCE, at)) >= 0 and (line := reply.find("\n", start)) >= 0:
        end = reply.find(FENCE, line)
        at = end + len(FENCE) if end >= 0 else len(reply)
        mark = MARK.match(reply, start + len(FENCE), line)
        yield mark[1] if mark else "", reply[line + 1 : end if end >= 0 else None]
