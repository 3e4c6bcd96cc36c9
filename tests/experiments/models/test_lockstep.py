"""Passes of several processes keep step: who has finished makes empty passes for the others.

`test_processes.py` does it with shards. Here the processes are played by what `all_reduce` answers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from experiments.models.lockstep import in_step
from tests.helpers.tiny_llama import tiny


def test_a_process_that_has_finished_passes_until_no_other_has_work(monkeypatch: pytest.MonkeyPatch) -> None:
    model, asked, passes = tiny(), list[int](), list[Any]()
    others = iter([1, 1, 0, 1, 1, 0])  # work that another process has at each question

    def all_reduce(tensor: torch.Tensor) -> None:
        asked.append(int(tensor))
        tensor += next(others)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    model.register_forward_hook(lambda module, args, kwargs, out: passes.append(kwargs["input_ids"]), with_kwargs=True)
    ids = torch.tensor([[5, 6]])
    with in_step(model) as wait, torch.no_grad():
        assert model.generate.keywords == {"synced_gpus": False}  # transformers' own way asks after each token
        model(input_ids=ids)
        wait()  # one empty pass, then no process has work
        model(input_ids=ids)
        wait()
    assert asked == [1, 0, 0, 1, 0, 0]
    assert [one.tolist() for one in passes] == [[[5, 6]], [[0]], [[5, 6]], [[0]]]
    assert "generate" not in vars(model)
    model(input_ids=ids)
    assert len(asked) == 6  # outside of the block nobody is asked
