"""The code of a reply."""

from __future__ import annotations

import pytest

from experiments.data.code_blocks import code_of

DOCUMENTED = 'def f(x):\n    """Square.\n\n    ```\n    f(3)\n    ```\n    """\n    return x * x\n'


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ("x = 1", "x = 1"),
        ("Here:\n```python\nx = 1\n```\nIt prints:\n```\n1\n```", "x = 1\n"),
        ("```\nx = 1\n```\nand\n```\ny = 2\n```", "x = 1\n\n\ny = 2\n"),
        ("```py\n  x = 1\n", "x = 1\n"),  # cut off
        ("```bash\nls\n```", "```bash\nls\n```"),
        ("```python\nx = = 1\n```\nIt prints:\n```\n1\n```", "x = = 1\n"),  # no program, wherever it ends
        ("```python\nfence = '```'\n```\nIt prints:\n```\n1\n```", "fence = '```'\n"),
        (DOCUMENTED, DOCUMENTED),
        (f"Here:\n```python\n{DOCUMENTED}```\nIt prints:\n```\n9\n```", DOCUMENTED),
    ],
)
def test_code_of_a_reply(reply: str, code: str) -> None:
    assert code_of(reply) == code
