"""The text of a plan, from figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from experiments.plan.accelerators import GIB, Device
from experiments.plan.memory import Setup
from experiments.plan.plan import ArmPlan, Plan
from experiments.plan.report import plan_text, refusal
from experiments.plan.shape import Counts
from tests.helpers.small_run import small_config

GPU = Device("a gpu", 80 * GIB, 1e15, 1e12)
ARM = ArmPlan(
    "control",
    Counts(base=8_000_000_000, total=10_000_000_000, trained=2_000_000_000, added=2_000_000_000, largest=1, outside=1),
    Setup(rows=1, micro_batches=4, length=100),
    {"weights": 24e9, "gradients": 8e9, "optimizer": 16e9, "method": 0.0, "activations": 2e9, "gathered": 0.0},
    {"load": 32e9, "training": 50e9, "evaluation": 99e9},
    {"checkpoints": 48e9, "trained": 8e9, "MLflow": 8e9},
    flops=1e15,
    tokens=400,
    micro_batch=8,
    unknown=["kl: its passes of the base model"],
)


def plan(arm: ArmPlan, device: Device = GPU) -> Plan:
    return Plan(small_config("x"), device, [arm], {"broken": "ValueError: no"}, {"control": 2, "broken": 1})


def test_every_line_of_a_plan() -> None:
    lines = plan_text(plan(ARM), 0.5).splitlines()
    assert lines[0] == "small: x on a gpu, 85.9 GB, 1000 TFLOP/s of which 50%"
    assert lines[3] == "control: 10.000 B parameters, 2.000 B train (20.0%), 2.000 B added"
    # 1e15 FLOP at half of 1e15/s, and 2e9 parameters of which AdamW moves 28 bytes at 1e12/s
    assert lines[4] == "  step, GB     weights 24.0 | gradients 8.0 | optimizer 16.0 | activations 2.0 = 50.0"
    assert lines[6] == "               may need more than the device has: evaluation"
    assert lines[8] == "  a step       1e+03 TFLOP, 400 tokens, 2.06 s, 195 tokens/s"
    assert lines[9] == "  fits         training.micro_batch up to 8"
    assert lines[10] == "  left out     kl: its passes of the base model"
    assert lines[12] == "broken: cannot be planned (ValueError: no)"
    # four steps at two rates
    assert (
        lines[14] == "the 2 arms that can be planned, of 3: 8e+15 FLOP, 0.274 min of steps (evaluations come on top), "
        "16.0 GB on disk at the end (and in MLflow, if it is on another disk)"
    )
    whole = replace(plan(ARM), failed={}, rates={"control": 2})
    assert "\nall 2 arms: 8e+15 FLOP" in plan_text(whole, 0.5)
    none = replace(plan(ARM), arms=[])
    assert plan_text(none, 0.5).splitlines()[-1] == "broken: cannot be planned (ValueError: no)"  # and no sum of 0 FLOP


def test_a_micro_batch_comes_with_the_step_that_it_cuts() -> None:
    """The config refuses one next to gradient_accumulation."""
    accumulating = small_config("x", training={"batch_size": 2, "gradient_accumulation": 4})
    said = plan_text(replace(plan(ARM), config=accumulating), 0.5)
    assert "micro_batch up to 8, with batch_size 8 in place of gradient_accumulation\n" in said


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("training: {micro_batch: 1}", "it fits with training: {micro_batch: 1}"),
        (None, "nothing here makes it fit: fewer layers or lora train less, a smaller data.length keeps less"),
    ],
)
def test_a_refusal_has_the_parts_and_the_change(change: str | None, said: str) -> None:
    small = Device("a small gpu", 40e9)
    text = refusal(plan(replace(ARM, change=change), small))
    parts = "weights 24.0, gradients 8.0, optimizer 16.0, activations 2.0"
    assert text.startswith(f"arm 'control': a step needs 50.0 GB ({parts}) of the 40.0 GB of a small gpu: {said}\n")
    assert text.endswith("--force starts it all the same")
    assert f"  change       {said}" in plan_text(plan(replace(ARM, change=change), small), 0.4)
