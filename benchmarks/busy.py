"""Seconds of a training step alone and next to a busy process, with the bench's waiting of threads and with OpenMP's.

    python benchmarks/busy.py                          # the ratios; needs a quiet machine
    python benchmarks/busy.py --rounds 5 --layers 30   # a model of the quickstart's size
    python benchmarks/busy.py --set GOMP_SPINCOUNT=10000   # another value in place of the bench's

Each measurement is a process of its own with as many threads as the machine has cores: OpenMP reads its settings once.
The four kinds are measured in turn, round after round, so that a machine that drifts drifts for all.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time

from experiments.common.threads import OWN, wait_asleep

OPENMP, BENCH = "OpenMP's", "the bench's"
KINDS = [(waiting, busy) for waiting in (OPENMP, BENCH) for busy in (False, True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps of a measurement; the median counts")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="in place of the bench's")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(step_seconds(args.steps, args.layers))
        return
    found: dict[tuple[str, bool], list[float]] = {kind: [] for kind in KINDS}
    for number in range(args.rounds):
        for waiting, busy in KINDS:
            found[waiting, busy].append(measured(environment(waiting, args.set), busy, args.steps, args.layers))
        print(f"round {number + 1}: " + ", ".join(f"{found[kind][-1]:.3f} s" for kind in KINDS), flush=True)
    seconds = {kind: statistics.median(times) for kind, times in found.items()}
    for waiting in (OPENMP, BENCH):
        alone, next_to = seconds[waiting, False], seconds[waiting, True]
        print(f"{waiting:<12} alone {alone:.3f} s, next to a busy process {next_to:.3f} s: {next_to / alone:.2f} times")
    print(f"alone, {BENCH} to {OPENMP}: {seconds[BENCH, False] / seconds[OPENMP, False]:.3f} times")


def environment(waiting: str, instead: list[str]) -> dict[str, str]:
    """Return the environment of a measurement. instead: NAME=VALUE in place of the bench's own settings."""
    values = {name: value for name, value in os.environ.items() if name not in (*OWN, "OMP_NUM_THREADS")}
    if waiting == BENCH:
        values |= dict(one.split("=", 1) for one in instead)
        wait_asleep(values)
    return values


def measured(environment: dict[str, str], busy: bool, steps: int, layers: int) -> float:
    """Return the seconds of a step in a process of its own. busy: while another process computes all the time."""
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"]) if busy else None
    try:
        command = [sys.executable, __file__, "--child", "--steps", str(steps), "--layers", str(layers)]
        return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
    finally:
        if other:
            other.kill()
            other.wait()


def step_seconds(steps: int, layers: int) -> float:
    """Time steps of a model with the quickstart's widths, after two that are not timed."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = LlamaConfig(hidden_size=576, intermediate_size=1536, num_attention_heads=9, num_key_value_heads=3,
                        num_hidden_layers=layers, vocab_size=8192)  # fmt: skip
    model = LlamaForCausalLM(shape)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    rows = torch.randint(8192, (8, 48))
    times = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        model(input_ids=rows, labels=rows).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return statistics.median(times[2:])


if __name__ == "__main__":
    main()
