"""Invented arms whose figures are chosen here, to see that each finds its place."""

from __future__ import annotations

import numpy as np

from experiments.records import ArmResult, Estimate

TASKS = ("capitals", "continents", "past_tense", "plurals")
BASE = {"new_accuracy": Estimate(0.03, 0.01, 0.08), "kept_accuracy": Estimate(0.84, 0.79, 0.88)}


def around(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half)


def synthetic(
    arm: str, rate: float, gain: float, retention: float, kl: float = 0.2, steps: int = 60, status: str = "finished"
) -> ArmResult:
    """An invented arm that gains fast at first and forgets steadily; half-widths 0.08 and 0.03."""
    rng = np.random.default_rng(round(1e6 * (max(0.0, gain) + 2 * retention + rate)) if gain == gain else 0)
    trajectory = [{"step": 0, "gain": Estimate(0.0, 0.0, 0.0), "retention": Estimate(1.0, 1.0, 1.0)}]
    for step in range(20, steps + 1, 20):
        share = step / steps
        trajectory.append(
            {
                "step": step,
                "gain": around(gain * share**0.5, 0.08),
                "retention": around(1 + (retention - 1) * share**1.3, 0.03),
            }
        )
    card = {
        "gain": around(gain, 0.08),
        "retention": around(retention, 0.03),
        "nfr": around(0.03 + max(0.0, 0.8 * (1 - retention)), 0.02),
        "kl": around(kl, kl / 8),
        "perplexity_drift": around(kl / 2 - 0.02, 0.03),
        **{f"retention/{task}": around(retention + rng.normal(0, 0.06), 0.07) for task in TASKS},
    }
    cost = {"tokens_per_s": 612.4, "peak_memory_gb": 2.31, "seconds": 61.0}
    reason = None if status == "finished" else "loss became nan at step 23: lower the learning rate (0.003)"
    return ArmResult(arm, arm, rate, status, reason, steps, trajectory, card, cost)  # type: ignore[arg-type]


def six() -> list[ArmResult]:
    return [
        synthetic("full", 1e-3, 0.39, 0.47, 8.5),
        synthetic("full", 1e-4, 0.45, 0.88, 0.58),
        synthetic("partial", 1e-3, 0.38, 0.88, 0.91),
        synthetic("partial", 3e-4, 0.41, 0.93, 0.35),
        synthetic("control", 1e-3, 0.42, 0.975, 0.24),
        synthetic("control", 3e-4, 0.49, 1.0, 0.1),
    ]


def twelve() -> list[ArmResult]:
    """Crowded at the upper right, as good arms are."""
    more = [
        synthetic("stack", 1e-3, 0.43, 0.90, 0.4),
        synthetic("stack", 3e-4, 0.46, 0.95, 0.2),
        synthetic("slerp", 1e-3, 0.47, 0.96, 0.2),
        synthetic("slerp", 3e-4, 0.48, 0.99, 0.1),
        synthetic("replay-25-percent", 2.5e-5, 0.30, 1.01, 0.004),
        synthetic("full", 3e-3, 0.10, 0.35, 9.0, steps=20, status="failed"),
    ]
    return [*six(), *more]


def untrained() -> ArmResult:
    return ArmResult("broken", "control", 1e-3, "failed", "OutOfMemoryError: <no memory>\nsecond line")


def text_result(arm: str, drop: float, retention: float) -> ArmResult:
    card = {"new_nll_drop": Estimate(drop, drop - 0.01, drop + 0.01), "retention": Estimate(retention, 0.4, 1.1)}
    return ArmResult(arm, "full", 1e-3, "finished", None, 4, [{"step": 4, **card}], card)
