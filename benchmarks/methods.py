"""Speed and memory of full tuning, partial tuning and Control LLM, as ratios measured in one process.

    python benchmarks/methods.py                 # prints the tables
    python benchmarks/methods.py --write         # and writes them to benchmarks/methods-bf16.md or methods-fp32.md
    python benchmarks/methods.py --write --precision bf16 --rounds 3 --tokens 16    # to methods-bf16-configured.md

Steps of all methods are timed in turn, round after round, so that a machine that drifts drifts for all. Peak memory is
that of a process of its own per method, above the same process before the model is loaded. FLOPs are counted by
torch.utils.flop_counter over one step; weights GB is what a step must move of them at least. Decoding is greedy with
the KV cache, one sequence. Eight layers are spread evenly, as the paper does it, or are the last eight: below the first
layer that trains there is no backward pass.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel
from transformers.utils import logging

import ctrl
from ctrl.diagnostics import attach
from ctrl.divergence import masked_mean, mse
from ctrl.numerics import lerp
from experiments.methods import MethodContext
from experiments.methods.config import ArmConfig
from experiments.models.base import SHIPPED, load_base
from experiments.models.head import only_label_logits
from experiments.models.precision import Precision, device
from experiments.reporting.table import Table
from experiments.training.lm_loss import lm_loss
from experiments.training.meter import PeakMemory

LAYERS = 8
SQUARE, BLOCK = 2048, 2**28  # rows of a product, bytes of a copy: large enough for the machine's best rates
METHODS = ("full", "partial", "control", "partial, last layers", "control, last layers")


def main() -> None:
    args = arguments()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    if args.memory:
        print(json.dumps(peak_memory(args.memory, args)))
        return
    torch.manual_seed(0)
    tables = [header(args), step_table(args), overhead_line(args), decode_table(args)]
    text = "\n\n".join(tables) + "\n"
    print(text)
    if args.write:
        configured = "" if args.precision == "auto" else "-configured"
        Path(__file__).with_name(f"methods-{Precision(args.precision).name}{configured}.md").write_text(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=SHIPPED)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=64, help="tokens decoded")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument(
        "--memory", choices=list(METHODS), help="measure one method's peak memory, for the parent process"
    )
    return parser.parse_args()


def header(args: argparse.Namespace) -> str:
    precision, version = Precision(args.precision), torch.__version__.split("+")[0]
    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} CPU threads"
    command = " ".join(["python benchmarks/methods.py", *sys.argv[1:]])
    return (
        f"# Methods compared\n\nBy `{command}`: {args.model}, {precision.name} "
        f"({precision.reason}), {machine}, torch {version}, batch {args.batch} x {args.length}, control = concat, "
        f"lerp, mse on {LAYERS} layers, spread evenly or the last; vs partial: tuning of the same layers. Medians of "
        f"{args.rounds} rounds, methods in turn."
    )


class Step:
    """One optimiser step of one method: forward (with the engine's loss), backward, clip, AdamW."""

    def __init__(self, method: str, args: argparse.Namespace) -> None:
        self.precision = Precision(args.precision)
        base, name = load_base(args.model)[0], method.split(",")[0]
        layers = list(range(-LAYERS, 0)) if method.endswith("last layers") else LAYERS
        arm = ArmConfig(name=name, method=name, learning_rates=(1e-5,), control=ctrl.ControlConfig(layers=layers))
        self.model = arm.build().prepare(base, MethodContext()).train()
        self.precision.hold_frozen(self.model)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)
        ids = torch.randint(10, 1000, (args.batch, args.length), device=device())
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        self.batch = only_label_logits(batch)
        with self.precision.autocast():
            self.lm_loss = lm_loss(self.model)

    def __call__(self) -> None:
        with self.precision.autocast(), self.lm_loss():
            loss = self.model(**self.batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def step_table(args: argparse.Namespace) -> str:
    steps = {method: Step(method, args) for method in METHODS}
    times = in_turn(steps, args.rounds)
    flops = {method: counted_flops(step) for method, step in steps.items()}
    moved = {method: bytes_moved(step) for method, step in steps.items()}
    trained = {method: sum(p.numel() for p in step.trained) for method, step in steps.items()}
    steps.clear()
    gc.collect()
    memory = {method: memory_of(method) for method in METHODS}
    head = (
        "method",
        "trained",
        "step s",
        "vs full",
        "vs partial",
        "TFLOP",
        "TFLOP/s",
        "weights GB",
        "peak GB",
        "vs full",
    )
    rows: list[tuple[str, ...]] = []
    for method in METHODS:
        t, peak = times[method], memory[method]
        cells = [method, f"{trained[method] / 1e6:.1f} M", f"{t:.2f}", f"{t / times['full']:.2f}"]
        partial = times[method.replace("control", "partial").replace("full", "partial")]
        cells += [f"{t / partial:.2f}", f"{flops[method] / 1e12:.2f}", f"{flops[method] / 1e12 / t:.2f}"]
        cells += [f"{moved[method] / 1e9:.2f}", f"{peak / 1e9:.2f}", f"{peak / memory['full']:.2f}"]
        rows.append(tuple(cells))
    return Table("", head, tuple(rows)).markdown() + "\n\n" + roofline(times, flops, moved, args)


def roofline(times: dict[str, float], flops: dict[str, int], moved: dict[str, int], args: argparse.Namespace) -> str:
    """What each step takes at least on this machine, by its products and by the weights that it moves."""
    dtype = torch.bfloat16 if Precision(args.precision).bf16 else torch.float32
    square = torch.randn(SQUARE, SQUARE, device=device(), dtype=dtype)
    block = torch.zeros(BLOCK // 4, device=device())
    peak = in_turn({"product": lambda: square @ square, "copy": block.clone}, 9)
    rate, bandwidth = 2 * SQUARE**3 / peak["product"], 2 * BLOCK / peak["copy"]
    least = ", ".join(
        f"{name} {flops[name] / rate:.2f} s and {moved[name] / bandwidth:.2f} s ({flops[name] / rate / t:.0%})"
        for name, t in times.items()
    )
    return (
        f"Roofline: a product of {SQUARE:,} x {SQUARE:,} runs at {rate / 1e12:.2f} TFLOP/s here, a copy of "
        f"{BLOCK // 2**20} MiB moves {bandwidth / 1e9:.0f} GB/s. So a step takes at least, by its FLOPs and by its "
        f"weights (in brackets: FLOPs' share of the time measured): {least}."
    )


def in_turn(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each call, all timed once a round after one round that does not count."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = clock()
            call()
            if number:
                times[name].append(clock() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def counted_flops(step: Step) -> int:
    in_place = {torch.ops.aten.addmm_: added_product}  # the head's gradient; the counter knows addmm alone
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        step()
    return counter.get_total_flops()


def added_product(total: tuple[int, ...], a: tuple[int, int], b: tuple[int, int], **rest: Any) -> int:
    """FLOPs of total += a @ b, from their shapes."""
    return 2 * a[0] * a[1] * b[1]


def bytes_moved(step: Step) -> int:
    """Bytes of weights a step must touch at least: each read forward and backward, what trains also with its gradient
    (written, read), and AdamW's two moments and the weight itself (read and written)."""
    weights = sum(2 * p.numel() * p.element_size() for p in step.model.parameters())
    return weights + sum(8 * p.numel() * p.element_size() for p in step.trained)


def overhead_line(args: argparse.Namespace) -> str:
    """What mixing and the divergence cost by themselves: forward and backward at the step's shapes, for all layers."""
    hidden = load_base(args.model)[0].config.hidden_size
    a, b = (torch.randn(args.batch, args.length, hidden, device=device(), requires_grad=True) for _ in range(2))
    half, mask = torch.tensor(0.5, device=device()), torch.ones(args.batch, args.length, device=device())

    def mix() -> None:
        for _ in range(LAYERS):
            (lerp(a, b, half).sum() + masked_mean(mse(a, b), mask)).backward()

    step = Step("control", args)
    with ctrl.diagnostics(step.model) as log:
        step()  # the change of the weights is measured in this one, then in every hundredth

    def logged() -> None:
        with attach(step.model, log):
            step()

    times = in_turn({"mix": mix, "step": step, "logged": logged}, args.rounds)
    return (
        f"Interpolation and divergence, {LAYERS} layers, forward and backward: {1e3 * times['mix']:.0f} ms, "
        f"{100 * times['mix'] / times['step']:.1f} % of the control step. "
        f"Diagnostics left on: {100 * (times['logged'] / times['step'] - 1):+.1f} % of the step."
    )


def decode_table(args: argparse.Namespace) -> str:
    """Seconds per decoded token: the base model, the expanded one, the merged one."""
    precision = Precision(args.precision)
    dtype = torch.bfloat16 if precision.bf16 else torch.float32
    base = load_base(args.model)[0].eval().to(dtype)  # type: ignore[arg-type]
    expanded = ctrl.expand(load_base(args.model)[0].eval().to(dtype), ctrl.ControlConfig(layers=LAYERS))  # type: ignore[arg-type]
    models = {"base": base, "expanded": expanded, "merged": ctrl.merge_back(expanded).eval()}
    prompt = torch.randint(10, 1000, (1, 16), device=device())

    def decode(model: PreTrainedModel) -> Callable[[], object]:
        kwargs = {"attention_mask": torch.ones_like(prompt), "do_sample": False, "pad_token_id": 0}
        return lambda: model.generate(prompt, max_new_tokens=args.tokens, min_new_tokens=args.tokens, **kwargs)

    times = in_turn({name: decode(model) for name, model in models.items()}, max(args.rounds, 7))  # they are short
    rows = [(name, f"{1e3 * t / args.tokens:.1f}", f"{t / times['base']:.2f}") for name, t in times.items()]
    return Table("", ("decoding", "ms per token", "vs base"), tuple(rows)).markdown()


def memory_of(method: str) -> int:
    command = [sys.executable, __file__, *sys.argv[1:], "--memory", method]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout.splitlines()[-1]))


def peak_memory(method: str, args: argparse.Namespace) -> int:
    """Bytes at the peak of three steps above the process before the model is loaded (GPU: above nothing)."""
    idle = psutil.Process().memory_info().rss
    step = Step(method, args)
    step()  # optimizer state is made here; the peak of loading is not a step's
    with PeakMemory() as memory:
        memory.begin()
        step()
        step()
        memory.end()
    return memory.peak if torch.cuda.is_available() else memory.peak - idle


if __name__ == "__main__":
    main()
