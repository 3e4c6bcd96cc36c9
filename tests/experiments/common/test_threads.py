"""Threads wait asleep where the user has chosen nothing, and the command line sets it before torch reads it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from experiments.common.threads import OWN, WAITING, wait_asleep


def test_nothing_chosen() -> None:
    environment = {"PATH": "/bin", "OMP_NUM_THREADS": "2"}
    wait_asleep(environment)
    assert environment == {"PATH": "/bin", "OMP_NUM_THREADS": "2", **WAITING}


@pytest.mark.parametrize("name", OWN)
def test_a_users_choice_stays(name: str) -> None:
    environment = {name: "ACTIVE"}
    wait_asleep(environment)
    assert environment == {name: "ACTIVE"}


SCRIPT = """
import os, sys
from experiments.cli import main
assert "torch" not in sys.modules, "the commands import torch, after the settings"
main.main(["list", "configs"])
print(*(os.environ.get(name) for name in {names!r}))
"""


@pytest.mark.parametrize("own", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_the_command_line_sets_it_before_torch_is_imported(own: dict[str, str]) -> None:
    inherited = {name: value for name, value in os.environ.items() if name not in OWN}
    script = SCRIPT.format(names=tuple(WAITING))
    made = subprocess.run(
        [sys.executable, "-c", script], env=inherited | own, check=True, capture_output=True, text=True
    )
    assert made.stdout.splitlines()[-1].split() == (["None"] * len(WAITING) if own else list(WAITING.values()))
