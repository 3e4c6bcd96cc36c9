"""A study against the paper's table: its columns, its arms, the agreement of ranks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from experiments.records import Estimate
from experiments.reporting.text import with_interval
from experiments.studies.load import load_study
from experiments.studies.queue import Store
from experiments.studies.report import paper as paper_module
from experiments.studies.report.paper import agreement, at_each, compared, paper_table, spearman
from experiments.studies.selection import choose
from experiments.studies.trial_results import result_of


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*experimental")
def test_all_arms_at_one_rate_against_the_paper(some: tuple[Store, Path]) -> None:
    """Against scipy, from the trials' own figures of all items."""
    store, _ = some
    said = at_each(store.config, store.trials())
    assert len(said) == 2  # rate 2 has lost an arm
    for rate, text in zip((1, 3), said, strict=True):
        ours = {
            str(t.picks["arm"]): result_of(t.runs[0]).scorecard["kept_accuracy"].value
            for t in store.trials()
            if t.runs and t.picks["rate"] == rate
        }
        known = spearmanr(list(ours.values()), paper_table().loc[list(ours), "kept"]).statistic
        assert text.startswith(f"With all {len(ours)} arms at rate={rate}: Spearman in kept accuracy")
        assert with_interval(Estimate(known)).split(" ")[0] in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*experimental")
def test_papers_columns_and_rank_agreement(some: tuple[Store, Path]) -> None:
    paper = paper_table()
    assert paper.loc["full", "average"] == pytest.approx(34.275)  # 34.3 in its Table 5
    assert paper.loc["lerp8-mse", "average"] == pytest.approx(56.525)
    store, root = some
    table = compared(choose(store.config, store.trials(), root))
    for found in agreement(table):
        known = spearmanr(table[f"our_{found.column}"], table[f"paper_{found.column}"]).statistic
        assert found.rho.value == pytest.approx(known)
        assert found.rho.low is not None
        assert found.rho.low <= known
    rng = np.random.default_rng(0)
    x, y = rng.integers(5, size=(2, 4, 9)).astype(float)
    assert spearman(x, y) == pytest.approx([spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)])


def in_both(ours: np.ndarray, theirs: np.ndarray) -> pd.DataFrame:
    columns = ("new", "kept", "average")
    return pd.DataFrame({f"our_{c}": ours for c in columns} | {f"paper_{c}": theirs for c in columns})


@pytest.mark.parametrize("arms", [5, 8, 13])
def test_arms_in_one_order_do_not_fix_the_rank_correlation(arms: int) -> None:
    """Draws of one order all have a correlation of 1: `1.00 [1.00,1.00]` of five arms must not be printed."""
    order = np.arange(float(arms))
    for sign in (1, -1):
        rho = agreement(in_both(order, sign * order))[0].rho
        assert rho.low is not None
        assert rho.high is not None
        assert rho.value == pytest.approx(sign)
        assert rho.high - rho.low > 3 / arms**2


def test_few_arms_of_no_common_order_are_rarely_called_agreeing(monkeypatch: pytest.MonkeyPatch) -> None:
    """1 interval in 40 may lie above 0; percentiles of the bootstrap alone were, 1 in 16 of five arms."""
    monkeypatch.setattr(paper_module, "DRAWS", 400)
    rng, runs = np.random.default_rng(1), 300
    above = sum((agreement(in_both(*rng.normal(size=(2, 5))), i)[0].rho.low or 0) > 0 for i in range(runs))
    assert above / runs <= 0.025


def test_table5_has_the_papers_arms() -> None:
    study = load_study("table5")
    rows = {*study.search["arm"].points(), *(item.label for item in study.posthoc)}
    assert rows == set(paper_table().index)
