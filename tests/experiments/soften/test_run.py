"""Softening models of every kind: measured, chosen, written, gone on with; wrong input refused first."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ctrl
from experiments.cli.main import main
from experiments.common.errors import ConfigError
from experiments.common.hashing import folder_digests
from experiments.desk.overview import read_measurement
from experiments.measure.run import measure
from experiments.models.base import load_model
from experiments.records import read_records
from experiments.soften.run import Softened, soften
from tests.helpers.byte_level import CHATML, byte_tokenizer
from tests.helpers.measured import (
    SMALL,
    adapter_folder,
    disturb,
    expansion_folder,
    model_folder,
    other_tokenizer_folder,
    tiny_model,
    training_folder,
)

QUICK = {**SMALL, "new_items": 12}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("soften")


@pytest.fixture(scope="module")
def base(folder: Path) -> str:
    return model_folder(folder / "base")


@pytest.fixture(scope="module")
def new(folder: Path) -> Path:
    file = folder / "new.jsonl"
    file.write_text("".join(json.dumps({"question": f"{i} + 1 =", "answer": str(i + 1)}) + "\n" for i in range(12)))
    return file


@pytest.fixture
def softened(folder: Path, base: str, new: Path) -> Callable[..., Softened]:
    def run(model: str, to: Path, **options: Any) -> Softened:
        settings = {"new": new, "alphas": [0.5], "precision": "fp32", "root": folder / "mlruns", "changes": QUICK}
        return soften(base, model, to, say=lambda text: None, **(settings | options))

    return run


MODELS = {
    "model": lambda folder, base: model_folder(folder, noise=0.2),
    "training": lambda folder, base: training_folder(folder),  # with the tokenizer above the checkpoints
    "adapter": adapter_folder,
    "expansion": lambda folder, base: expansion_folder(folder),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_every_kind_becomes_a_plain_model(
    kind: str, base: str, folder: Path, tmp_path: Path, softened: Callable[..., Softened]
) -> None:
    model = MODELS[kind](folder / kind, base)
    found = softened(f"{kind}={model}", tmp_path / "soft")
    assert found.alpha in (0.5, 1.0)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "soft").state_dict()
    start, end = load_model(base).state_dict(), AutoModelForCausalLM.from_pretrained(_end(found, model)).state_dict()
    for name, tensor in plain.items():
        torch.testing.assert_close(tensor, torch.lerp(start[name], end[name], found.alpha), rtol=1e-6, atol=1e-7)
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "soft").get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
    )
    card = (tmp_path / "soft" / "README.md").read_text()
    assert f"alpha {found.alpha:g}" in card
    assert "| gain |" in card
    assert "one standard error of the best" in found.report.text()
    page = found.report.page.read_text()
    assert "Figures along the path" in page
    assert "<svg" in page or "base64" in page


def _end(found: Softened, model: str) -> str:
    merged = found.folder / "merged"
    last = Path(model) / "checkpoint-20"
    return str(merged) if merged.is_dir() else str(last) if last.is_dir() else model


@pytest.mark.slow
def test_an_expansion_leads_to_its_merged_weights(folder: Path, base: str, tmp_path: Path, softened: Any) -> None:
    model = expansion_folder(tmp_path / "expansion")
    found = softened(model, tmp_path / "soft")
    expected = ctrl.merge_back(ctrl.load(load_model(base), model)).state_dict()
    merged = AutoModelForCausalLM.from_pretrained(found.folder / "merged").state_dict()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name])
    file = found.folder / "merged" / "model.safetensors"  # damaged, it is made again
    right = file.read_bytes()
    file.write_bytes(bytes(len(right)))
    assert repr(softened(model, tmp_path / "again").report.cards) == repr(found.report.cards)  # some are nan
    assert file.read_bytes() == right


@pytest.mark.slow
def test_points_are_measured_as_measure_does_and_only_once(
    base: str, tmp_path: Path, new: Path, folder: Path, softened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_folder(tmp_path / "model", noise=0.2)
    own: dict[str, Any] = {"grader": "contains", "kept_tasks": ["capitals"], "kept_files": [new]}
    found = softened(model, tmp_path / "soft", **own)
    same = measure(
        base, [f"m={model}"], new=new, suites=["new", "kept", "drift", "text", "instructions"], precision="fp32",
        root=folder / "mlruns", changes=QUICK, say=lambda text: None, **own,
    )  # fmt: skip
    ours = read_records(found.folder / "arms" / "alpha-1" / "items-1.jsonl")
    assert ours == read_records(same.folder / "arms" / "m" / "items-1.jsonl")
    assert {record.task for record in ours if record.suite == "kept"} == {"capitals", new.stem}
    monkeypatch.setattr("experiments.measure.base.load_model", lambda name, **loading: pytest.fail("measured twice"))
    before = folder_digests(tmp_path / "soft")
    again = softened(model, tmp_path / "soft", **own)  # the same command: it is there already
    assert (again.alpha, folder_digests(tmp_path / "soft")) == (found.alpha, before)
    with pytest.raises(ConfigError, match=r"holds alpha \S+, chosen by another rule; now it is \S+: choose another"):
        softened(model, tmp_path / "soft", conditions=["gain >= -.99"], **own)
    softened(model, tmp_path / "other", conditions=["gain >= -.99"], **own)  # with other conditions, elsewhere
    assert softened(model, tmp_path / "none", conditions=["gain >= .99"], **own).alpha is None
    softened(model, tmp_path / "soft", **own)  # is known still
    assert folder_digests(tmp_path / "soft") == before
    os.rename(tmp_path / "soft", tmp_path / "killed")  # before it appeared
    softened(model, tmp_path / "soft", **own)
    assert folder_digests(tmp_path / "soft") == before
    (tmp_path / "soft" / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="soft exists and is not empty: choose another folder"):
        softened(model, tmp_path / "soft", **own)
    again = softened(model, tmp_path / "again", **own)
    assert again.alpha == found.alpha
    assert again.report.words == found.report.words
    assert "the base model has no more right than a guess" in again.report.text()  # in a later call too
    reworded = found.folder / "base" / "reworded.jsonl"  # of which no result notes a digest
    right = reworded.read_text()
    reworded.write_text(right.splitlines(keepends=True)[0])
    softened(model, tmp_path / "healed", **own)
    assert reworded.read_text() == right
    one = read_measurement(found.folder)
    assert (one.kind, one.status, one.best and one.best["arm"]) == ("soften", "finished", f"alpha-{found.alpha:g}")
    assert one.best is not None
    assert one.best["scorecard"]["gain"]["value"] == found.report.cards[found.alpha or 0]["gain"].value


@pytest.mark.slow
@pytest.mark.parametrize("which", ["base", "model"])
def test_files_that_change_while_they_are_mixed_give_no_model(
    which: str, new: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer may save a new one there at any time."""
    folders = {name: model_folder(tmp_path / name, noise) for name, noise in (("base", 0.0), ("model", 0.2))}
    changed = lambda *_: os.utime(Path(folders[which]) / "model.safetensors", ns=(1, 1))  # noqa: E731
    monkeypatch.setattr("experiments.soften.run.write_card", changed)
    options: dict[str, Any] = {"root": tmp_path / "root", "changes": QUICK, "precision": "fp32"}
    with pytest.raises(ConfigError, match="changed while the softened model was written, so it is dropped"):
        soften(*folders.values(), tmp_path / "soft", new, [0.5], **options)
    assert not (tmp_path / "soft").exists()


@pytest.mark.slow
def test_conditions_that_no_point_meets_write_nothing(
    base: str, new: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_folder(tmp_path / "model", noise=0.2, tokenizer=byte_tokenizer(f"Be brief.{CHATML}"))
    more = QUICK | {"drift.replies": 8}  # of which the half that chooses has some
    options = [f"--set={key}={value}" for key, value in more.items()]
    where = ["--base", base, "--model", model, "--new", str(new), "--to", str(tmp_path / "soft")]
    how = ["--alphas", ".5", "--until", "kl <= 0.000001", "--precision", "fp32", "--root", str(folder / "mlruns")]
    status = main(["soften", *where, *how, *options])
    assert status == 3
    assert "\nmodel: asked in its own chat template (the base has another): answers may" in capsys.readouterr().out
    assert not (tmp_path / "soft").exists()


@pytest.mark.slow
def test_a_half_without_items_is_said_and_nothing_is_written(tmp_path: Path, softened: Any) -> None:
    """Half of the questions choose, the other half is reported: of one question a half has none."""
    one = tmp_path / "one.jsonl"
    one.write_text(json.dumps({"question": "1 + 1 =", "answer": "2"}) + "\n")
    with pytest.raises(ConfigError, match=r"gain: no item of it is in the half that (chooses the point|is reported)"):
        softened(model_folder(tmp_path / "model", noise=0.2), tmp_path / "soft", new=one, root=tmp_path / "root")
    assert not (tmp_path / "soft").exists()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"new": None, "changes": SMALL}, r"without --new no gain is measured: add --new FILE, or a condition"),
        ({"alphas": [0.5, 1.5]}, r"--alphas 1\.5: a point of the path has an alpha above 0 and at most 1"),
        ({"alphas": [0.0]}, r"--alphas 0: a point"),
        ({"conditions": ["retention < .9"]}, r"of retention, higher is better"),
        ({"grader": "exat"}, r"grader: unknown name 'exat': did you mean 'exact'"),
        ({"suites": ["new", "keptt"]}, r"unknown name 'keptt': did you mean 'kept'"),
    ],
)
def test_wrong_settings_are_refused_first(
    options: dict[str, Any], match: str, folder: Path, tmp_path: Path, softened: Any
) -> None:
    with pytest.raises(ConfigError, match=match):
        softened(str(folder / "nothing"), tmp_path / "soft", root=tmp_path / "root", **options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_read_of_the_files_is_said(base: str, folder: Path, tmp_path: Path) -> None:
    """As `measure` says it, before anything heavy."""
    file, said = tmp_path / "new.jsonl", list[str]()
    file.write_text(2 * '{"question": "1?", "answer": "yes"}\n')
    with pytest.raises(ConfigError, match="there is no folder"):
        soften(base, str(tmp_path / "none"), tmp_path / "to", new=file, root=folder / "mlruns", say=said.append)
    assert said == ["source new: 1 of 2 examples repeat an earlier one and are read once"]


@pytest.mark.slow
def test_models_without_a_path_are_refused_and_a_full_folder_too(
    base: str, folder: Path, tmp_path: Path, softened: Any
) -> None:
    root = tmp_path / "root"
    with pytest.raises(ConfigError, match="no path of weights leads from the base to it: its tokenizer is another"):
        softened(other_tokenizer_folder(tmp_path / "tokens"), tmp_path / "soft", root=root)
    stacked = ctrl.expand(tiny_model().eval(), ctrl.ControlConfig(structure="stack", layers=1))
    ctrl.save(disturb(stacked, 0.1, ".expanded."), tmp_path / "stacked")
    with pytest.raises(ConfigError, match=r"its copies \[\d\] are stacked: the base has no such layers to mix with"):
        softened(str(tmp_path / "stacked"), tmp_path / "soft", root=root)
    other = Path(model_folder(tmp_path / "rope", noise=0.2))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.1}))
    with pytest.raises(ConfigError, match=r"computes something else .*: rms_norm_eps is 0\.1 there"):
        softened(str(other), tmp_path / "soft", root=root)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="full exists and is not empty: choose another folder"):
        softened(base, tmp_path / "full", root=root)
