"""Seconds of each suite for one checkpoint, and what the base model scores on each task.

    python benchmarks/evaluation.py                                   # the quickstart's suites
    python benchmarks/evaluation.py --set 'evaluation.suites=[instructions]' --repeat 1

Wall and CPU seconds, the least of `repeat` measurements; wall times need a quiet machine.
"""

from __future__ import annotations

import argparse
import time

import torch

from experiments.cli import overrides
from experiments.config import load_config
from experiments.data.mixture import ExperimentData
from experiments.evaluation.evaluate import Evaluation
from experiments.models import Precision, load_base
from experiments.records import Record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the config")
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    config = load_config(args.config, dict(overrides(args.set)))
    model, tokenizer = load_base(config.base_model)
    precision = Precision(config.precision)
    evaluation = Evaluation(config, tokenizer, ExperimentData(config, tokenizer).tasks)
    evaluation.prepare(model, precision)
    print(f"{config.base_model}, {precision.name}, {torch.get_num_threads()} threads")
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
    print(f"{'total':>14} {totals[0]:7.2f} s wall {totals[1]:7.2f} s CPU")


def accuracies(records: list[Record]) -> None:
    by_task: dict[str, list[int]] = {}
    for record in records:
        if record.correct is not None:
            by_task.setdefault(f"{record.task}, {record.form}", []).append(record.correct)
    for name, correct in by_task.items():
        print(f"{'':>15}{name}: {sum(correct) / len(correct):.2f} of {len(correct)}")


if __name__ == "__main__":
    main()
