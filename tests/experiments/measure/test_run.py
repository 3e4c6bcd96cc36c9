"""One measurement of models of every kind: what is found, what is left on disk, and how a call goes on."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.cli.main import main
from experiments.common.errors import ConfigError, ModelError
from experiments.comparison.gate import gate
from experiments.comparison.inputs import read_runs
from experiments.measure.endpoint import EndpointError
from experiments.measure.gate import Condition
from experiments.measure.run import Measurement, _measure_all, measure
from experiments.records import read_records
from experiments.runs.baseline import without_room
from experiments.scorecard.figures import FIGURES
from experiments.tracking.journal import journals
from tests.helpers.byte_level import CHATML, byte_tokenizer
from tests.helpers.lm_eval_tasks import write_tasks
from tests.helpers.measured import SMALL, model_folder

pytestmark = pytest.mark.slow  # ten models are loaded and measured
KEPT = {key: value for key, value in SMALL.items() if key in ("kept.items", "bootstrap")}
DISTANCES = ("kl", "perplexity_drift", "alignment_relative_l2", "alignment_update")


def card(measured: Measurement, name: str) -> dict[str, float]:
    result = next(r for r in measured.results if r.arm == name)
    return {figure: estimate.value for figure, estimate in result.scorecard.items()}


def test_every_kind_is_measured(measured: Measurement, models: dict[str, str]) -> None:
    assert measured.failed == {}
    assert [r.arm for r in measured.results] == list(models)
    kinds = [json.loads((measured.folder / "arms" / n / "model.json").read_text())["kind"] for n in models]
    assert kinds == [
        *("model", "model", "PEFT adapter", "folder of ctrl.save", "published Control LLM checkpoint"),
        *("model", "model", "model", "model"),
    ]
    assert not (measured.folder / "config.yaml").exists()  # it is no experiment


@pytest.mark.parametrize("name", ["same", "resized"])
def test_a_copy_of_the_base_has_no_change_in_any_figure(measured: Measurement, name: str) -> None:
    found = card(measured, name)
    unchanged = {n: FIGURES[n].unchanged for n, v in found.items() if n in FIGURES and v == v}
    known = {n: u for n, u in unchanged.items() if u is not None and not n.endswith("_above_floor")}
    assert len(known) > 12
    assert {n: found[n] for n in known} == pytest.approx(known, abs=1e-12)  # CKA of equal states is 1 + 2e-16
    assert [found[figure] for figure in DISTANCES] == [0, 0, 0, 0]
    assert "lost 0 of 7" in next(line for line in measured.report.words if line.startswith(name))
    assert name not in measured.report.lost


@pytest.mark.parametrize("name", ["perturbed", "adapter", "expansion", "published", "trained"])
def test_a_changed_model_moves_every_figure_of_distance(measured: Measurement, name: str) -> None:
    found = card(measured, name)
    assert all(found[figure] != 0 for figure in DISTANCES), found
    assert found["nfr"] > 0
    assert measured.report.lost[name]


def test_a_published_checkpoint_has_the_figures_of_the_expansion_that_was_exported(measured: Measurement) -> None:
    saved, published = card(measured, "expansion"), card(measured, "published")
    assert {n: published[n] for n in saved} == pytest.approx(saved, rel=1e-5, abs=1e-6, nan_ok=True)


def test_checkpoints_are_a_trajectory(measured: Measurement) -> None:
    result = next(r for r in measured.results if r.arm == "trained")
    assert [point["step"] for point in result.trajectory] == [0, 10, 20]
    kl = [point["kl"].value for point in result.trajectory]
    assert 0 == kl[0] < kl[1] < kl[2] == result.scorecard["kl"].value
    assert "Figures by step" in (measured.folder / "report.html").read_text()


def test_another_tokenizer_leaves_out_distributions_and_says_why(measured: Measurement) -> None:
    found = card(measured, "tokens")
    assert {"retention", "nfr", "floor_nfr", "instructions_accuracy"} <= found.keys()
    assert not {"kl", "perplexity_drift", "alignment_cosine"} & found.keys()
    assert measured.left_out["tokens"].keys() == {"drift", "text", "alignment"}
    reason = "its tokenizer is another one than the base's: 2 of 260 tokens have other ids"
    assert f"tokens: suite drift is left out: {reason}" in measured.report.notes
    assert "2 of 260 tokens have other ids" in (measured.folder / "report.html").read_text()


def test_another_architecture_is_measured_without_hidden_states(measured: Measurement) -> None:
    found = card(measured, "family")
    assert {"retention", "nfr", "instructions_accuracy", "kl", "perplexity_drift"} <= found.keys()
    assert not [name for name in found if name.startswith("alignment")]
    assert measured.left_out["family"] == {"alignment": "another architecture: model_type gpt2, not llama"}


def test_the_models_are_compared_with_the_first_one(measured: Measurement) -> None:
    (table,) = (table for table in measured.report.tables if table.title == "Differences to same")
    assert {row[0] for row in table.rows} == {r.arm for r in measured.results[1:]}
    assert table.head[-2:] == ("p", "p (Holm)")


def test_figures_of_all_models_are_one_json(measured: Measurement) -> None:
    figures = json.loads((measured.folder / "figures.json").read_text(), parse_constant=pytest.fail)
    assert list(figures) == [r.arm for r in measured.results]
    assert figures["perturbed"]["kl"].keys() == {"value", "low", "high"}
    assert figures["perturbed"]["kl"]["value"] == card(measured, "perturbed")["kl"]


def test_the_report_says_the_precision(measured: Measurement) -> None:
    assert "Measured in fp32 (as configured)." in measured.report.notes
    assert "Measured in fp32 (as configured)." in (measured.folder / "report.html").read_text()


def test_runs_and_show_know_the_folder(measured: Measurement, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "measure", "--root", str(root)]) == 0
    said = capsys.readouterr().out
    assert f"{measured.folder.name}: measure, finished, 9 of 9 models, " in said
    assert f"\n{measured.report.words[0]}\n" in said
    assert said.rstrip().endswith("report.html")
    assert main(["runs", "--root", str(root)]) == 0
    assert " finished  9/9 models " in capsys.readouterr().out


def test_compare_and_gate_read_the_folder(measured: Measurement, capsys: pytest.CaptureFixture[str]) -> None:
    runs = {run.name: run for run in read_runs([str(measured.folder)])}
    assert runs.keys() == {r.arm for r in measured.results}
    assert all(run.fault is None for run in runs.values())
    assert gate(runs["same"], 0.999)[0]
    _, line = gate(runs["tokens"], 0.5)  # which lacks suites that the base has
    assert "left out: suite drift: its tokenizer" in line
    assert main(["compare", f"{measured.folder}:same", f"{measured.folder}:perturbed", "--draws", "100"]) == 0
    assert "less same" in capsys.readouterr().out


def test_each_model_has_a_run_in_mlflow(measured: Measurement) -> None:
    for result in measured.results:
        (journal,) = journals(measured.folder / "arms" / result.arm)
        start, end = journal.last("start"), journal.last("end")
        assert start is not None
        assert (start["name"], start["experiment"], start["parent"]) == (result.arm, "measure", None)
        assert end is not None
        assert end["status"] == "FINISHED"
        logged = [event for event, _ in journal.read() if event["event"] == "metrics"]
        assert logged[-1]["values"]["retention"] == result.scorecard["retention"].value


def test_a_second_call_reads_what_is_finished(
    measured: Measurement, models: dict[str, str], base: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.measure.session.load_base", None)  # would fail if it were called
    monkeypatch.setattr("experiments.measure.base.load_model", None)
    named = [f"{name}={folder}" for name, folder in models.items()]
    again = measure(base, named[:3], precision="fp32", root=root, changes=SMALL)
    assert again.folder == measured.folder
    assert again.results == measured.results[:3]
    assert [r.arm for r in again.results] == ["same", "perturbed", "adapter"]
    remarks = list(without_room(read_records(again.folder / "base" / "items.jsonl")))
    assert remarks  # on what the base cannot forget: they were said by the first call alone, and in no report
    assert set(remarks) <= set(measured.report.notes) & set(again.report.notes)


def test_the_command_prints_the_answer_first_and_ends_with_the_code_of_the_gate(
    measured: Measurement, models: dict[str, str], base: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [word for key, value in SMALL.items() for word in ("--set", f"{key}={value}")]
    named = [f"{name}={models[name]}" for name in ("same", "perturbed")]  # of which the last report is from now on
    measure(base, named, precision="fp32", root=root, changes=SMALL, say=lambda text: None)
    words = ["measure", "--base", base, "--model", f"same={models['same']}", "--root", str(root), *settings]
    words += ["--precision", "fp32", "--gate", "kl <= 0"]
    assert main(words) == 0  # all is on disk
    replaced, _, out = capsys.readouterr().out.partition("\n\n")
    assert replaced.startswith("report and figures.json of perturbed in ")
    assert out.startswith("same lost 0 of 7 kept answers that the base had right and won 0: retention 1.00 [")
    assert "pass  same: kl <= 0: .000 [.000,.000], bound 0.0000" in out
    assert main([*words, "--gate", "retention >= 1"]) == 3
    assert "FAIL  same: retention >= 1: 1.000 [" in capsys.readouterr().out
    assert main([*words, "--gate", "retentoin >= 1"]) == 2
    assert "did you mean 'retention'" in capsys.readouterr().err


def test_it_goes_on_after_a_stop_and_measures_changed_files_again(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"precision": "fp32", "root": tmp_path, "changes": {**KEPT, "suites": ["kept"]}}
    first, second = model_folder(tmp_path / "first", 0.1), model_folder(tmp_path / "second", 0.2)
    original = "experiments.measure.session.Session._records"
    with monkeypatch.context() as patched:
        patched.setattr(original, stop_at("second"))
        with pytest.raises(KeyboardInterrupt):
            measure(base, [first, second], **options)  # type: ignore[arg-type]
    said: list[str] = []
    found = measure(base, [first, second], say=said.append, **options)  # type: ignore[arg-type]
    assert [r.arm for r in found.results] == ["first", "second"]
    room, *others = said  # the base and the first model were measured; what the base cannot show is said each time
    assert room.startswith("kept, but the base model has no more right than a guess")
    assert others == ["second (model) ..."]
    shutil.rmtree(second)
    model_folder(Path(second), 0.3)
    before = read_records(found.folder / "arms" / "second" / "items-1.jsonl")
    measure(base, [first, second], say=said.append, **options)  # type: ignore[arg-type]
    assert "second is another model than before, or its files have changed: it is measured again" in said
    assert read_records(found.folder / "arms" / "second" / "items-1.jsonl") != before


def test_tasks_of_lm_eval_count_as_kept(
    base: str,
    models: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = write_tasks(tmp_path / "tasks")
    monkeypatch.setattr("lm_eval.tasks.manager.__file__", f"{tasks}/manager.py")  # not its 16,000
    words = ["measure", "--base", base, "--model", f"same={models['same']}", "--model", models["perturbed"],
             "--suites", "lm_eval", "--set", f"lm_eval.include_path={tasks}", "--root", str(tmp_path / "mlruns"),
             "--precision", "fp32", "--set", "bootstrap=100"]  # fmt: skip
    assert main([*words, "--lm-eval", "colours,suns"]) == 2
    assert "unknown task 'suns': did you mean 'sums'" in capsys.readouterr().err
    assert not (tmp_path / "mlruns").exists()
    assert main([*words, "--lm-eval", "colours", "sums", "--gate", "retention/colours >= .01"]) in (0, 3)
    assert "retention/colours >= 0.01" in capsys.readouterr().out
    (folder,) = (file.parent for file in tmp_path.glob("mlruns/runs/*/report.txt"))
    records = read_records(folder / "arms" / "same" / "items-1.jsonl")
    assert {(r.suite, r.task) for r in records} == {("kept", "colours"), ("kept", "sums")}
    assert main([*words, "--lm-eval", "colours", "sums"]) == 0
    assert "have changed" not in capsys.readouterr().out
    task = Path(tasks) / "colours.yaml"
    task.write_text(task.read_text().replace("The colour of", "One sees the colour of"))
    assert main([*words, "--lm-eval", "colours", "sums"]) == 0
    said = (
        "the questions, or the code that asks them, have changed since the measurement of same, perturbed; the figures"
    )
    assert f"warning: lm_eval: {said}" in " ".join(capsys.readouterr().out.split())


def test_weights_in_bf16_on_a_named_device(base: str, models: dict[str, str], tmp_path: Path) -> None:
    options = {"suites": ["kept", "drift"], "precision": "fp32", "root": tmp_path, "say": lambda text: None}
    changes = {key: value for key, value in SMALL.items() if key.startswith(("kept", "drift", "boot"))}
    found = measure(
        base, [models["same"], models["adapter"], models["published"]],
        changes=changes, dtype="bf16", device_map="cpu", **options,
    )  # type: ignore[arg-type]  # fmt: skip
    assert found.failed == {}
    assert found.results[0].scorecard["kl"].value == 0
    assert all(r.scorecard["kl"].value > 0 for r in found.results[1:])
    note = json.loads((found.folder / "measure.json").read_text())
    assert (note["dtype"], note["device_map"]) == ("bf16", "cpu")


def stop_at(name: str) -> object:
    from experiments.measure.session import Session

    original = Session._records

    def records(self: Session, measured: object, model: object, loaded: object) -> object:
        if model.name == name:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return original(self, measured, model, loaded)  # type: ignore[arg-type]

    return records


def test_a_model_that_fails_does_not_stop_the_others(
    base: str, tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = model_folder(tmp_path / "broken", noise=float("nan"))
    options = {"precision": "fp32", "out": tmp_path / "out", "root": tmp_path, "gate": ["retention >= .01"]}
    found = measure(base, [broken, models["same"]], changes={**KEPT, "suites": ["kept"]}, **options)  # type: ignore[arg-type]
    assert [r.arm for r in found.results] == ["same"]
    assert found.failed.keys() == {"broken"}
    assert found.failed["broken"].endswith("holds NaN or infinity: take other weights")
    assert [holds for holds, _ in found.verdicts()] == [True, False]
    for left, code in ((found, 1), (replace(found, conditions=[Condition("kl", "<=", 0.0)]), 3)):
        with monkeypatch.context() as patch:  # a job can tell a model that is away from one that forgot
            patch.setattr("experiments.measure.run.measure", lambda *args, left=left, **options: left)
            assert main(["measure", "--base", base, "--model", broken]) == code
    with pytest.raises(ConfigError, match=r"out holds a measurement of another base, or with other settings"):
        measure(base, [models["same"]], seed=1, changes={**KEPT, "suites": ["kept"]}, **options)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"same is not empty and holds no measurement"):
        measure(base, [models["same"]], out=models["same"], root=tmp_path)


def test_a_base_that_cannot_be_measured_is_no_fault_of_the_models(
    base: str, tmp_path: Path, models: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each model had failed, and the report then lacked a file of the base's."""

    def broken(*args: object, **options: object) -> None:
        raise ModelError("base_model has no weights")

    for place in ("checked", "base"):
        monkeypatch.setattr(f"experiments.models.{place}.load_weights", broken)
    with pytest.raises(ModelError, match="base_model has no weights"):
        measure(base, [models["same"]], changes={**KEPT, "suites": ["kept"]}, root=tmp_path, precision="fp32")


class Stub:
    """A session whose models meet an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def measure(self, model: object) -> None:
        raise self.error

    def say(self, text: str) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "of_the_model"),
    [
        (RuntimeError("unable to mmap: Cannot allocate memory (12)"), False),
        (RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), False),
        (EndpointError("http://h/v1 gave no reply in 6 tries"), True),  # of one server among several models
        (RuntimeError("size mismatch for a"), True),
    ],
)
def test_a_fault_of_the_machine_is_not_the_models(error: Exception, of_the_model: bool) -> None:
    """It would be a FAIL of the gate, with the exit code of one."""
    session, models = Stub(error), [SimpleNamespace(name="x")]
    if not of_the_model:
        with pytest.raises(RuntimeError, match=re.escape(str(error))):
            _measure_all(session, models)  # type: ignore[arg-type]
        return
    assert list(_measure_all(session, models)[1]) == ["x"]  # type: ignore[arg-type]


def test_a_model_that_is_asked_in_other_words_is_said_with_its_figures(tmp_path: Path) -> None:
    """Trainers give a model a template of theirs: what it lost may be due to that alone."""
    base = model_folder(tmp_path / "base")
    model = model_folder(tmp_path / "brief", tokenizer=byte_tokenizer(f"Be brief.{CHATML}"))
    settings: dict[str, Any] = {"suites": ["kept"], "changes": KEPT, "precision": "fp32", "root": tmp_path / "mlruns"}
    found = measure(base, [model], say=lambda text: None, **settings)
    said = "asked in its own chat template (the base has another): answers may change for that alone"
    assert [run.remark for run in read_runs([str(found.folder)])] == [said]  # for `compare` and `gate`
    said = f"brief: {said}"
    assert [found.report.notes[0], found.report.notes[-1]] == [said, "Measured in fp32 (as configured)."]
    assert said in (found.folder / "report.txt").read_text()
