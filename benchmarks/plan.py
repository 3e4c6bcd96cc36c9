"""Hold `control-llm plan` against measured peaks: each method's training step, planned and run.

    python benchmarks/plan.py            # prints the table
    python benchmarks/plan.py --write    # and writes it to benchmarks/plan.md

A step is run in a process of its own. On a CPU its peak is that of the resident set above the same process before the
model is loaded, with an allocator that gives freed blocks back at once (MALLOC_MMAP_THRESHOLD_): the usual one keeps
holes, which are no need of the step. On a GPU it is torch's own count of allocated bytes.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from experiments.config import ExperimentConfig, parse_config
from experiments.methods import MethodContext
from experiments.models.base import SHIPPED, load_base
from experiments.models.head import only_label_logits
from experiments.models.precision import Precision, device
from experiments.plan.accelerators import Device
from experiments.plan.plan import plan_run
from experiments.reporting.table import Table
from experiments.training.checkpointing import checkpoint_layers
from experiments.training.lm_loss import lm_loss

LAST = {"layers": list(range(-8, 0))}
ARMS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "partial, 8 layers": {"method": "partial"},
    "control, 8 layers": {"method": "control"},
    "control, last 8": {"method": "control", "control": LAST},
    "lora": {"method": "lora"},
}
CHECKPOINTING = ("none", "all")
STEPS = 2  # the state of the optimizer is there in the second
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


def main() -> None:
    args = arguments()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if args.measure:
        print(json.dumps(measured(args.measure, args)))
        return
    rows = [row(name, how, args) for name in ARMS for how in CHECKPOINTING]
    head = ("method", "checkpointing", "planned GB", "measured GB", "planned / measured")
    ratios = [float(cells[-1]) for cells in rows]
    command = " ".join(["python benchmarks/plan.py", *sys.argv[1:]])
    precision, version = Precision(args.precision), torch.__version__.split("+")[0]
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    text = (
        f"# Planned and measured memory\n\nBy `{command}`: the peak of a training step of {args.model}, "
        f"{precision.name}, {machine}, torch {version}, {args.rows} x {args.length} tokens. Planned / measured is "
        f"{min(ratios):.2f} to {max(ratios):.2f}.\n\n{Table('', head, tuple(rows)).markdown()}\n"
    )
    print(text)
    if args.write:
        Path(__file__).with_name("plan.md").write_text(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SHIPPED)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="fp32")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--measure", nargs=2, metavar=("METHOD", "CHECKPOINTING"), help="for the parent process")
    return parser.parse_args()


def config(name: str, how: str, args: argparse.Namespace) -> ExperimentConfig:
    return parse_config(
        {
            "name": "plan",
            "base_model": args.model,
            "precision": args.precision,
            "data": {"regime": "cpt", "length": args.length, "new": {"source": "python"}},
            "training": {"batch_size": args.rows, "checkpointing": how},
            "arms": [{"name": "x", "learning_rates": [1e-5], **ARMS[name]}],
        }
    )


def row(name: str, how: str, args: argparse.Namespace) -> tuple[str, ...]:
    planned = plan_run(config(name, how, args), Device("", 1e15)).arms[0].peak
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", name, how]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ, **ALLOCATOR})
    found = json.loads(done.stdout.splitlines()[-1])
    return name, how, f"{planned / 1e9:.2f}", f"{found / 1e9:.2f}", f"{planned / found:.2f}"


def measured(what: tuple[str, str], args: argparse.Namespace) -> int:
    """Return the bytes at the peak of STEPS steps above the process before the model was loaded."""
    idle = resident()
    given = config(*what, args)
    precision = Precision(args.precision)
    method, context = given.arms[0].build(), MethodContext(0, precision)
    model = method.prepare(load_base(args.model)[0], context).train()
    method.begin(model, context)
    checkpoint_layers(model, what[1])  # type: ignore[arg-type]
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    ids = torch.randint(10, 1000, (args.rows, args.length), device=device())
    batch = only_label_logits({"input_ids": ids, "labels": ids})
    with precision.autocast():
        loss_of = lm_loss(model)
    gc.collect()
    for step in range(STEPS):
        if step == STEPS - 1:
            forget_peak()
        with precision.autocast(), loss_of():
            loss = model(**batch, use_cache=False).loss
        loss.backward()
        del loss
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak() - idle


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
