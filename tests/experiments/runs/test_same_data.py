"""What the trials of a study must have in common has a digest: of its content, by its settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from experiments.common.errors import RunError
from experiments.common.hashing import json_digest
from experiments.config import ExperimentConfig
from experiments.data import procedural
from experiments.models.precision import bf16_pays
from experiments.runs import same_data
from experiments.runs.prepared import read_inputs
from experiments.runs.run import run_experiment
from experiments.runs.same_data import digests_noted, digests_of, named
from tests.helpers.byte_level import byte_base
from tests.helpers.small_run import small_config


def quiet(text: str) -> None: ...


def rows(file: Path, answer: str, **columns: Any) -> str:
    named = [{"question": f"{file.stem} {i} + 1", "answer": f"{answer}{i}", **columns} for i in range(12)]
    file.write_text("\n".join(map(json.dumps, named)))
    return str(file)


def test_digests_follow_the_content_of_files_and_of_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, file, kept = byte_base(tmp_path / "base"), tmp_path / "own.jsonl", tmp_path / "kept.jsonl"
    options = [*map(str, range(12)), *(f"1{i}" for i in range(2, 12))]
    test = tmp_path / "test.jsonl"
    new = {"source": "file", "path": rows(file, "", options=options), "test": rows(test, "", options=options)}
    data = {"new": new | {"grader": "choice"}, "length": 128}
    evaluation: dict[str, Any] = {"kept_tasks": [rows(kept, "")], "kept_items": 4, "new_items": 2}
    evaluation |= {"suites": ["new", "kept"]}
    arms = [{"name": "full", "method": "full", "learning_rates": [1e-3]}]

    def digests(**changes: Any) -> dict[str, str]:
        config = small_config(base, data=data, evaluation=evaluation, arms=arms, **changes)
        return digests_of(read_inputs(config, tmp_path / "root", quiet), tmp_path / "root")

    first, before = digests(), digests(precision="auto")
    words = f"the tokenizer or chat template of {base}, the ends of replies of {base}, the config of {base}, "
    words += f"the precision of {base}, what suite new asks, what suite kept asks"
    assert named(list(first)) == f"{file}, {kept}, base_model {base}, {words}"
    assert digests(training={"steps": 2, "batch_size": 4}) == first
    assert list(digests(seed=1))[:-2] == list(first)[:-2]  # it draws other questions
    with monkeypatch.context() as elsewhere:  # a machine with other instructions, and a file that was edited
        elsewhere.setattr("experiments.models.precision.bf16_pays", lambda: (not bf16_pays()[0], "here"))
        assert len(digests(precision="auto").items() - before.items()) == 1
        config = Path(base, "config.json")
        text = config.read_text()
        config.write_text(json.dumps(json.loads(text) | {"rms_norm_eps": 1e-2, "attention_dropout": 0.5}))
        assert len(digests().items() - first.items()) == 1
        config.write_text(text)
        elsewhere.setattr("experiments.runs.same_data.own_code", lambda model: {"code": "of its own"})
        assert named([*digests().keys() - first.keys()]) == f"the Python files of {base}"
        rows(test, "", options=[*options, "0.5"])  # which no row shows, and the digest of a training file covers
        changed = digests()
        assert named([key for key in first if changed[key] != first[key]]) == "what suite new asks"
    rows(file, "1", options=options)
    rows(kept, "1")
    model = AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        model.lm_head.weight.add_(0.5)
    model.save_pretrained(base)
    second = digests()
    assert second.keys() == first.keys()
    assert [key for key in first if first[key] == second[key]] == list(first)[3:7]

    def refuses(found: Any) -> None:
        raise RunError(f"{len(found)} digests")

    with pytest.raises(RunError, match="9 digests"):
        run_experiment(
            small_config(base, data=data, evaluation=evaluation, arms=arms), tmp_path / "new", say=quiet, agree=refuses
        )
    assert {path.name for path in (tmp_path / "new").iterdir()} <= {"cache"}


@pytest.mark.slow
def test_a_run_notes_the_digests_that_it_began_with(tmp_path: Path) -> None:
    base, seen = byte_base(tmp_path / "base"), dict[str, str]()
    data = {"new": {"source": "file", "path": rows(tmp_path / "own.jsonl", "")}, "length": 128}
    evaluation: dict[str, Any] = {"suites": ["kept"], "kept_tasks": [rows(tmp_path / "kept.jsonl", "")], "new_items": 2}
    training = {"steps": 1, "batch_size": 4, "warmup_steps": 1}
    arms = [{"name": "full", "method": "full", "learning_rates": [1e-3]}]
    config = small_config(base, data=data, evaluation={**evaluation, "kept_items": 4}, arms=arms, training=training)
    done = run_experiment(config, tmp_path / "root", say=quiet, agree=seen.update)
    assert digests_noted(done.folder) == seen


def test_data_of_any_source_and_a_packed_base_have_digests() -> None:
    config = small_config("no-model", data={"new": {"source": "python"}, "regime": "cpt"})
    packed = config.model_copy(update={"quantised": "8bit"})
    label = f"0 {config.data.new[0].label}"

    def found(of: ExperimentConfig, data: str = "a", weights: str = "w", machine: str = "m") -> dict[str, str]:
        base = {"weights": weights, "device": "cpu"}
        return same_data._digests(of, {label: data}, base, machine)

    assert named(list(found(config))) == "the data of source python, base_model no-model"
    for of in (config, packed):
        first, *others = found(of), found(of, data="b"), found(of, weights="x")
        assert [sum(one[key] != first[key] for key in first) for one in others] == [1, 1]
    chosen = {"old": {"source": "file", "path": "a"}, "replay": 0.5, "choose": {"by": "loss", "of": 9, "keep": 2}}
    of = small_config("no-model", data=chosen)
    whole = of.model_copy(update={"data": of.data.model_copy(update={"choose": None})})
    names, machine = ("1 a", "1 the files of a"), "m"
    one, other = (
        same_data._digests(of, dict(zip(names, ("by the base", json_digest(given)), strict=True)), {}, machine)
        for given in (["file", ""], ["of now", ""])
    )
    assert named(list(one)) == "a"
    assert one == same_data._digests(whole, {names[0]: "file"}, {}, machine) != other
    assert found(packed).keys() - found(packed, machine="other").keys()  # packed in the way of a device
    assert named(list(found(packed, machine=""))) == "the data of source python"


def test_another_version_of_a_generator_asks_other_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And other files of old text, of which the base chooses, are other data: what it chose is not compared."""
    old = tmp_path / "old.jsonl"
    chosen: dict[str, Any] = {"old": {"source": "file", "path": str(old)}, "replay": 0.5}
    chosen["choose"] = {"by": "random", "of": 9, "keep": 2}
    evaluation = {"suites": ["kept"], "kept_items": 4, "new_items": 2}
    base = byte_base(tmp_path / "base")
    found = []
    for version in ("0.1.0", "0.1.1"):
        rows(old, version)
        config = small_config(base, evaluation=evaluation, data=chosen)
        monkeypatch.setattr(procedural.importlib.metadata, "version", lambda name, v=version: v)
        found.append(digests_of(read_inputs(config, tmp_path / "root", quiet), tmp_path / "root"))
    first, second = found
    assert [key.rpartition(" ")[0] for key in first if first[key] != second[key]] == ["task chain_sum", str(old)]
