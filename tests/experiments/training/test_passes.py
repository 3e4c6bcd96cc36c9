"""A loss that is no number ends the arm before its step, and passes are read once a step."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.methods import ActiveMethod
from experiments.training.passes import StepPasses
from experiments.training.trainer import ArmFailed, ArmTrainer
from tests.helpers.engine import arm_config, train

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("losses", "broken"),
    [([1.0, 2.0], None), ([1.0, NAN, 3.0], NAN), ([INF, NAN], INF), ([1.0, -INF], -INF), ([], None), ([0.0], None)],
)
def test_the_first_loss_that_is_no_number_is_kept(losses: list[float], broken: float | None) -> None:
    passes = StepPasses()
    for loss in losses:
        passes.note(torch.tensor(loss), torch.tensor(3))
    assert passes.counts(torch.device("cpu")).tolist() == [int(broken is not None), 3 * len(losses)]
    assert str(passes.broken()) == str(broken)  # nan is not equal to itself


class Reads(TorchDispatchMode):
    """Count values that leave the device: each waits for all work before it. transformers reads masks in each pass."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            callers = (frame.f_code.co_filename for frame, _ in traceback.walk_stack(None))
            self.count += not any(file.endswith("masking_utils.py") for file in callers)
        return func(*args, **(kwargs or {}))


def test_micro_batches_are_read_once_a_step(tmp_path: Path) -> None:
    counts = []
    for micro_batch in (4, 1):
        with Reads() as reads:
            train(arm_config("control"), tmp_path / str(micro_batch), micro_batch=micro_batch, steps=2)
        counts.append(reads.count)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("micro_batch", [4, 2])
def test_nothing_of_a_step_without_a_number_stays(
    micro_batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last but one of its passes breaks; weights, the average and checkpoints are those of the step before."""
    whole = train(arm_config("ema"), tmp_path / "whole", steps=2, micro_batch=micro_batch)
    kept: dict[str, Any] = {}
    monkeypatch.setattr(ActiveMethod, "penalty", broken_at(passes=2 * 4 // micro_batch + 1))
    monkeypatch.setattr(ArmTrainer, "end_passes", noting(kept))
    with pytest.raises(ArmFailed, match="loss became nan at step 3: lower the learning rate"):
        train(arm_config("ema"), tmp_path / "broken", steps=6, save_every=1, micro_batch=micro_batch)
    assert sorted(p.name for p in (tmp_path / "broken").iterdir()) == ["checkpoint-2"]  # the latest alone is kept
    with kept["method"].evaluated(kept["model"]):
        now = dict(kept["model"].named_parameters())
        for name, weight in whole.weights.items():
            assert torch.equal(now[name], weight)


def broken_at(passes: int) -> Callable[..., Tensor]:
    """Return a penalty that is no number in one pass of a run, and 0 in the others."""
    seen = []

    def penalty(self: ActiveMethod, model: nn.Module, *rest: Any) -> Tensor:
        seen.append(0)
        return torch.tensor(NAN if len(seen) == passes else 0.0)

    return penalty


def noting(kept: dict[str, Any]) -> Callable[[ArmTrainer], None]:
    """Note the trainer's model and method on the way."""
    end = ArmTrainer.end_passes

    def end_passes(self: ArmTrainer) -> None:
        kept.update(model=self.model, method=self.method)
        end(self)

    return end_passes
