"""A whole model that trains is not the base any more where its training goes on: the base's numbers are on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.evaluation.evaluate import Suites
from experiments.evaluation.suite import SuiteContext
from experiments.measure import watch as room
from experiments.measure.config import measure_config
from experiments.measure.watch import Watch
from tests.helpers.byte_level import byte_tokenizer
from tests.helpers.measured import tiny_model

CONFIG = measure_config("", None, ["drift"], None, "fp32", 0, {"drift.replies": 1, "drift.reply_tokens": 4})


def suites() -> Suites:
    return Suites.drawn(CONFIG.evaluation, SuiteContext(0, ""), byte_tokenizer(), ())


def test_divergences_of_a_resumed_training_are_from_its_base(tmp_path: Path) -> None:
    trained = tiny_model(0.3)
    Watch.begun(tmp_path, CONFIG, suites(), trained, 1.0, trains_whole=True)  # of an earlier training
    first = Watch.begun(tmp_path, CONFIG, suites(), tiny_model(), 1.0, trains_whole=True)
    kl = first.measure(2, trained)["kl"].value
    again = Watch.resumed(tmp_path, CONFIG, suites(), trained, 1.0, step=2, trains_whole=True)
    assert again.measure(4, trained)["kl"].value == kl > 0
    with_base = Watch.resumed(tmp_path, CONFIG, suites(), tiny_model(), 1.0, step=2)  # adapters off
    assert with_base.measure(4, trained)["kl"].value == kl


@pytest.mark.parametrize("damage", ["gone", "other", "of an earlier version"])
def test_without_them_they_are_not_measured(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(room.logger, "warning", lambda text, *args: said.append(text % args))
    trained, whole = tiny_model(0.3), damage != "of an earlier version"
    Watch.begun(tmp_path, CONFIG, suites(), tiny_model(), 1.0, trains_whole=whole).measure(2, trained)
    for file in tmp_path.glob("base/drift/*.safetensors"):
        file.write_bytes(b"x") if damage == "other" else file.unlink()
    again = Watch.resumed(tmp_path, CONFIG, suites(), trained, 1.0, step=2, trains_whole=True)
    assert "kl" not in again.measure(4, trained)
    assert said[0].startswith("drift: not measured from step 2 on, since ")
