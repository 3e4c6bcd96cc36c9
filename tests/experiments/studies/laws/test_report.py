"""The mixture laws of a study's arms, from the records of each evaluation."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments.studies.laws.mixture import fit
from experiments.studies.laws.report import law_sentence, law_table, mixture_laws
from experiments.studies.queue import Store
from experiments.studies.selection import choose
from tests.helpers.planted_study import TABLE5, synthetic_store

OLD = {"data.old": {"source": "self"}}
pytestmark = pytest.mark.filterwarnings("ignore:.*experimental")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Loss of general text over the base's: (0.8 - kept accuracy) R^2 T nats, T = 1 after 40 steps."""
    monkeypatch.setattr("tests.helpers.planted_study.FAILS", None)
    monkeypatch.setattr("tests.helpers.planted_study.STEPS", (10, 20, 30, 40))
    replay = {"kind": "choice", "path": "data.replay", "values": [0.0, 0.05, 0.1, 0.25, 0.5]}
    arms = {"kind": "arms", "arms": {"stack": {}}}
    return synthetic_store(tmp_path, TABLE5, {"arm": arms, "replay": replay}, report={"law": "replay"}, overrides=OLD)


@pytest.mark.slow
def test_evaluations_on_the_way_give_the_law_its_tokens(store: Store, tmp_path: Path) -> None:
    arms = choose(store.config, store.trials(), tmp_path)
    table = law_table(store.config, arms, tmp_path)
    assert list(table.step) == [10, 20, 30, 40] * 5
    assert list(table.tokens) == pytest.approx([2.5e4, 5e4, 7.5e4, 1e5] * 5)
    over = (0.8 - TABLE5["stack"][1]) * table.ratio**2 * table.step / 40
    assert list(table.loss_kept - table.base_kept) == pytest.approx(list(over))
    [said], pictures = mixture_laws(store.config, arms, tmp_path, draws=10)
    assert "losses go as T to the power of 1.00 [1.00,1.00] (general text)" in said
    assert "The last of 4 evaluations, which the fit had not seen, was missed by .000 [.000,.000] nats" in said
    assert "(general text; .026 by the one before)" in said  # .14 R^2 / 4, rms over five R
    legend = pictures["stack"].axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["25k", "50k", "75k", "100k", "the longest, predicted"]


@pytest.mark.slow
def test_on_the_way_of_a_falling_learning_rate_nothing_is_comparable(store: Store, tmp_path: Path) -> None:
    config = store.config.model_copy(update={"overrides": {**OLD, "training.schedule": "linear"}})
    arms = choose(store.config, store.trials(), tmp_path)
    assert list(law_table(config, arms, tmp_path).step) == [40] * 5
    assert "no term in tokens" in mixture_laws(config, arms, tmp_path, draws=2)[0][0]
    factor = config.search["replay"].model_copy(update={"times": True})
    factors = {"search": {**config.search, "replay": factor}, "overrides": {**OLD, "data.replay": 0.4}}
    table = law_table(config.model_copy(update=factors), arms, tmp_path)
    assert sorted(table.ratio.unique()) == pytest.approx([0.8, 0.9, 0.96, 0.98, 1])  # 1 - .4 of each pick


@pytest.mark.slow
def test_law_of_each_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loss over the base's: (0.8 - kept accuracy) R^2 nats, R = 1 - replay; .05 nats are what may be lost."""
    monkeypatch.setattr("tests.helpers.planted_study.FAILS", None)
    replay = {"kind": "choice", "path": "data.replay", "values": [0.0, 0.05, 0.1, 0.25, 0.5]}
    truth = {name: TABLE5[name] for name in ("full", "stack", "lerp8-mse")}
    arms = {"kind": "arms", "arms": {name: {} for name in truth}}
    store = synthetic_store(tmp_path, truth, {"arm": arms, "replay": replay}, report={"law": "replay"}, overrides=OLD)
    chosen = choose(store.config, store.trials(), tmp_path)
    table = law_table(store.config, chosen, tmp_path)
    full = table[(table.arm == "full") & (table.step == 40)]
    assert list(full.ratio) == pytest.approx([1, 0.95, 0.9, 0.75, 0.5])
    assert list(full.loss_kept - full.base_kept) == pytest.approx([0.4 * r**2 for r in full.ratio])
    assert not table.nats.any()
    sentences, pictures = mixture_laws(store.config, chosen, tmp_path, draws=10)
    assert list(pictures) == list(truth)
    assert sentences[0].startswith("Mixture law of full: no replayed share up to 50% keeps the loss of general text")
    most = 1 - (0.05 / (0.8 - truth["stack"][1])) ** 0.5
    assert f"Mixture law of stack: replaying {most:.0%} or more" in sentences[1]
    assert "even without replay (95 % interval of the share that is needed: [0%,0%])" in sentences[2]
    assert all("in the share of wrong answers (its answers have no likelihood here)" in said for said in sentences)
    assert all("by .000 [.000,.000] nats (general text; " in said for said in sentences)
    assert all("takes 4 evaluations of each run at a constant learning rate, and here is 2." in s for s in sentences)
    assert pictures["full"].axes[0].get_ylabel() == "share of wrong answers"
    few = [arm for arm in chosen if arm.trial.picks["replay"] in (0.0, 0.5)]
    assert mixture_laws(store.config, few, tmp_path)[0][0].startswith("No mixture law of full: a mixture law needs")


@pytest.mark.slow
def test_points_that_follow_no_power_law_are_called_so() -> None:
    ratio = [0.5, 0.75, 0.9, 0.95, 0.99, 1.0]
    table = pd.DataFrame({"ratio": ratio, "tokens": 1e4, "loss_new": [1 - 0.3 * r**2 for r in ratio]})
    scattered = fit(table.assign(loss_kept=[4.22, 4.19, 4.02, 4.0, 4.07, 4.47]), 3.74, draws=20)
    assert "The exponent of general text ended at its bound" in law_sentence("full", scattered, nats=True)
    lawful = fit(table.assign(loss_kept=[3.7 + 0.4 * r**3 for r in ratio]), 3.74, draws=20)
    assert "bound" not in law_sentence("full", lawful, nats=True)


@pytest.mark.slow
def test_no_law_spans_two_arms_whose_names_agree_in_three_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.helpers.planted_study.FAILS", None)
    replay = {"kind": "choice", "path": "data.replay", "values": [0.0, 0.5]}
    decays = {"kind": "choice", "path": "training.weight_decay", "values": [0.12341, 0.12342]}
    search = {"decay": decays, "replay": replay}
    store = synthetic_store(tmp_path, {"arm": (0.5, 0.7)}, search, report={"law": "replay"}, overrides=OLD)
    table = law_table(store.config, choose(store.config, store.trials(), tmp_path), tmp_path)
    assert list(table.groupby("arm", sort=False).ratio.nunique()) == [2, 2]
    assert list(dict.fromkeys(table.arm)) == ["decay=0.123 (trial 0)", "decay=0.123 (trial 2)"]


@pytest.mark.parametrize(("rise", "said"), [(0.06, "even without replay"), (0.4, "no replayed share up to 50%")])
def test_a_law_at_its_end_has_an_interval_too(rise: float, said: str) -> None:
    """Five runs with noise do not show that no replay is needed, nor that none suffices."""
    rng = np.random.default_rng(3)
    ratios = (0.5, 0.6, 0.75, 0.9, 1.0)
    kept = [3 + rise * r**1.5 + rng.normal(0, 0.03) for r in ratios]
    columns = {"ratio": ratios, "tokens": 1e5, "loss_new": [2 + 0.1 * (1 - r) for r in ratios], "loss_kept": kept}
    sentence = law_sentence("x", fit(pd.DataFrame(columns), 3.0, 0.05, 100), nats=True)
    found = re.search(
        rf"{re.escape(said)}.* \(95 % interval of the share that is needed: \[(\d+)%,(\d+)%\]\)", sentence
    )
    assert found is not None
    assert int(found[1]) < int(found[2])
