"""Speed and memory of training on one GPU at the 8B shape, next to the plan's prediction. Weights are random.

    python benchmarks/gpu.py             # prints the tables; under ten minutes
    python benchmarks/gpu.py --write     # and writes them to benchmarks/gpu.md
    python benchmarks/gpu.py --anywhere --model FOLDER --small FOLDER --length 64   # on a CPU, to see that it runs

Without a GPU it says so and ends. A step is a forward and a backward pass of one row, clipping and AdamW, as the bench
runs it: bf16, the loss in chunks. MFU counts all that is computed, also what checkpointing computes twice.
"""

from __future__ import annotations

import argparse
import gc
import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from training_step import begun_arm, config_of_one, stepper
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from ctrl.config import INTERPOLATIONS
from experiments.config import ExperimentConfig
from experiments.models.base import model_config
from experiments.models.narrow import widen_rest
from experiments.models.precision import Precision, device
from experiments.plan.accelerators import here
from experiments.plan.plan import ArmPlan, plan_run
from experiments.reporting.table import Table

BIG, SMALL = "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.2-1B"
ARMS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "LoRA": {"method": "lora"},
    "stack, 8 layers": {"method": "stack", "control": {"layers": 8}},
    "control, 8 layers": {"method": "control", "control": {"layers": 8}},
    "control, 16 layers": {"method": "control", "control": {"layers": 16}},
}
WAYS = (("none", False), ("none", True), ("all", False))  # checkpointing, and whether rows have padding
PADDING = 4  # a quarter of a padded row
WARM, TIMED = 2, 3  # steps
NEEDED = Precision("bf16")


@dataclass(frozen=True)
class Found:
    """The seconds of a step and the bytes at its peak; NaN if it did not fit."""

    seconds: float = math.nan
    peak: float = math.nan


def main() -> None:
    args = arguments()
    logging.set_verbosity_error()
    if not torch.cuda.is_available() and not args.anywhere:
        print("skipped: no CUDA GPU here; run it on a machine with one (80 GB for all rows of the table)")
        return
    tables = [header(args), big_table(args), interpolation_table(args)]
    text = "\n\n".join(tables) + "\n"
    print(text)
    if args.write:
        Path(__file__).with_name("gpu.md").write_text(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BIG)
    parser.add_argument("--small", default=SMALL, help="the shape for all interpolations")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--anywhere", action="store_true", help="run it without a GPU too")
    return parser.parse_args()


def header(args: argparse.Namespace) -> str:
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"
    command = " ".join(["python benchmarks/gpu.py", *sys.argv[1:]])
    return (
        f"# Training on one GPU\n\nBy `{command}`: {name}, torch {torch.__version__.split('+')[0]}, one row of "
        f"{args.length} tokens a step, bf16, random weights of the shape of {args.model}. Medians of {TIMED} steps. In "
        "brackets: the plan's prediction."
    )


def big_table(args: argparse.Namespace) -> str:
    rows = []
    for name, arm in ARMS.items():
        for how, padded in WAYS:
            given = config(args.model, arm, how, padded, args.length)
            rows.append((name, how, "padded" if padded else "packed", *cells(given, padded, args.length)))
    return Table("", ("method", "checkpointing", "rows", "s", "tokens/s", "MFU", "peak GB"), tuple(rows)).markdown()


def interpolation_table(args: argparse.Namespace) -> str:
    rows = []
    for name in INTERPOLATIONS:
        arm = {"method": "control", "control": {"layers": 4, "interpolation": name}}
        given = config(args.small, arm, "none", False, args.length)
        rows.append((name, *cells(given, False, args.length)))
    table = Table("", ("interpolation", "s", "tokens/s", "MFU", "peak GB"), tuple(rows)).markdown()
    return f"Each interpolation at the shape of {args.small}, 4 layers, mse:\n\n{table}"


def config(model: str, arm: dict[str, Any], how: str, padded: bool, length: int) -> ExperimentConfig:
    data = {"regime": "sft", "packed": not padded, "length": length}
    return config_of_one(model, arm, "bf16", data, {"batch_size": 1, "checkpointing": how})


def cells(given: ExperimentConfig, padded: bool, length: int) -> tuple[str, ...]:
    """Return seconds, tokens per second, MFU and peak of an arm, each with what the plan says."""
    plan = plan_run(given, here()).arms[0]
    try:
        found = measured(given, padded, length)
    except torch.OutOfMemoryError:
        found = Found()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    planned = f"({plan.peak / 1e9:.1f})"
    if math.isnan(found.seconds):
        return "out of memory", "-", "-", f"- {planned}"
    tokens = length - (length // PADDING if padded else 0)
    return (
        f"{found.seconds:.3f}",
        f"{tokens / found.seconds:,.0f}",
        utilisation(plan, found.seconds),
        f"{found.peak / 1e9:.1f} {planned}",
    )


def utilisation(plan: ArmPlan, seconds: float) -> str:
    rate = here().flops
    return "-" if rate is None else f"{plan.flops / seconds / rate:.2f}"


def measured(given: ExperimentConfig, padded: bool, length: int) -> Found:
    """Run WARM + TIMED steps of the config's arm."""
    model = random_arm(given)
    ids = torch.randint(10, 1000, (1, length), device=device()) % int(model.config.get_text_config().vocab_size)
    batch: dict[str, Any] = {"input_ids": ids, "labels": ids.clone()}
    if padded:
        batch["attention_mask"] = torch.ones_like(ids)
        batch["attention_mask"][:, length - length // PADDING :] = 0
        batch["labels"][:, length - length // PADDING :] = -100
    step, times = stepper(model, batch, NEEDED), []
    for number in range(WARM + TIMED):
        if number == WARM and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        start = clock()
        step()
        times.append(clock() - start)
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else math.nan
    return Found(statistics.median(times[WARM:]), peak)


def random_arm(given: ExperimentConfig) -> Any:
    """Build the arm's model with random weights on the device, held as the bench holds a base stored in bf16."""
    shape = model_config(given.base_model)
    with torch.device(device()):
        base = AutoModelForCausalLM.from_config(shape, dtype=torch.bfloat16)
    widen_rest(base)
    return begun_arm(given, base, NEEDED)


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
