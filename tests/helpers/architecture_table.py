"""Read and write the committed verdicts on all architectures: `python -m tests.helpers.architecture_table [NAME ...]`.

Without names all are run again, which takes two minutes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.helpers.architecture_contract import verdicts
from tests.helpers.architectures import ARCHITECTURES

TABLE = Path(__file__).parents[1] / "ctrl" / "whole" / "architectures.json"


def read() -> dict[str, Any]:
    """The version of transformers that was run, and name -> structure -> verdict."""
    found: dict[str, Any] = json.loads(TABLE.read_text())
    return found


def write(found: dict[str, dict[str, str]]) -> None:
    """One line per architecture, so that a difference is easy to read."""
    rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found))
    version = json.dumps(transformers.__version__)
    TABLE.write_text(f'{{\n  "transformers": {version},\n  "architectures": {{\n{rows}\n  }}\n}}\n')


def main() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    kept = read()["architectures"] if sys.argv[1:] else {}
    found = {name: kept.get(name) for name in ARCHITECTURES} | {n: verdicts(n) for n in sys.argv[1:] or ARCHITECTURES}
    write({name: found[name] or verdicts(name) for name in ARCHITECTURES})


if __name__ == "__main__":
    main()
