"""Files of questions and answers of every kind that a source reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd

ROWS = [{"ask": f"q{i}", "reply": f"a{i}", "steps": f"s{i}"} for i in range(6)]
COLUMNS = {"question": "ask", "answer": "reply", "solution": "steps"}


def write(path: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
