"""Models that answer as their base does, but for chance: how often does a measurement raise an alarm?

Of base, reworded base and models each answer is drawn anew with probability `floor`, all by the same law: nothing was
forgotten. The alarms are those of `control-llm measure`: the first line, flips above the A/A floor, paired tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import binom

from experiments.measure.words import sentence
from experiments.records import ArmResult, Record
from experiments.runs.baseline import score
from experiments.scorecard import significant_pairs
from experiments.scorecard.figures import FIGURES
from tests.helpers.planted_run import kept

REPETITIONS, DRAWS = 200, 400
SIDE = 0.025  # nominal rate of each end of a 95 % interval
SETTINGS = [(40, 0.3), (100, 0.05), (200, 0.1)]  # questions; share that is drawn anew


@dataclass(frozen=True)
class Alike:
    """Answers of models of one law. latent: of each question, 0 if it is answered rightly."""

    latent: np.ndarray
    floor: float

    @classmethod
    def of(cls, questions: int, floor: float, rng: np.random.Generator) -> Alike:
        return cls(answers(questions, rng), floor)

    def model(self, rng: np.random.Generator) -> list[Record]:
        """Draw a share of the answers anew, from the distribution of all answers."""
        again, count = answers(len(self.latent), rng), len(self.latent)
        drawn = np.where(rng.random(count) < self.floor, again, self.latent)
        return [kept(i, int(choice), f"facts{i % 2}") for i, choice in enumerate(drawn)]


def answers(count: int, rng: np.random.Generator) -> np.ndarray:
    return np.where(rng.random(count) < 0.7, 0, rng.integers(1, 4, count))


def most(rate: float) -> int:
    """Return the count of alarms that is passed once in 1,000 times at the nominal rate."""
    return int(binom.ppf(0.999, REPETITIONS, rate))


def measured(base: list[Record], again: list[Record], model: list[Record], seed: int) -> ArmResult:
    return ArmResult("one", "measured", 0.0, "finished", scorecard=score(base, again, model, DRAWS, seed))


@pytest.mark.slow
@pytest.mark.parametrize(("questions", "floor"), SETTINGS)
def test_alarms_of_equal_models_are_not_more_than_their_nominal_rate(questions: int, floor: float) -> None:
    alarms = dict.fromkeys(
        ("it forgot", "it knows more than before", "tasks that fell", "above the floor", "differ"), 0
    )
    for seed in range(REPETITIONS):
        rng = np.random.default_rng([seed, questions])
        alike = Alike.of(questions, floor, rng)
        base, again, first, second = (alike.model(rng) for _ in range(4))
        result = measured(base, again, first, seed)
        line = sentence(result, base, first)
        for said in list(alarms)[:3]:
            alarms[said] += said in line
        alarms["above the floor"] += (result.scorecard["nfr_above_floor"].low or 0.0) > 0
        pairs = significant_pairs({"first": [(base, first)], "second": [(base, second)]}, DRAWS, seed)
        alarms["differ"] += bool(pairs["retention"])
    nominal = {name: most(2 * SIDE if name == "differ" else SIDE) for name in alarms}
    assert all(alarms[name] <= nominal[name] for name in alarms), (alarms, nominal)


def test_a_model_that_forgot_raises_these_alarms() -> None:
    """The same way of counting sees a third of the answers lost."""
    rng = np.random.default_rng(0)
    alike = Alike.of(200, 0.05, rng)
    base, again, same = (alike.model(rng) for _ in range(3))
    lost = [kept(int(r.item), 1, r.task) if int(r.item) % 3 == 0 else r for r in base]
    result = measured(base, again, lost, 0)
    assert "it forgot" in sentence(result, base, lost)
    assert (result.scorecard["nfr_above_floor"].low or 0.0) > 0
    assert significant_pairs({"same": [(base, same)], "lost": [(base, lost)]}, DRAWS)["retention"]


@pytest.mark.parametrize("questions", [8, 40, 200])
def test_the_base_itself_has_no_change_in_any_figure(questions: int) -> None:
    rng = np.random.default_rng(questions)
    base = Alike.of(questions, 0.2, rng).model(rng)
    result = measured(base, base, list(base), 0)
    changes = {n: FIGURES[n].unchanged for n in result.scorecard if n in FIGURES and FIGURES[n].unchanged is not None}
    assert len(changes) > 5
    assert {n: result.scorecard[n].value for n in changes} == changes
    inside = {n: (e.low, u, e.high) for n, u in changes.items() if (e := result.scorecard[n]).low is not None}
    assert all(low <= unchanged <= high for low, unchanged, high in inside.values() if high is not None)  # type: ignore[operator]
    line = sentence(result, base, base)
    assert line.startswith("one lost 0 of ")
    assert "won 0" in line
    assert "forgetting is not shown (the interval holds 1)" in line
    pairs = significant_pairs({"base": [(base, base)], "copy": [(base, list(base))]}, DRAWS)
    assert not any(pairs.values())
