"""The YAML of a study of one control arm at two learning rates, as plain values."""

from __future__ import annotations

from typing import Any

ARM = [{"name": "arm", "method": "control", "learning_rates": [1e-3], "control": {"layers": 8}}]
RATE = "arms.0.learning_rates.0"


def values(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = {
        "name": "s",
        "base": "quickstart",
        "overrides": {"arms": ARM},
        "search": {RATE: {"kind": "choice", "values": [1e-3, 1e-4]}},
        "objectives": [{"figure": "gain", "direction": "maximize"}],
        "sampler": "grid",
    }
    return found | changes
