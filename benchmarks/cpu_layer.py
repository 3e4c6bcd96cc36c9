"""What could make a training step faster on a CPU, each change as a ratio to the layer as it is, in one process.

    python benchmarks/cpu_layer.py                 # prints the table; some minutes
    python benchmarks/cpu_layer.py --write         # and writes it to benchmarks/cpu_layer.md

A Llama layer of SmolLM2-135M's shape, all of it trained, under the precision of the machine or of `--precision`. Times
are CPU times of a forward and a backward pass, the least of several rounds in turn.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.models.precision import Precision
from experiments.reporting.table import Table

WIDTH, INNER, HEADS, KEYS, HEAD = 576, 1536, 9, 3, 64
SHAPES = ((16, 128), (4, 512), (1, 2048))  # rows x tokens, as many tokens each
Run = Callable[[], object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("auto", "bf16", "fp32"), default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=2048, help="of a pass: fewer are quicker")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    precision = Precision(args.precision)
    torch.manual_seed(0)
    command = " ".join(["python benchmarks/cpu_layer.py", *sys.argv[1:]])
    head = (
        f"# One layer on a CPU\n\nBy `{command}`: {precision.name} ({precision.reason}), {torch.get_num_threads()} "
        f"threads, torch {torch.__version__.split('+')[0]}, {args.tokens} tokens a pass. Forward and backward, as a "
        "ratio to the first way of each part; below 1 is faster. A compiled way is timed after its compilation."
    )
    text = f"{head}\n\n{table(precision, args).markdown()}\n"
    print(text)
    if args.write:
        Path(__file__).with_suffix(".md").write_text(text)


def table(precision: Precision, args: argparse.Namespace) -> Table:
    rows = []
    for batch, length in ((rows, args.tokens // rows) for rows, _ in SHAPES):
        for part, ways in parts(batch, length).items():
            with precision.autocast():
                times = timed(dict(ways), args.rounds)
            first = next(iter(times.values()))
            rows += [(f"{batch} x {length}", part, name, f"{t / first:.2f}") for name, t in times.items()]
    return Table("", ("rows x tokens", "part", "way", "time"), tuple(rows))


def parts(batch: int, length: int) -> dict[str, dict[str, Run]]:
    """Return ways to compute each part of a layer; the first is the bench's own."""
    states = torch.randn(batch, length, WIDTH).requires_grad_()
    return {
        "whole layer": whole(states),
        "attention alone": attention(batch, length),
        "q, k, v and gate, up: casts of their input": casts(states),
        "norm": norm(states),
        "SwiGLU": swiglu(batch, length),
    }


def whole(states: Tensor) -> dict[str, Run]:
    """sdpa, eager, and the layer compiled alone (a region): one graph serves all layers of a model."""
    plain, eager = model("sdpa"), model("eager")
    region = model("sdpa")
    region.model.layers[0].compile()
    return {"sdpa": passes(plain, states), "eager": passes(eager, states), "region compiled": passes(region, states)}


def model(how: str) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=INNER, num_hidden_layers=1, num_attention_heads=HEADS,
        num_key_value_heads=KEYS, head_dim=HEAD, attn_implementation=how,
    )  # fmt: skip
    return LlamaForCausalLM(config).train()


def passes(model: Any, states: Tensor) -> Run:
    def run() -> None:
        hidden = model.model(inputs_embeds=states, use_cache=False).last_hidden_state
        hidden.sum(dtype=torch.float32).backward()

    return run


def attention(batch: int, length: int) -> dict[str, Run]:
    """PyTorch's kernel against products and a softmax, on queries, keys and values that are there already."""
    q, k, v = (torch.randn(batch, HEADS, length, HEAD).requires_grad_() for _ in range(3))
    ahead = torch.full((length, length), -torch.inf).triu(1)

    def kernel() -> None:
        q_, k_, v_ = cast(q, k, v)
        F.scaled_dot_product_attention(q_, k_, v_, is_causal=True).sum(dtype=torch.float32).backward()

    def products() -> None:
        q_, k_, v_ = cast(q, k, v)
        scores = torch.matmul(q_, k_.transpose(2, 3)) * HEAD**-0.5 + ahead.to(q_.dtype)
        weights = scores.softmax(-1, dtype=torch.float32).to(q_.dtype)
        torch.matmul(weights, v_).sum(dtype=torch.float32).backward()

    return {"kernel (sdpa)": kernel, "products": products}


def cast(*tensors: Tensor) -> list[Tensor]:
    """Bring tensors to the precision of products, as they are after the projections."""
    wanted = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
    return [tensor.to(wanted) for tensor in tensors]


def casts(states: Tensor) -> dict[str, Run]:
    """Five projections of two inputs: each casts its own copy, as under autocast, or one cast serves all."""
    wide = [nn.Linear(WIDTH, n, bias=False) for n in (WIDTH, KEYS * HEAD, KEYS * HEAD, INNER, INNER)]

    def each() -> None:
        sum(one(states).sum(dtype=torch.float32) for one in wide).backward()  # type: ignore[union-attr]

    def shared() -> None:
        (narrow,) = cast(states)
        sum(one(narrow).sum(dtype=torch.float32) for one in wide).backward()  # type: ignore[union-attr]

    return {"one for each": each, "one for all": shared}


def norm(states: Tensor) -> dict[str, Run]:
    """The model's own norm, PyTorch's function for it, and the model's own compiled."""
    own = model("sdpa").model.norm
    weight = nn.Parameter(torch.ones(WIDTH))
    compiled = torch.compile(own)
    return {
        "as it is": lambda: own(states).sum().backward(),
        "F.rms_norm": lambda: F.rms_norm(states, (WIDTH,), weight, 1e-6).sum().backward(),
        "compiled": lambda: compiled(states).sum().backward(),
    }


def swiglu(batch: int, length: int) -> dict[str, Run]:
    """The elementwise work between the products: silu(gate) * up."""
    gate, up = (torch.randn(batch, length, INNER).requires_grad_() for _ in range(2))

    def own(gate: Tensor, up: Tensor) -> Tensor:
        return F.silu(gate) * up

    compiled = torch.compile(own)

    def run(how: Callable[[Tensor, Tensor], Tensor]) -> Run:
        return lambda: how(*cast(gate, up)).sum(dtype=torch.float32).backward()

    return {"as it is": run(own), "compiled": run(compiled)}


def timed(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Return the least CPU seconds of each, in turn, after one pass that is not timed."""
    best = dict.fromkeys(runs, float("inf"))
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if number:
                best[name] = min(best[name], time.process_time() - start)
    return best


if __name__ == "__main__":
    main()
