"""The ranking of ways to train at the same gain, against straight lines between the trials' own figures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from experiments.records import ArmResult
from experiments.runs.result_file import RESULT
from experiments.studies.config import Posthoc
from experiments.studies.queue import Store
from experiments.studies.report.same_gain import _cells, _of_alphas, same_gain
from experiments.studies.selection import arm_name, choose
from experiments.studies.trial_results import record_files, result_of
from tests.helpers.planted_study import synthetic_store

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*experimental")]


def test_each_way_is_read_at_the_gain_that_all_reach(some: tuple[Store, Path]) -> None:
    store, root = some
    paths: dict[str, list[tuple[float, float, float, float]]] = {}
    for trial in sorted((t for t in store.trials() if t.runs), key=lambda t: t.picks["rate"]):
        card = result_of(trial.runs[0]).scorecard
        figures = [card[name].value for name in ("gain", "retention", "kl")]
        rate = result_of(trial.runs[0]).learning_rate
        paths.setdefault(arm_name(store.config, trial), [(0, 1, 0, 0)]).append((figures[0], *figures[1:], rate))
    target = min(max(point[0] for point in path) for path in paths.values())
    table = same_gain(store.config, store.trials(), [], root)
    assert table is not None
    assert table.head[:4] == ("way to train", "between", "retention", "p, retention")
    assert f"the gain of +{target:.2f}".replace("+0", "+") in table.note
    rows = {str(row[0]): row for row in table.rows}
    assert rows.keys() == paths.keys()
    for name, path in paths.items():
        after = next(i for i, point in enumerate(path) if point[0] >= target)
        (low, *before, low_rate), (high, *reached, rate) = path[after - 1 : after + 1]
        start, end = str(rows[name][1]).split(" to ")
        assert (start, float(end)) == ("base" if after == 1 else f"{low_rate:g}", rate)
        share = (target - low) / (high - low)
        for cell, first, second in zip((rows[name][2], rows[name][6]), before, reached, strict=True):
            assert float(str(cell).split(" ")[0]) == pytest.approx(first + share * (second - first), abs=0.006), name
    kept = [float(str(row[2]).split(" ")[0]) for row in table.rows]
    assert kept == sorted(kept, reverse=True)
    first = next(iter(paths))
    assert f"difference from {first};" in table.note
    assert [row[0] for row in table.rows if row[3] == ""] == [first]


def test_a_rate_above_the_best_is_not_read(some: tuple[Store, Path]) -> None:
    """The path goes from the lowest rate up, whatever the order of the trials."""
    store, root = some
    backwards = list(reversed(store.trials()))
    forwards, turned = (same_gain(store.config, trials, [], root) for trials in (store.trials(), backwards))
    assert forwards is not None
    assert turned is not None
    assert {row[:2] for row in forwards.rows} == {row[:2] for row in turned.rows}


def test_no_table_without_rates_records_or_two_ways(some: tuple[Store, Path]) -> None:
    store, root = some
    report = store.config.report
    unselected = store.config.model_copy(update={"report": report.model_copy(update={"select": None})})
    assert same_gain(unselected, store.trials(), [], root) is None
    by_arm = store.config.model_copy(update={"report": report.model_copy(update={"select": "arm"})})
    assert same_gain(by_arm, store.trials(), [], root) is None
    assert same_gain(store.config, store.trials(), [], root / "elsewhere") is None
    one = [t for t in store.trials() if t.picks.get("arm") == "full"]
    assert same_gain(store.config, one, [], root) is None
    single = [t for t in store.trials() if t.picks.get("rate") == 1.0]
    assert same_gain(store.config, single, [], root) is None


def test_a_way_that_gained_nothing_is_named_and_left_out(some: tuple[Store, Path]) -> None:
    """Its gain would set that of all others to next to nothing."""
    store, root = some
    full = [t for t in store.trials() if t.picks.get("arm") == "full" and t.runs]
    base = "base/items.jsonl"
    for trial in full:
        records = root / "runs" / "idle" / f"{trial.number}"
        result = result_of(trial.runs[0])
        own = records / "arms" / f"{result.arm}-{result.learning_rate:g}"
        for file in (records / base, own / f"items-{result.steps}.jsonl"):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes((root / str(trial.runs[0]["folder"]) / base).read_bytes())
        (own / RESULT).write_bytes((record_files(trial.runs[0], root)[1].parent / RESULT).read_bytes())
    idle = [
        replace(t, runs=[{**t.runs[0], "folder": f"runs/idle/{t.number}"}]) if t in full else t for t in store.trials()
    ]
    table = same_gain(store.config, idle, [], root)
    assert table is not None
    assert "full" not in {row[0] for row in table.rows}
    assert table.note.endswith("or all are below half of the highest: full.")


def test_shares_of_an_arms_change_are_a_way_of_their_own(some: tuple[Store, Path]) -> None:
    """A third of the way back, made by hand: the answers of the arm at its worst rate as if they were its WiSE-FT."""
    store, root = some
    rows = choose(store.config, store.trials(), root)
    arm = next(row for row in rows if row.name == "lerp8-mse")
    worst = next(t for t in store.trials() if t.picks == {**arm.trial.picks, "rate": 3.0})
    posthoc = (Posthoc(arm="lerp8-mse", op="wise", alpha=0.6),)
    study = store.config.model_copy(update={"posthoc": posthoc})
    row = replace(arm, name="lerp8-mse-wise-0.6", runs=worst.runs)
    table = same_gain(study, store.trials(), [*rows, row], root)
    assert table is not None
    shares = next(r for r in table.rows if r[0] == "lerp8-mse, wise")
    assert shares[1] in ("base to alpha 0.6", "alpha 0.6 to 1 itself")
    assert len(table.rows) == len({r[0] for r in table.rows}) == len(rows) + 1
    without = same_gain(study, store.trials(), rows, root)
    assert without is not None
    assert len(without.rows) == len(rows), "not made yet"


@pytest.mark.parametrize(
    ("op", "alphas", "steps", "path"),
    [
        ("lines", (0.9, 0.5), 4, ["alpha 0.5", "alpha 0.9", "1 itself"]),
        ("wise", (1.0, 0.5), 4, ["alpha 0.5", "alpha 1"]),
        ("dial", (0.25, 0.75), 4, ["alpha 0.25", "alpha 0.75"]),  # the arm's own alpha is not 1
        ("wise", (0.5,), 2, ["alpha 0.5"]),  # made of the best step's weights
    ],
)
def test_a_path_of_shares_is_in_the_order_of_the_shares(
    op: str, alphas: tuple[float, ...], steps: int, path: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def row(name: str, steps: int) -> Any:
        return SimpleNamespace(
            name=name, records=True, runs=[], result=ArmResult("x", "x", 1.0, "finished", steps=steps)
        )

    monkeypatch.setattr("experiments.studies.report.same_gain.has_name", lambda row, name: row.name == name)
    made = [Posthoc.model_validate({"arm": "x", "op": op, "alpha": alpha}) for alpha in alphas]
    study: Any = SimpleNamespace(posthoc=made)
    rows = [row("x", 4), *(row(one.label, steps) for one in made)]
    ((way, points),) = _of_alphas(study, rows, Path()).items()
    assert (way, list(points)) == (f"x, {op}", path)


def test_intervals_end_where_values_end() -> None:
    drawn = np.concatenate([[0.02], np.linspace(-0.05, 0.1, 1000)])
    assert _cells("nfr", drawn, 0.03) == (".02 [.00,.10]", ".030")
    assert _cells("kl", drawn, None)[0].split("[")[1].startswith((".00", ".000"))


def test_ways_whose_names_agree_in_three_digits_are_two_ways(tmp_path: Path) -> None:
    decays = {"kind": "choice", "path": "training.weight_decay", "values": [0.12341, 0.12342]}
    rates = {"kind": "choice", "path": "arms.0.learning_rates.0", "values": [1.0, 1.5, 2.0]}
    search = {"decay": decays, "rate": rates}
    store = synthetic_store(tmp_path, {"arm": (0.5, 0.7)}, search, report={"select": "rate"})
    table = same_gain(store.config, store.trials(), [], tmp_path)
    assert table is not None
    assert {row[0] for row in table.rows} == {"decay=0.123 (trial 0)", "decay=0.123 (trial 3)"}
