"""Trials with records on disk and a planted truth: what a report should find is known beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.records import ArmResult, Record, read_records, write_records
from experiments.runs.result_file import write_result
from experiments.scorecard import scorecard
from experiments.scorecard.halves import even
from experiments.studies.config import Objective
from experiments.studies.queue import Store
from experiments.studies.trial import TrialFailed
from experiments.studies.trial_results import TrialOutcome
from tests.helpers.toy_study import open_store

Truth = Mapping[str, tuple[float, float]]  # arm -> accuracy on the new and on the kept task after training
BASE = (0.1, 0.8)
STEPS = (20, 40)
FAILS = 1  # the trial without values
TABLE5: Truth = {
    "full": (0.62, 0.40),
    "partial": (0.58, 0.55),
    "stack": (0.52, 0.66),
    "hybrid": (0.55, 0.68),
    "lerp8": (0.56, 0.65),
    "lerp8-mse": (0.57, 0.78),
    "lerp8-cosine": (0.54, 0.77),
    "dlerp8": (0.58, 0.72),
    "dlerp8-mse": (0.53, 0.70),
    "dlerp8-cosine": (0.55, 0.74),
    "dlerpin8": (0.50, 0.72),
    "plerp8": (0.60, 0.58),
    "moe8": (0.48, 0.70),
}


def records(seed: int, new: float, kept: float, items: int = 120) -> list[Record]:
    rng = np.random.default_rng(seed)

    def answers(rate: float) -> list[int]:
        return [int(right) for right in rng.random(items) < rate]

    options = ("a", "b", "c", "d")
    return [
        *(Record("new", "sums", "generate", f"n{i}", c, parsed=True) for i, c in enumerate(answers(new))),
        *(Record("kept", "capitals", "chat", f"k{i}", c, options=options) for i, c in enumerate(answers(kept))),
        *(Record("drift", "replies", "kl", f"d{i}", value=(0.8 - kept) ** 2 + 0.01 * i, tokens=20) for i in range(8)),
        *(Record("text", "general", "nll", f"t{i}", value=3.8 - kept + 0.1 * i, tokens=50) for i in range(8)),
    ]


EXPANDED = {"arms.0.method": "control", "arms.0.control.layers": 1}


def synthetic_store(folder: Path, truth: Truth, search: Mapping[str, Any] | None = None, **changes: Any) -> Store:
    """Arms at the learning rates 1 (best), 2 and 3, each worse than the one before. Trial 1 fails.

    A pick `replay` makes the forgetting, and so the loss of general text above the base's, fall as (1 - replay)^2.
    """
    search = search or {
        "arm": {"kind": "arms", "arms": {name: EXPANDED if "lerp" in name else {} for name in truth}},
        "rate": {"kind": "choice", "path": "arms.0.learning_rates.0", "values": [1.0, 2.0, 3.0]},
    }
    values = {"report": {"select": "rate", "paper": "table5"}, "search": search, "failures": 9}
    store = open_store(folder, **(values | changes))
    store.work(lambda number, picks, report: synthetic_trial(folder, store, truth, number, picks), lambda text: None)
    return store


def synthetic_trial(folder: Path, store: Store, truth: Truth, number: int, picks: dict[str, Any]) -> TrialOutcome:
    if number == FAILS:
        raise TrialFailed("loss became nan at step 7: lower the learning rate (2) or raise warmup_steps (5)")
    arm, rate = str(picks.get("arm", "arm")), float(picks.get("rate", 1.0))
    new, kept = (end + 0.08 * (rate - 1) * (start - end) for start, end in zip(BASE, truth[arm], strict=True))
    kept = BASE[1] - (BASE[1] - kept) * (1 - float(picks.get("replay", 0))) ** 2
    run = folder / "runs" / f"r{number}"
    base = records(0, *BASE)
    write_records(run / "base" / "items.jsonl", base)
    trajectory: list[dict[str, Any]] = [{"step": 0, **_headline(base, base)}]
    for i, step in enumerate(STEPS, start=1):
        share = i / len(STEPS)
        after = records(number, BASE[0] + share * (new - BASE[0]), BASE[1] + share * (kept - BASE[1]))
        write_records(run / "arms" / f"{arm}-{rate:g}" / f"items-{step}.jsonl", after)
        trajectory.append({"step": step, **_headline(base, after)})
    cost = {"tokens": 1e5, "seconds": 60.0, "tokens_per_s": 1666.0, "peak_memory_gb": 1.7, "trainable_parameters": 28e6}
    card = scorecard(base, after, 200)
    result = ArmResult(arm, "full", rate, "finished", None, STEPS[-1], trajectory, card, cost)
    write_result(run / "arms" / f"{arm}-{rate:g}", result)
    figures = [card[objective.figure].value for objective in store.config.objectives]
    return TrialOutcome(figures, {}, [{"seed": 0, "folder": f"runs/r{number}", "result": result.to_dict()}])


def _headline(base: list[Record], after: list[Record]) -> dict[str, Any]:
    names = ("gain", "retention", "kept_accuracy", "new_accuracy", "kl")
    card = scorecard(base, after, 100)
    return {name: card[name] for name in names}


SOME = {name: TABLE5[name] for name in ("full", "partial", "lerp8", "lerp8-mse", "plerp8")}
MERGED = [{"arm": "lerp8-mse", "op": "merge", "name": "lerp8-mse-merged"}]


def odd(path: Path) -> list[Record]:
    return [record for record in read_records(path) if not even(record)]


def objective(figure: str, direction: str = "maximize") -> Objective:
    return Objective.model_validate({"figure": figure, "direction": direction})


GAIN = Objective.model_validate({"figure": "gain", "direction": "maximize"})
