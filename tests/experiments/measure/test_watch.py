"""The measurements of a training in their folder: their share of the time, and the best model, also when it goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from transformers import LlamaForCausalLM

from experiments.common.errors import ConfigError, DamagedError
from experiments.common.files import read_json, write_json
from experiments.comparison.inputs import read_runs
from experiments.evaluation.evaluate import Suites
from experiments.evaluation.suite import SuiteContext
from experiments.measure import watch as room
from experiments.measure.config import measure_config
from experiments.measure.training_folder import measured_base
from experiments.measure.watch import Budget, Watch
from experiments.records import Estimate
from tests.helpers.byte_level import byte_tokenizer
from tests.helpers.measured import tiny_model
from tests.helpers.readers import build_other

CONFIG = measure_config("", None, ["kept"], None, "fp32", 0, {"kept.items": 4, "bootstrap": 100})


class TestBudget:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        now = [100.0]
        monkeypatch.setattr(room.time, "perf_counter", lambda: now[0])
        return now

    def test_room_is_left_for_the_last_measurement(self, clock: list[float]) -> None:
        budget = Budget(0.1, began=100.0)
        assert budget.allows(2)  # nothing is known of how long one takes
        with budget.measuring():
            clock[0] += 5
        clock[0] += 89  # 5 s of 94; one more makes 10 s of 99
        assert not budget.allows(1)
        clock[0] += 1
        assert (budget.allows(1), budget.allows(2)) == (True, False)
        clock[0] += 45  # 5 s of 140; two more make 15 s of 150
        assert budget.allows(2)

    def test_a_resumed_training_knows_how_long_one_takes(self, clock: list[float]) -> None:
        budget = Budget(0.5, longest=10, began=100.0)
        clock[0] += 19
        assert (budget.allows(1), budget.allows(2)) == (True, False)
        clock[0] += 1
        assert budget.allows(2)

    def test_the_whole_time_allows_all(self, clock: list[float]) -> None:
        budget = Budget(1.0, began=100.0)
        with budget.measuring():
            clock[0] += 5
        assert budget.allows(100)


def test_the_best_model_of_an_earlier_training_is_not_this_ones(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Else the worse models of this one are not saved, and the folder has a model that it never was."""
    model, tokenizer = tiny_model(max_position_embeddings=64), byte_tokenizer()
    for gain in (0.5, 0.1):
        watch = Watch.begun(tmp_path, CONFIG, suites(), model, 1.0)
        assert Watch.resumed(tmp_path, CONFIG, suites(), model, 1.0, step=2).best is None
        watch.measure(2, model)
        watch.points[2]["gain"] = Estimate(gain)
        watch.keep_best(2, model, tokenizer)
        assert Watch.resumed(tmp_path, CONFIG, suites(), model, 1.0, step=2).best == (gain, 2)
    assert sum("the model was trained with 64 positions" in line for line in caplog.messages) == 6  # of each
    with pytest.raises(ConfigError, match=r"suites\.kept: its longest .* the model has 16 positions: ask for shorter"):
        Watch.begun(tmp_path, CONFIG, suites(), build_other("gpt2", n_positions=16), 1.0)


def suites() -> Suites:
    return Suites.drawn(CONFIG.evaluation, SuiteContext(0, ""), byte_tokenizer(), ())


def test_a_training_that_goes_on_keeps_its_best_model_and_drops_what_came_later(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(), byte_tokenizer()
    assert not measured_base(tmp_path)
    first = Watch.begun(tmp_path, CONFIG, suites(), model, 1.0)
    assert measured_base(tmp_path)
    for step, gain in ((2, 0.5), (4, 0.1)):
        first.measure(step, model)
        first.points[step]["gain"] = Estimate(gain)
        first.keep_best(step, model, tokenizer)
    assert first.best == (0.5, 2)
    again = Watch.resumed(tmp_path, CONFIG, suites(), model, 1.0, step=2)
    assert (list(again.points), again.best, again.base) == ([2], (0.5, 2), first.base)
    assert again.budget.longest > 0
    assert [file.name for file in again.arm.glob("items-*")] == ["items-2.jsonl"]
    assert isinstance(LlamaForCausalLM.from_pretrained(tmp_path / "best"), LlamaForCausalLM)
    again.write()
    assert Watch.begun(tmp_path, CONFIG, suites(), model, 1.0).best is None  # another training
    assert not (again.arm / "result.json").exists()  # which lists would show as the result of this one
    assert not list(again.arm.glob("items-*"))


def test_the_model_that_was_kept_is_judged_and_how_its_replies_were_cut_is_known(tmp_path: Path) -> None:
    """The gate judged the last step, whose weights are not in `best`; `compare` did not say either."""
    model, tokenizer, questions = tiny_model(), byte_tokenizer(), tmp_path / "new.jsonl"
    questions.write_text('{"question": "1 + 1 =", "answer": "2"}')
    config = measure_config("", str(questions), ["new"], None, "fp32", 0, {"new.max_tokens": 5, "bootstrap": 100})
    drawn = Suites.drawn(config.evaluation, SuiteContext(0, ""), tokenizer, config.task(tokenizer))
    said = "the figures are of step 4, but the weights that were kept of step 2 (keep_best)"
    for kept, remark in ((True, said), (False, "")):  # a second training keeps none: what is in `best` is of the first
        watch = Watch.begun(tmp_path, config, drawn, model, 1.0)
        for step, gain in ((2, 0.5), (4, 0.1)):
            watch.measure(step, model)
            watch.points[step]["gain"] = Estimate(gain)
            if kept:
                watch.keep_best(step, model, tokenizer)
        watch.write()
        (run,) = read_runs([str(tmp_path)])  # `gate` judges what is usable
        assert run.usable is run.checkpoints[2 if kept else 4]
        assert run.remark == remark
    assert run.room == {("new", "new"): 5}
    assert run.grading == {("new", "new"): drawn.suites["new"].grading["new"]}


def test_a_folder_that_was_removed_during_the_training_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(room.logger, "warning", lambda text, *args: said.append(text % args))
    model, folder = tiny_model(), tmp_path / "measured"
    watch = Watch.begun(folder, CONFIG, suites(), model, 1.0)
    watch.write()
    assert said == []
    shutil.rmtree(folder)
    watch.measure(2, model)
    watch.write()
    (line,) = said
    assert line.startswith(f"{folder} was removed while the training ran")


def test_a_training_does_not_go_on_with_another_template(tmp_path: Path) -> None:
    """Else what the template changes in its replies would count as forgotten or gained."""
    model = tiny_model()
    Watch.begun(tmp_path, CONFIG, suites(), model, 1.0)
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = str(tokenizer.chat_template).replace("<|im_start|>", "# ")
    other = Suites.drawn(CONFIG.evaluation, SuiteContext(0, ""), tokenizer, ())
    with pytest.raises(ConfigError, match=r"kept: the questions, their grader, the tokenizer or its chat template are"):
        Watch.resumed(tmp_path, CONFIG, other, model, 1.0, step=2)
    assert Watch.resumed(tmp_path, CONFIG, suites(), model, 1.0, step=2).points == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["base/items.jsonl", "arms/trained/items-2.jsonl"])
@pytest.mark.parametrize("damage", ["cut", "gone", "of another step"])
def test_records_that_were_changed_are_not_read_back(tmp_path: Path, name: str, damage: str) -> None:
    model = tiny_model()
    first = Watch.begun(tmp_path, CONFIG, suites(), model, 1.0)
    first.measure(2, model)
    first.measure(4, tiny_model(0.3))
    file, later = tmp_path / name, first.arm / "items-4.jsonl"
    text = {"cut": file.read_text()[:-50], "of another step": later.read_text()}.get(damage)
    file.unlink() if text is None else file.write_text(text)
    with pytest.raises(DamagedError, match=rf"{file.name} is (gone|not the file that was written): bring it back"):
        Watch.resumed(tmp_path, CONFIG, suites(), model, 1.0, step=2)


@pytest.mark.slow
def test_what_is_damaged_after_the_step_is_deleted_anyway_and_older_folders_go_on(tmp_path: Path) -> None:
    model = tiny_model()
    first = Watch.begun(tmp_path, CONFIG, suites(), model, 1.0)
    for step in (2, 4):
        first.measure(step, model)
    (first.arm / "items-4.jsonl").write_text("")
    for step in (2, 6):  # later it goes on without the step that was deleted
        assert list(Watch.resumed(tmp_path, CONFIG, suites(), model, 1.0, step).points) == [2]
    (first.arm / "digests.json").write_text("{")  # it vouches for nothing
    with pytest.raises(DamagedError, match=r"digests.json is damaged .*: bring it back, or take another folder"):
        Watch.resumed(tmp_path, CONFIG, suites(), model, 1.0, step=2)
    (first.arm / "digests.json").unlink()
    note = read_json(tmp_path / "base" / "state.json")
    write_json(tmp_path / "base" / "state.json", {k: v for k, v in note.items() if k != "items"})
    assert list(Watch.resumed(tmp_path, CONFIG, suites(), model, 1.0, step=2).points) == [2]


def test_a_base_that_was_replaced_is_not_compared_with(tmp_path: Path) -> None:
    """It has the same name; without a name the base is in the model that trains, of which some may stay frozen."""
    model = tiny_model()
    for name in ("base", ""):
        config = CONFIG.model_copy(update={"base_model": name})
        Watch.begun(tmp_path, config, suites(), model, 1.0, weights="1")
        assert Watch.resumed(tmp_path, config, suites(), model, 1.0, step=2, weights="1").base
        with pytest.raises(ConfigError, match=rf"{name or 'the model'} has other weights than the base that .* holds"):
            Watch.resumed(tmp_path, config, suites(), model, 1.0, step=2, weights="2")
        Watch.begun(tmp_path, config, suites(), model, 1.0)
        assert Watch.resumed(tmp_path, config, suites(), model, 1.0, step=2, weights="2").base  # none was noted
