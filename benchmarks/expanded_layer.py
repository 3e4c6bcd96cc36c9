"""What one expanded layer keeps for its backward pass and how long it takes, as ratios measured in one process.

    python benchmarks/expanded_layer.py                # prints the tables
    python benchmarks/expanded_layer.py --write        # and writes them to benchmarks/expanded_layer.md

A Llama layer of width 1024 over 256 tokens, one thread. Bytes are per token and unit of the hidden state in bf16, each
storage counted once, the layer's own input not. Kernels are the operations of a forward and a backward pass, without
views; after compilation, the loops that are left. Times are CPU times of both passes relative to the first way, the
least of several rounds in turn; those of layers in fp32, since some CPUs are slow in bf16.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._inductor import metrics
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, LlamaForCausalLM

import ctrl
from ctrl.divergence import DIVERGENCES
from ctrl.interpolation import build_interpolation
from ctrl.numerics import widen

TOKENS, WIDTH, ROUNDS = 256, 1024, 3
PAIRS = [
    ("lerp", "none"),
    ("lerp", "mse"),
    ("lerp", "cosine"),
    ("dlerp", "mse"),
    ("dlerp", "cosine"),
    ("slerp", "norm"),
]
Run = Callable[[], Tensor]
Mix = Callable[[], tuple[Tensor, Tensor]]


class OwnFunction(torch.autograd.Function):
    """Lerp and mse as one operation that keeps b - a once, rounded to the type of the hidden state."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        wide_a, wide_b = widen(a), widen(b)
        apart = wide_b - wide_a
        ctx.save_for_backward(apart.to(a.dtype), alpha)
        return torch.lerp(wide_a, wide_b, alpha).to(a.dtype), apart.square().mean(-1)

    @staticmethod
    def backward(ctx: Any, mixed: Tensor, per_token: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        apart, alpha = ctx.saved_tensors
        of_b = alpha * widen(mixed)
        push = widen(apart) * (per_token * 2 / apart.shape[-1]).unsqueeze(-1)
        return (mixed - of_b - push).to(mixed.dtype), (of_b + push).to(mixed.dtype), None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the tables next to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    made_by = f"By `python benchmarks/expanded_layer.py --write`, torch {torch.__version__}."
    text = "\n\n".join([made_by, *tables()]) + "\n"
    print(text)
    if args.write:
        Path(__file__).with_suffix(".md").write_text("# One expanded layer\n\n" + text)


def tables() -> list[str]:
    kept = {name: bytes_kept(run, skip) for name, (run, skip) in layers(torch.bfloat16).items()}
    times = timed({name: run for name, (run, _) in layers(torch.float32).items()})
    first = next(iter(times.values()))
    rows = [f"| {name} | {kept[name]:.0f} | {times[name] / first:.2f} |" for name in times]
    head = ["| mix and divergence | way | kernels | bytes kept | time |", "|---|---|---|---|---|"]
    return [
        "\n".join(["| layer (lerp, mse) | bytes kept | time |", "|---|---|---|", *rows]),
        "\n".join([*head, *(row for pair in PAIRS for row in mix_rows(*pair))]),
    ]


def layers(dtype: torch.dtype) -> dict[str, tuple[Run, list[Tensor]]]:
    return {
        "plain, all of it trains": plain_layer(dtype),
        "expanded": expanded_layer(dtype, False),
        "expanded, checkpoint_pretrained": expanded_layer(dtype, True),
    }


def mix_rows(interpolation: str, divergence: str) -> list[str]:
    h, ways = ways_to_mix(interpolation, divergence)
    runs: dict[str, Run] = {name: functools.partial(loss, way) for name, way in ways.items()}
    times = timed(runs)
    first = times["as it is"]
    return [
        f"| {interpolation}, {divergence} | {name} | {kernels(ways[name])} | {bytes_kept(run, [h]):.0f} "
        f"| {times[name] / first:.2f} |"
        for name, run in runs.items()
    ]


def loss(way: Mix) -> Tensor:
    mixed, per_token = way()
    return mixed.sum(dtype=torch.float32) + per_token.mean()


def ways_to_mix(interpolation: str, divergence: str) -> tuple[Tensor, dict[str, Mix]]:
    """The layer's input, and ways to mix: as it does, run again backward, compiled, and (lerp, mse) an own function."""
    gate, measure = build_interpolation(interpolation, WIDTH), DIVERGENCES[divergence]
    h = torch.randn(1, TOKENS, WIDTH).bfloat16()
    a, b = ((h + size * torch.randn(h.shape)).bfloat16().requires_grad_() for size in (0.3, 0.32))

    def mix(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        wide_a, wide_b = widen(a), widen(b)
        mixed, _ = gate(wide_a, wide_b, h)
        return mixed.to(a.dtype), measure(wide_a, wide_b)

    compiled = torch.compile(mix)
    ways: dict[str, Mix] = {
        "as it is": lambda: mix(a, b),
        "run again": lambda: checkpoint(mix, a, b, use_reentrant=False),
        "compiled": lambda: compiled(a, b),
    }
    if (interpolation, divergence) == ("lerp", "mse"):
        ways["own function"] = lambda: OwnFunction.apply(a, b, torch.tensor(0.5))
    return h, ways


def plain_layer(dtype: torch.dtype) -> tuple[Run, list[Tensor]]:
    model = llama(dtype)
    model.requires_grad_(False).model.layers[0].requires_grad_(True)
    return passes(model)


def expanded_layer(dtype: torch.dtype, checkpointed: bool) -> tuple[Run, list[Tensor]]:
    config = ctrl.ControlConfig(layers=1, checkpoint_pretrained=checkpointed, copies_dtype="base")
    return passes(ctrl.expand(llama(dtype), config))


def llama(dtype: torch.dtype) -> Any:
    config = LlamaConfig(
        vocab_size=64, hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=1, num_attention_heads=16
    )
    return LlamaForCausalLM(config).to(dtype)  # type: ignore[arg-type]


def passes(model: Any) -> tuple[Run, list[Tensor]]:
    """A pass of the model's only layer, whose input needs a gradient too, as in the middle of a model."""
    layer, states = model.train().model.layers[0], torch.randn(1, TOKENS, WIDTH).to(model.dtype).requires_grad_()
    positions = model.model.rotary_emb(states, torch.arange(TOKENS)[None])

    def decoded() -> Tensor:
        hidden: Tensor = model.model(inputs_embeds=states, use_cache=False).last_hidden_state
        return hidden

    def run() -> Tensor:
        if not hasattr(model, "control"):
            return decoded().sum(dtype=torch.float32)
        with ctrl.collect_divergence(model) as collected:
            total = decoded().sum(dtype=torch.float32)
        return total + collected.weighted()

    return run, [states, *layer.parameters(), *positions]


def bytes_kept(run: Run, skip: list[Tensor]) -> float:
    known = {tensor.untyped_storage().data_ptr() for tensor in skip}
    kept: dict[int, Any] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for at, storage in kept.items() if at not in known) / (TOKENS * WIDTH)


class Counted(TorchDispatchMode):
    """Counts the operations that are no views of a tensor."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def kernels(way: Mix) -> int:
    """Count those of both passes, after one that compiles what is to be compiled."""

    def passes() -> None:
        given = [out for out in way() if out.requires_grad]
        torch.autograd.backward(given, [torch.ones_like(out) for out in given])

    torch.compiler.reset()
    metrics.reset()
    passes()
    if metrics.generated_kernel_count:
        return int(metrics.generated_kernel_count)
    with Counted() as counted:
        passes()
    return counted.count


def timed(runs: dict[str, Run]) -> dict[str, float]:
    """Least CPU seconds of a forward and backward pass of each, in turn."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.process_time()
            run().backward()
            best[name] = min(best[name], time.process_time() - start)
    return best


if __name__ == "__main__":
    main()
