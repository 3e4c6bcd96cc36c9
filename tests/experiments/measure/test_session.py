"""A measured arm of an experiment has the figures of the experiment's own evaluation, to the last digit."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments.common.errors import ConfigError
from experiments.common.files import read_json, write_json
from experiments.config import parse_config
from experiments.evaluation.evaluate import Suites
from experiments.measure.base import Base
from experiments.measure.config import measure_config
from experiments.measure.models import distributions
from experiments.measure.run import measure
from experiments.measure.session import Session
from experiments.records import read_records
from experiments.runs.run import run_experiment
from tests.helpers.byte_level import byte_base, byte_tokenizer
from tests.helpers.measured import SMALL, model_folder, tiny_model
from tests.helpers.readers import build_other

pytestmark = pytest.mark.slow  # three arms are trained
ARMS = (
    {"name": "full", "method": "full"},
    {"name": "control", "method": "control", "control": {"layers": 1}},
    {"name": "lora", "method": "lora", "options": {"rank": 2}},
)


def test_figures_are_those_of_the_experiment(base: str, tmp_path: Path) -> None:
    file = tmp_path / "sums.jsonl"
    rows = [{"question": f"{i} + 1 =", "answer": str(i + 1)} for i in range(40)]
    file.write_text("\n".join(json.dumps(row) for row in rows))
    changes = {**SMALL, "new_items": 4, "drift.new_replies": 2}
    suites = ["new", "kept", "drift", "text", "instructions", "alignment"]
    evaluation = {"every": 2, "suites": suites, "bootstrap": 100, "new_items": 4, "kept_items": 4, "replies": 2,
                  "reply_tokens": 4, "perplexity_tokens": 128, "instruction_items": 1, "new_replies": 2}  # fmt: skip
    config = parse_config({
        "name": "own", "base_model": base, "precision": "fp32", "evaluation": evaluation,
        "data": {"new": {"source": "file", "path": str(file)}},
        "training": {"steps": 2, "batch_size": 2, "warmup_steps": 0},
        "arms": [{**arm, "learning_rates": [0.02]} for arm in ARMS],
    })  # fmt: skip
    own = run_experiment(config, tmp_path / "experiment", say=lambda text: None)
    trained = {arm["name"]: own.folder / "arms" / f"{arm['name']}-0.02" / "trained" for arm in ARMS}
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(Path(base) / name, trained["full"] / name)
    named = [f"{name}={folder}" for name, folder in trained.items()]
    found = measure(
        base, named, file, suites, precision="fp32", root=tmp_path / "mlruns", changes=changes, say=lambda text: None
    )
    assert found.failed == {}
    for mine, theirs in zip(found.results, own.results, strict=True):
        assert {n: repr(e) for n, e in mine.scorecard.items()} == {n: repr(e) for n, e in theirs.scorecard.items()}
        assert mine.scorecard["kl"].value > 0
        items = found.folder / "arms" / mine.arm / "items-1.jsonl"
        assert read_records(items) == read_records(own.folder / "arms" / f"{mine.arm}-0.02" / "items-2.jsonl")


def test_an_expansion_of_other_weights_is_refused_before_the_base_is_measured(
    models: dict[str, str], tmp_path: Path
) -> None:
    other = model_folder(tmp_path / "base", noise=0.1)
    with pytest.raises(ConfigError, match=r"expansion was trained on another base than .*: the weights differ"):
        measure(other, [models["expansion"]], precision="fp32", out=tmp_path / "out", root=tmp_path, changes=SMALL)
    assert not (tmp_path / "out" / "base").exists()
    found = measure(
        other, [models["expansion"]], suites=["kept"], precision="fp32", out=tmp_path / "out2", root=tmp_path,
        changes={"kept.items": 4, "bootstrap": 100}, allow_other_base=True,
    )  # fmt: skip
    assert found.failed == {}


def test_each_suite_is_of_answers_or_of_distributions() -> None:
    assert distributions()[:3] == ["drift", "text", "alignment"]
    assert not {"new", "kept", "instructions", "lm_eval"} & set(distributions())


def swap(folder: str, other: str) -> None:
    """Put the weights of another model in place, with the same size and time: `cp -p`, or an image with fixed times."""
    file = Path(folder) / "model.safetensors"
    was = file.stat()
    shutil.copy(Path(other) / file.name, file)
    os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert file.stat().st_size == was.st_size


def test_other_weights_of_the_same_size_and_time_are_seen(tmp_path: Path) -> None:
    base, model, other = (model_folder(tmp_path / name, noise) for name, noise in (("b", 0), ("m", 0.1), ("o", 0.4)))
    said: list[str] = []

    def run() -> float:
        found = measure(base, [f"m={model}"], suites=["text"], precision="fp32", out=tmp_path / "out", root=tmp_path,
                        changes={"text.tokens": 128, "bootstrap": 100}, say=said.append)  # fmt: skip
        return found.results[0].scorecard["perplexity_drift"].value

    first = run()
    note = tmp_path / "out" / "arms" / "m" / "model.json"
    write_json(note, {k: v for k, v in read_json(note).items() if k != "content"})  # of an earlier version
    said.clear()
    assert run() == first
    assert not any("another model" in line or "(model)" in line for line in said)
    items = note.with_name("items-1.jsonl")
    for damage in (items.read_text().replace("0.", "1."), items.read_text()[:-20]):  # before there was a result
        note.with_name("result.json").unlink()
        items.write_text(damage)
        assert run() == first
    note.unlink()
    shutil.rmtree(tmp_path / "out" / "arms" / "m")
    run()
    swap(model, other)
    assert run() > first
    assert any("its files have changed: it is measured again" in line for line in said)
    swap(base, other)
    with pytest.raises(ConfigError, match=r"out holds a measurement of another base"):
        run()


def test_the_precision_that_auto_takes_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """bf16 gives another KL than fp32, and which one it is depends on the machine."""
    monkeypatch.setattr("experiments.models.precision.bf16_pays", lambda: (True, "CPU with AMX"))
    short = {name: tiny_model(noise, max_position_embeddings=32) for name, noise in (("b", 0.0), ("m", 0.1))}
    base, model = (byte_base(tmp_path / name, byte_tokenizer(), one) for name, one in short.items())
    said: list[str] = []
    changes = {"text.tokens": 64, "bootstrap": 100}
    found = measure(base, [model], suites=["text"], root=tmp_path, changes=changes, say=said.append)
    assert said[0] == "Measured in bf16 (CPU with AMX)."
    assert [line for line in said if line.startswith("evaluation.suites.text: texts may have up to")]  # beyond 32
    assert said[0] in found.report.notes


def test_a_base_without_positions_for_the_questions_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU reading them would end the process."""
    suites = Suites({"new": SimpleNamespace(longest=17)})  # type: ignore[dict-item]
    loaded = build_other("gpt2", n_positions=16), byte_tokenizer()
    monkeypatch.setattr("experiments.measure.session.load_base", lambda *_: loaded)
    config, base = measure_config("b", suites=["kept"]), Base("b", tmp_path)
    session = Session(config, base, loaded[1], (), suites, tmp_path, tmp_path, SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"suites\.new: .* have 17 tokens, but b has 16 positions"):
        _ = session.measured


@pytest.mark.parametrize("written", ["model", "base"])
def test_a_folder_that_is_written_while_it_is_measured_has_no_figures(written: str, tmp_path: Path) -> None:
    """A trainer that saves again, or somebody who replaces the base: the note would be of the files before."""
    places = {
        name: model_folder(tmp_path / name, noise) for name, noise in (("base", 0), ("model", 0.1), ("other", 0.4))
    }
    settings = {"suites": ["kept"], "precision": "fp32", "root": tmp_path, "out": tmp_path / "out"}
    changes = {"kept.items": 4, "kept.aa_floor": False, "bootstrap": 100}

    def write(said: str) -> None:
        if said.startswith("model"):
            shutil.copy(Path(places["other"]) / "model.safetensors", Path(places[written]) / "model.safetensors")

    found = measure(places["base"], [places["model"]], changes=changes, say=write, **settings)  # type: ignore[arg-type]
    assert found.results == []
    assert "changed while model was measured, so its figures are dropped" in found.failed["model"]
    assert not list((tmp_path / "out" / "arms" / "model").glob("items-*"))
