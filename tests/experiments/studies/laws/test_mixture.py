"""The mixture law over losses made from known parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.studies.laws import mixture
from experiments.studies.laws.mixture import TooFewRatios, fit
from experiments.studies.laws.plot import plot_law
from experiments.studies.laws.power import PowerLaw

NEW = PowerLaw(a=0.30, s=-0.6, t=-0.4, b=1.8, unit=4e6)
KEPT = PowerLaw(a=0.20, s=1.5, t=0.7, b=2.5, unit=4e6)
RATIOS = (0.2, 0.35, 0.5, 0.75, 0.9, 1.0)


def table(noise: float = 0.0, seed: int = 0, horizons: tuple[float, ...] = (5e5, 1e6, 2e6, 4e6)) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [(r, t) for t in horizons for r in RATIOS]
    ratio, tokens = np.array(rows).T
    losses = {
        f"loss_{k}": law(ratio, tokens) + rng.normal(0, noise, len(rows)) for k, law in (("new", NEW), ("kept", KEPT))
    }
    return pd.DataFrame({"ratio": ratio, "tokens": tokens, **losses})


def test_planted_parameters_are_recovered_without_noise() -> None:
    law = fit(table(), base_kept=2.5, epsilon=0.1, draws=5)
    for found, planted in ((law.new, NEW), (law.kept, KEPT)):
        assert (found.a, found.s, found.t, found.b) == pytest.approx(
            (planted.a, planted.s, planted.t, planted.b), rel=1e-3
        )
    assert law.critical_ratio.value == pytest.approx(0.5 ** (1 / 1.5), rel=1e-3)  # 0.2 R^1.5 = 0.1
    assert max(missed.largest for missed in law.errors.values()) < 1e-3
    assert set(law.errors) == {"ratio new", "ratio kept", "horizon new", "horizon kept"}


def test_one_horizon_leaves_the_law_in_the_ratio_alone() -> None:
    law = fit(table(horizons=(4e6,)), base_kept=2.5, draws=5)
    assert law.kept.t == 0
    assert (law.kept.a, law.kept.s, law.kept.b) == pytest.approx((0.2, 1.5, 2.5), rel=1e-3)
    assert set(law.errors) == {"ratio new", "ratio kept"}


@pytest.mark.parametrize("count", [2, 3])
def test_few_horizons_leave_the_longest_alone(count: int) -> None:
    """Not mixed, as if they were one: the law is that of the longest T."""
    few = fit(table(horizons=(1e6, 2e6, 4e6)[-count:]), base_kept=2.5, draws=3)
    one = fit(table(horizons=(4e6,)), base_kept=2.5, draws=3)
    assert (few.kept, few.new, few.predicted) == (one.kept, one.new, {})
    assert (few.horizons, one.horizons) == (count, 1)


@pytest.mark.slow
def test_the_longest_horizon_is_predicted_by_a_law_that_holds_alone() -> None:
    law = fit(table(noise=0.002), base_kept=2.5, draws=20)
    missed = law.errors["horizon kept"]
    assert missed.rms.high is not None
    assert missed.rms.high < missed.plain  # that it stays as it was
    assert law.exponent("kept", "t").value == pytest.approx(KEPT.t, abs=0.1)
    turned = table(noise=0.002)  # what was forgotten comes back at the end
    turned.loc[turned.tokens == 4e6, "loss_kept"] = (
        table(noise=0.002, seed=1).query("tokens == 2e6")["loss_kept"].values
    )
    missed = fit(turned, base_kept=2.5, draws=3).errors["horizon kept"]
    assert missed.rms.value > 5 * missed.plain


def test_runs_that_lack_an_evaluation() -> None:
    """A run without the longest T is left out; a T that not all have is."""
    whole = table().assign(run=lambda t: t.ratio.astype(str))
    stopped = whole[(whole.ratio != 0.35) | (whole.tokens < 4e6)]
    law = fit(stopped, base_kept=2.5, draws=2)
    assert (set(law.table.ratio), law.horizons) == (set(RATIOS) - {0.35}, 4)
    gap = whole[(whole.ratio != 0.35) | (whole.tokens != 1e6)]
    law = fit(gap, base_kept=2.5, draws=2)
    assert (set(law.table.ratio), set(law.table.tokens), law.horizons) == (set(RATIOS), {4e6}, 3)


@pytest.mark.slow
def test_a_run_strays_as_a_whole() -> None:
    """Noise that is the same at each T of a run says as little about R as at one T: the interval is no narrower."""
    stray = dict(zip(RATIOS, np.random.default_rng(3).normal(0, 0.01, len(RATIOS)), strict=True))
    widths = []
    for horizons in ((4e6,), tuple(np.linspace(1e6, 4e6, 8))):
        noisy = table(horizons=horizons)
        noisy["loss_kept"] += noisy["ratio"].map(stray)
        found = fit(noisy, base_kept=2.5, epsilon=0.1, draws=60).critical_ratio
        assert found.low is not None
        assert found.high is not None
        widths.append(found.high - found.low)
    assert widths[1] > 0.6 * widths[0]


@pytest.fixture
def kept_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what the critical ratio does not need: the draws of the other loss, and errors on held-out ratios."""
    with_draws = mixture._with_draws

    def drawn(table: pd.DataFrame, kind: str, draws: int, rng: np.random.Generator) -> Any:
        return with_draws(table, kind, draws if kind == "kept" else 0, rng)

    monkeypatch.setattr(mixture, "_with_draws", drawn)
    monkeypatch.setattr(mixture, "_without_each_ratio", lambda *_: None)


@pytest.mark.slow
@pytest.mark.usefixtures("kept_alone")
def test_interval_of_the_critical_ratio_covers_the_planted_one() -> None:
    truth = KEPT.largest_ratio(2.6, 4e6)
    hits = 0
    for seed in range(20):
        found = fit(table(noise=0.004, seed=seed), base_kept=2.5, epsilon=0.1, draws=40, seed=seed).critical_ratio
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    assert 0.8 <= hits / 20 <= 1.0  # 95 % less 3 standard errors of 20 tables, and 40 draws cut the tails


@pytest.mark.slow
@pytest.mark.usefixtures("kept_alone")
def test_intervals_of_five_runs_cover_the_planted_ratio() -> None:
    """Five runs fix three parameters, so two are left to show how far a run strays. Without Student's t: 75 in 100."""
    rng, ratios, law, hits, runs = np.random.default_rng(1), np.array([0.1, 0.3, 0.5, 0.7, 0.9]), KEPT, 0, 40
    truth = law.largest_ratio(2.6, 4e6)
    for seed in range(runs):
        losses = {f"loss_{kind}": law(ratios, 4e6) + rng.normal(0, 0.004, 5) for kind in ("new", "kept")}
        rows = pd.DataFrame({"ratio": ratios, "tokens": 4e6, **losses})
        found = fit(rows, base_kept=2.5, epsilon=0.1, draws=60, seed=seed).critical_ratio
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= truth <= found.high
    assert hits / runs >= 0.85  # 95 % less 3 standard errors of 40 tables


@pytest.mark.slow
def test_held_out_error_shows_a_law_that_does_not_hold() -> None:
    bent = table()
    bent["loss_kept"] += 0.1 * np.sin(12 * bent["ratio"])
    good, bad = (fit(t, base_kept=2.5, draws=3).errors["ratio kept"].rms.value for t in (table(0.002), bent))
    assert bad > 5 * good


def test_a_kept_loss_that_no_ratio_keeps_has_no_critical_ratio() -> None:
    law = fit(table(), base_kept=2.0, epsilon=0.1, draws=5)  # the law's floor is 2.5
    assert np.isnan(law.critical_ratio.value)
    assert (law.critical_ratio.low, law.critical_ratio.high) == (0, 0)  # of the draws too
    assert plot_law(law).axes[1].get_title(loc="left").startswith("kept text")


@pytest.mark.slow
def test_rows_of_the_base_give_its_loss_and_are_not_fitted() -> None:
    start = pd.DataFrame({"ratio": [0.0, 1.0], "tokens": 0.0, "loss_new": [9.0, 9.0], "loss_kept": [2.4, 2.6]})
    with_base = fit(pd.concat([start, table()], ignore_index=True), epsilon=0.1, draws=3)
    assert with_base.base_kept == pytest.approx(2.5)
    assert with_base.kept == fit(table(), base_kept=2.5, epsilon=0.1, draws=3).kept


def test_faults_say_what_is_missing() -> None:
    few = table()
    few = few[few["ratio"] >= 0.5]
    with pytest.raises(TooFewRatios, match=r"at least 5 different ratios above 0, but the table has 4"):
        fit(few, base_kept=2.5)
    with pytest.raises(ValueError, match="base_kept is unknown"):
        fit(table())
    with pytest.raises(ValueError, match="lacks loss_kept"):
        fit(table().drop(columns="loss_kept"), base_kept=2.5)
    percent = table()
    percent["ratio"] *= 100
    with pytest.raises(ValueError, match=r"between 0 and 1, but got 20\.0 to 100\.0"):
        fit(percent, base_kept=2.5)
