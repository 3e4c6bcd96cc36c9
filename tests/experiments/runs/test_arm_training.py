"""How an arm is trained follows from its run. Its training itself: experiments/training/test_processes.py."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.common.errors import ModelError
from experiments.config import parse_config
from experiments.methods.saving import facts_of
from experiments.runs.arm_training import ArmTraining, reason
from tests.helpers.tiny_llama import tiny

ARMS = [{"name": "full", "method": "full", "learning_rates": [1e-3]}]
TASKS = {"suites": {"lm_eval": {"kept": ["arc_easy"]}}}


@pytest.mark.parametrize(
    ("evaluation", "training", "save_every"),
    [
        ({}, {}, None),  # at each evaluation
        (TASKS, {}, 6),
        (TASKS, {"steps": 61}, 7),
        (TASKS, {"steps": 3}, 1),
        (TASKS, {"save_every": 20}, 20),
        ({**TASKS, "every": 30}, {}, None),
        ({"every": None}, {}, 6),
    ],
)
def test_a_run_that_is_measured_at_its_end_alone_has_checkpoints(
    evaluation: dict[str, Any], training: dict[str, Any], save_every: int | None
) -> None:
    """Else a kill would cost the whole arm."""
    config = parse_config({"name": "x", "evaluation": evaluation, "training": training, "arms": ARMS})
    prepared: Any = SimpleNamespace(
        config=config, folder=Path("x"), precision=None, data=SimpleNamespace(old_batches=None)
    )
    assert ArmTraining(prepared, config.arms[0], 1e-3).training.save_every == save_every


@pytest.mark.parametrize("change", ["weights", "config"])
def test_a_base_that_somebody_replaced_while_the_run_went_on_is_no_base_of_an_arm(change: str) -> None:
    """Each arm loads the base anew: of another one it would be compared with the records of the first."""
    config = parse_config({"name": "x", "arms": ARMS})
    base = tiny()
    prepared: Any = SimpleNamespace(
        config=config, folder=Path("x"), precision=None, data=SimpleNamespace(old_batches=None), facts=facts_of(base)
    )
    arm = ArmTraining(prepared, config.arms[0], 1e-3)
    assert arm._facts(tiny()) == prepared.facts
    if change == "weights":
        base.model.layers[1].mlp.up_proj.weight.data.mul_(1.5)
    else:
        base.config.rms_norm_eps = 0.1
    with pytest.raises(ModelError, match=r"is another one than when this run measured it: .* goes on"):
        arm._facts(base)


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ("", r"out of GPU memory: set training\.micro_batch lower"),
        (
            "Process 7 has 17179869184.00 GiB memory in use. ",
            r"out of GPU memory: set",
        ),  # what torch says in a container
        (
            "Process 7 has 60.25 GiB memory in use. Process 8 has 512.00 MiB memory in use. ",
            r"out of GPU memory: other processes hold 60\.25 GiB and 512\.00 MiB: end them, or set training",
        ),
    ],
)
def test_memory_that_other_processes_hold_is_said(others: str, said: str) -> None:
    """A smaller batch is no remedy for a notebook that still has a model on the GPU."""
    text = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.15 GiB of which 1.05 GiB is "
        f"free. {others}Including non-PyTorch memory, this process has 12.06 GiB memory in use. Of the allocated"
    )
    assert re.match(said, reason(torch.OutOfMemoryError(text)))
