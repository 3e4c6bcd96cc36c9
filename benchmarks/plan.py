"""Hold `control-llm plan` against measured peaks: each method's training step, planned and run.

    python benchmarks/plan.py              # prints the tables; some minutes
    python benchmarks/plan.py --write      # and writes them to benchmarks/plan.md
    python benchmarks/plan.py --planned    # only what the paper's runs and the quickstart would need
    python benchmarks/plan.py --replan     # plans again what plan.md has measured; nothing is measured

With --write the last two change their part of plan.md alone.

A step is run in a process of its own, forked from one that has imported everything. On a CPU its peak is that of the
resident set above the same process after steps of a narrow model and before this one is loaded, with an allocator that
gives freed blocks back at once (MALLOC_MMAP_THRESHOLD_): the usual one keeps holes, which are no need of the step. On a
GPU it is torch's own count of allocated bytes.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from training_step import begun_arm, config_of_one, stepper
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from experiments.config import ExperimentConfig, load_config
from experiments.models.base import SHIPPED, load_base, model_config
from experiments.models.precision import Precision, device
from experiments.plan.accelerators import GPUS, Device
from experiments.plan.memory import Sharding
from experiments.plan.plan import ArmPlan, Plan, plan_run
from experiments.reporting.table import Table

LAST = {"layers": list(range(-8, 0))}
ARMS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "partial, 8 layers": {"method": "partial"},
    "control, 8 layers": {"method": "control"},
    "control, last 8": {"method": "control", "control": LAST},
    "lora": {"method": "lora"},
}
CHECKPOINTING = ("none", "all")
GPU, UTILISATION = "h100-80gb", 0.4
RECIPES: tuple[tuple[str, int, Sharding], ...] = (
    ("paper/openmath2", 8, "fsdp"),
    ("paper/opencoder", 8, "fsdp"),
    ("paper/llama3-syne", 8, "fsdp"),
    ("quickstart", 1, "none"),
)
WRITTEN = Path(__file__).with_name("plan.md")
TITLE, SECOND = "# Planned and measured memory", "## Planned, not measured\n\n"
RATIOS = "Planned / measured is"
AGAIN = " Planned again later, by `python benchmarks/plan.py --replan --write`."
STEPS = 2  # the state of the optimizer is there in the second
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def main() -> None:
    args = arguments()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if args.measure:
        print(measured(*args.measure, args))
        return
    before = WRITTEN.read_text().partition(SECOND)
    first = None if args.planned else replanned_table(args) if args.replan else measured_table(args)
    second = None if args.replan else planned_table()
    print(*(part for part in (first, second) if part), sep="\n\n")
    if args.write:
        one = before[0] if first is None else f"{TITLE}\n\n{first}\n\n"
        two = before[2] if second is None else f"{second}\n"
        WRITTEN.write_text(f"{one}{SECOND}{two}")


def measured_table(args: argparse.Namespace) -> str:
    """Plan and run a step of each method."""
    cases = [(name, how) for name in ARMS for how in CHECKPOINTING]
    found = [apart(name, how, args) for name, how in cases]
    rows = [row(name, how, bytes_, args) for (name, how), bytes_ in zip(cases, found, strict=True)]
    command = " ".join(["python benchmarks/plan.py", *sys.argv[1:]])
    precision, version = Precision(args.precision), torch.__version__.split("+")[0]
    threads = torch.get_num_threads()
    machine = f"{threads} CPU thread{'s' if threads > 1 else ''}"
    if torch.cuda.is_available():
        machine = torch.cuda.get_device_name()
    return (
        f"By `{command}`: the peak of a training step of {args.model}, {precision.name}, {machine}, torch {version}, "
        f"{args.rows} x {args.length} tokens. {with_ratios(rows)}"
    )


def with_ratios(rows: list[tuple[str, ...]]) -> str:
    ratios = [float(cells[-1]) for cells in rows]
    head = ("method", "checkpointing", "planned GB", "measured GB", "planned / measured")
    return f"{RATIOS} {min(ratios):.2f} to {max(ratios):.2f}.\n\n{Table('', head, tuple(rows)).markdown()}"


def replanned_table(args: argparse.Namespace) -> str:
    """Plan again what `plan.md` has measured. The other options are to be those that measured it."""
    before = WRITTEN.read_text()
    measured_by = before.partition(RATIOS)[0].rpartition("\n")[2].strip().removesuffix(AGAIN)
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in before.splitlines()]
    known = {(c[0], c[1]): round(1e9 * float(c[3])) for c in cells if c[0] in ARMS and c[1] in CHECKPOINTING}
    rows = [row(name, how, found, args) for (name, how), found in known.items()]
    return f"{measured_by}{AGAIN} {with_ratios(rows)}"


def planned_table() -> str:
    """Plan the paper's runs and the quickstart. Nothing of it is measured."""
    rows = [cells for name, devices, sharding in RECIPES for cells in planned_rows(name, devices, sharding)]
    head = ("config", "arm", "billion parameters, of which train", "GB a device", "most micro_batch", "s a step", "h")
    return (
        f"The paper's runs on 8 devices with FSDP and the quickstart on one, on {GPU} at "
        f"{UTILISATION:.0%} of its FLOPs, as `control-llm plan CONFIG --gpu {GPU} --devices 8 --sharding fsdp` says "
        f"it. h: of all steps of an arm at one learning rate, without evaluations.\n\n"
        f"{Table('', head, tuple(rows)).markdown()}"
    )


def planned_rows(name: str, devices: int, sharding: Sharding) -> Iterator[tuple[str, ...]]:
    """Yield a row for each arm of a config."""
    plan = plan_run(load_config(name), GPUS[GPU], devices, sharding)
    assert not plan.failed, plan.failed
    yield from (planned_cells(name, arm, plan) for arm in plan.arms)


def planned_cells(name: str, arm: ArmPlan, plan: Plan) -> tuple[str, ...]:
    seconds = arm.seconds(plan.device, UTILISATION)
    assert seconds is not None  # the speed of GPU is known
    counts = f"{arm.counts.total / 1e9:.3f}, {arm.counts.trained / 1e9:.3f}"
    fits = f"{arm.peak / 1e9:.1f}{'' if arm.peak <= plan.device.memory else ' (does not fit)'}"
    hours = seconds * plan.config.training.steps / 3600
    return name, arm.name, counts, fits, str(arm.micro_batch), f"{seconds:.3g}", f"{hours:.3g}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SHIPPED)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="fp32")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--planned", action="store_true", help="plans of shipped configs alone: nothing is run")
    parser.add_argument("--replan", action="store_true", help="plan what is in plan.md again; nothing is measured")
    parser.add_argument("--measure", nargs=2, metavar=("METHOD", "CHECKPOINTING"), help="print bytes of this one alone")
    return parser.parse_args()


def config(name: str, how: str, args: argparse.Namespace) -> ExperimentConfig:
    data = {"regime": "cpt", "length": args.length, "new": {"source": "python"}}
    return config_of_one(args.model, ARMS[name], args.precision, data, {"batch_size": args.rows, "checkpointing": how})


def row(name: str, how: str, found: int, args: argparse.Namespace) -> tuple[str, ...]:
    planned = plan_run(config(name, how, args), Device("", 1e15)).arms[0].peak
    return name, how, f"{planned / 1e9:.2f}", f"{found / 1e9:.2f}", f"{planned / found:.2f}"


def apart(name: str, how: str, args: argparse.Namespace) -> int:
    """Return `measured` of a process of its own."""
    os.environ.update(ALLOCATOR)  # read by the process that the others are forked from
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_step", "experiments.plan.plan"])
    with context.Pool(1) as pool:
        return pool.apply(measured, (name, how, args))


def measured(name: str, how: str, args: argparse.Namespace) -> int:
    """Return the bytes at the peak of a step above the process before the model was loaded."""
    steps(name, how, args, narrow(args.model))  # so that libraries and threads are there
    idle = resident()
    steps(name, how, args, load_base(args.model)[0])
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak() - idle


def narrow(name: str) -> Any:
    """Return a model of the same layers with hardly any weights."""
    found = model_config(name)
    found.update({"hidden_size": 16, "intermediate_size": 16, "head_dim": 16, "vocab_size": 1024})
    found.update({"num_attention_heads": 1, "num_key_value_heads": 1})
    return AutoModelForCausalLM.from_config(found)


def steps(name: str, how: str, args: argparse.Namespace, base: Any) -> None:
    """Run STEPS steps of an arm; the peak is that of the last one."""
    precision = Precision(args.precision)
    model = begun_arm(config(name, how, args), base, precision)
    ids = torch.randint(10, 1000, (args.rows, args.length), device=device())
    step = stepper(model, {"input_ids": ids, "labels": ids}, precision)
    gc.collect()
    for number in range(STEPS):
        if number == STEPS - 1:
            forget_peak()
        step()


def resident() -> int:
    return status("VmRSS")


def peak() -> int:
    return status("VmHWM")


def forget_peak() -> None:
    """Let the next peak be that of what follows."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
