"""The mixture law of a study with a term in tokens, from the records of each evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.studies.laws.report import law_table, mixture_laws
from experiments.studies.queue import Store
from experiments.studies.selection import choose
from tests.helpers.studies import TABLE5, synthetic_store

pytestmark = pytest.mark.filterwarnings("ignore:.*experimental")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Loss of general text over the base's: (0.8 - kept accuracy) R^2 T nats, T = 1 after 40 steps."""
    monkeypatch.setattr("tests.helpers.studies.FAILS", None)
    monkeypatch.setattr("tests.helpers.studies.STEPS", (10, 20, 30, 40))
    replay = {"kind": "choice", "path": "training.weight_decay", "values": [0.0, 0.05, 0.1, 0.25, 0.5]}
    arms = {"kind": "arms", "arms": {"stack": {}}}
    return synthetic_store(tmp_path, TABLE5, {"arm": arms, "replay": replay}, report={"law": "replay"})


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
    config = store.config.model_copy(update={"overrides": {"training.schedule": "linear"}})
    arms = choose(store.config, store.trials(), tmp_path)
    assert list(law_table(config, arms, tmp_path).step) == [40] * 5
    assert "no term in tokens" in mixture_laws(config, arms, tmp_path, draws=2)[0][0]
