"""Find the code of a reply: its blocks of Markdown that are marked as Python."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator

FENCE = "```"
TILDES = re.compile(r"^[ \t]*~{3,}", re.MULTILINE)  # the other fence of Markdown
MARK = re.compile(r"[ \t]*([\w+-]*)")  # of a block of code: its language


def code_of(reply: str) -> str:
    """Return the code of a reply: its blocks marked as Python, or those without a mark, or all of it.

    Sessions (>>> f(1)) are no code, if there are other blocks. Of a program, a fence is in one of its texts.
    """
    if _is_program(reply):
        return reply
    blocks = list(_blocks(reply if FENCE in reply else TILDES.sub(FENCE, reply)))
    marked = [code for mark, code in blocks if mark.lower() in ("python", "py", "python3")]
    chosen = marked or [code for mark, code in blocks if not mark]
    chosen = [code for code in chosen if not code.lstrip().startswith(">>>")] or chosen
    return "\n\n".join(textwrap.dedent(code) for code in chosen) if chosen else reply


def _blocks(reply: str) -> Iterator[tuple[str, str]]:
    """Yield the mark and the code of each block. One that is cut off goes to the end of the reply."""
    at = 0
    while (start := reply.find(FENCE, at)) >= 0 and (line := reply.find("\n", start)) >= 0:
        end = _end(reply, line + 1)
        at = end + len(FENCE)
        mark = MARK.match(reply, start + len(FENCE), line)
        yield mark[1] if mark else "", reply[line + 1 : end]


def _end(reply: str, start: int) -> int:
    """Return where a block ends: at the first fence, or at the first before which it is a program.

    A fence may be in a text of the program: an example of Markdown in a docstring.
    """
    ends = [match.start() for match in re.finditer(FENCE, reply[start:])]
    whole = (end for end in ends if _is_program(textwrap.dedent(reply[start : start + end])))
    return start + next(whole, ends[0]) if ends else len(reply)


def _is_program(text: str) -> bool:
    try:
        ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
