"""Seconds of each suite for one checkpoint, of preparing them once, and what the model scores on each task.

    python benchmarks/evaluation.py                                   # the quickstart's suites
    python benchmarks/evaluation.py --set 'evaluation.suites=[instructions]' --repeat 1
    python benchmarks/evaluation.py --set 'evaluation.suites=[kept]' --set evaluation.aa_floor=true   # and its flips
    python benchmarks/evaluation.py --trained mlruns/runs/quickstart-... control 3e-4   # an arm instead of the base

Wall and CPU seconds, the least of `repeat` measurements; wall times need a quiet machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from experiments.cli.run import overrides
from experiments.config import load_config
from experiments.evaluation.cache import BaseCache
from experiments.evaluation.evaluate import Suites
from experiments.evaluation.suite import SuiteContext
from experiments.models.base import load_base
from experiments.models.precision import Precision, device
from experiments.records import Record
from experiments.reporting.text import with_interval
from experiments.runs.data import ExperimentData
from experiments.runs.trained import load_trained
from experiments.scorecard import aa_floor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the config")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--trained", nargs=3, metavar=("RUN", "ARM", "RATE"), help="measure this model, not its base")
    args = parser.parse_args()
    config = load_config(args.config, dict(overrides(args.set)))
    model, tokenizer = load_base(config.base_model, config.data.system, config.data.template_options)
    precision = Precision(config.precision)
    print(f"{config.base_model}, {precision.name}, {torch.get_num_threads()} threads")
    tasks = ExperimentData(config, tokenizer).tasks
    state: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        cache = BaseCache(Path(folder), model, tokenizer, precision)
        for name in ("prepare", "prepare again"):  # the second time from the cache, as another process would
            context = SuiteContext(config.seed, config.base_model)
            suites = Suites.drawn(config.evaluation, context, tokenizer, tasks)
            wall, cpu = time.perf_counter(), time.process_time()
            evaluation = suites.prepare(model, precision, cache, state)
            print(f"{name:>14} {time.perf_counter() - wall:7.2f} s wall {time.process_time() - cpu:7.2f} s CPU")
            state = evaluation.state()
    if args.trained:
        model = load_trained(Path(args.trained[0]), args.trained[1], float(args.trained[2])).to(device())
    totals = [0.0, 0.0]
    for name in evaluation.suites:
        measured = []
        for _ in range(args.repeat):
            wall, cpu = time.perf_counter(), time.process_time()
            records = evaluation.evaluate(model, precision, (name,), progress=False)
            measured.append((time.perf_counter() - wall, time.process_time() - cpu))
        least = [min(column) for column in zip(*measured, strict=True)]
        totals = [total + value for total, value in zip(totals, least, strict=True)]
        print(f"{name:>14} {least[0]:7.2f} s wall {least[1]:7.2f} s CPU")
        accuracies(records)
        if name == "kept" and config.evaluation.has_floor:
            flips(records, suites.reworded().prepare(model, precision).evaluate(model, precision, progress=False))
    print(f"{'total':>14} {totals[0]:7.2f} s wall {totals[1]:7.2f} s CPU")


def accuracies(records: list[Record]) -> None:
    by_task: dict[str, list[int]] = {}
    for record in records:
        if record.correct is not None:
            by_task.setdefault(f"{record.task}, {record.form}", []).append(record.correct)
    for name, correct in by_task.items():
        print(f"{'':>15}{name}: {sum(correct) / len(correct):.2f} of {len(correct)}")


def flips(records: list[Record], again: list[Record]) -> None:
    """Of each task that was asked in other words: answers that were right in one wording and wrong in the other."""
    first = {record.key: record.correct for record in records}
    by_task: dict[str, list[tuple[int | None, int | None]]] = {}
    for record in again:
        by_task.setdefault(f"{record.task}, {record.form}", []).append((first[record.key], record.correct))
    for name, pairs in by_task.items():
        lost, won = pairs.count((1, 0)), pairs.count((0, 1))
        print(f"{'':>15}{name} in other words: {lost} lost and {won} won of {len(pairs)}")
    floor = aa_floor(records, again)
    print(f"{'':>15}A/A floor: " + ", ".join(f"{k} {with_interval(v)}" for k, v in floor.items() if "fr" in k))


if __name__ == "__main__":
    main()
