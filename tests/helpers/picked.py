"""A picker of arms for an experiment that has one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.config import parse_config
from experiments.desk.picker import Picker
from tests.helpers.small_run import SUMS

ARM: dict[str, Any] = {"name": "full", "method": "full", "learning_rates": [1e-4]}


def picker(root: Path, own_arms: bool = True) -> Picker:
    return Picker(parse_config({"name": "picked", "data": SUMS, "arms": [ARM]}), root, own_arms)
