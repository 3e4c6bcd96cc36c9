"""Measure models in two processes: `measure_in_two_processes.py MODE FOLDER`. MODE: whole, or shards of FSDP 2.

FOLDER has the tiny base and tasks of lm_eval. Each process writes the records and how many passes it made.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import ctrl
from ctrl.layer import expanded_layers
from ctrl.structure import decoder_layers
from experiments.config import parse_config
from experiments.data.sources import ReasoningGym
from experiments.evaluation.cache import BaseCache
from experiments.evaluation.evaluate import Evaluation
from experiments.models.base import load_base
from experiments.models.precision import Precision
from experiments.records import write_records
from experiments.training.processes import MainProcessError, Processes
from tests.helpers.families import perturb
from tests.helpers.small_run import draw_suites, small_values

FP32 = Precision("fp32")
SUITES: dict[str, Any] = {
    "new": {},
    "kept": {"items": 4, "tasks": ["capitals"], "generated": True},
    "instructions": {"items": 4},
    "drift": {"replies": 10, "new_replies": 0, "reply_tokens": 3},
    "text": {"tokens": 2000},
    "alignment": {},
}


def prepared(folder: Path) -> tuple[Any, Evaluation]:
    """A trained model, expanded, and all suites prepared with its base."""
    values = small_values(str(folder / "base"))
    local = {"new": ["sums"], "kept": ["colours"], "include_path": str(folder / "tasks")}
    values["evaluation"] = {"suites": {**SUITES, "lm_eval": local}}
    base, tokenizer = load_base(str(folder / "base"))
    suites = draw_suites(parse_config(values), tokenizer, [ReasoningGym(name="chain_sum").held_out(5, 0)])
    evaluation = suites.prepare(base, FP32, BaseCache(folder, base, tokenizer, FP32))
    model = ctrl.expand(base, ctrl.ControlConfig(layers=2)).eval()
    perturb(model, seed=1, size=0.3)
    return model, evaluation


def counted(model: Any) -> list[int]:
    """A list that gets the rows of each pass of a model."""
    passes: list[int] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        passes.append(len(kwargs["input_ids"] if "input_ids" in kwargs else args[0]))

    model.register_forward_pre_hook(note, with_kwargs=True)
    return passes


def main(mode: str, folder: Path) -> None:
    dist.init_process_group("gloo")
    with Processes.joined() as processes:
        model, evaluation = prepared(folder)
        if mode == "shards":
            mesh = init_device_mesh("cpu", (2,))
            for part in (*decoder_layers(model), model):
                fully_shard(part, mesh=mesh)
        passes = counted(model)
        with processes.sharing(model, "evaluation"):
            records = evaluation.evaluate(model, FP32, progress=False)
        write_records(folder / f"{mode}-{processes.index}.jsonl", records)
        (folder / f"{mode}-{processes.index}.txt").write_text(str(len(passes)))
        if mode == "whole":
            _fails(processes, evaluation, model)
    dist.destroy_process_group()


def _fails(processes: Processes, evaluation: Evaluation, model: Any) -> None:
    """An error that one process meets ends the evaluation in both, and both go on together."""
    if not processes.is_main:
        expanded_layers(model)[0].register_forward_hook(lambda *args: 1 // 0)
    broken = pytest.raises(MainProcessError, match="ZeroDivisionError")
    with broken, processes.sharing(model, "a broken one"):
        evaluation.evaluate(model, FP32, ("text",), progress=False)
    assert processes.all_gather("after it", processes.index) == [0, 1]


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except Exception:
        traceback.print_exc()
        os._exit(1)  # at once: the other process may be waiting for this one
