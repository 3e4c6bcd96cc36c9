"""Forgetting measured during trainings by transformers and TRL, with and without PEFT and ctrl."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from transformers import (
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    default_data_collator,
)
from transformers.integrations import integration_utils

import ctrl
from experiments.common.errors import ConfigError
from experiments.comparison.inputs import read_runs
from experiments.measure.callback import ForgettingCallback, check_whole, weights_step
from experiments.measure.run import measure
from experiments.measure.training_folder import release
from experiments.measure.watch import Watch
from experiments.models.turns import said_unwritten
from experiments.records import Estimate, read_records
from tests.helpers.byte_level import R1, byte_tokenizer
from tests.helpers.launch import two_processes
from tests.helpers.measured import model_folder, tiny_model
from tests.helpers.token_rows import rows_of

QUICK = {"kept.items": 4, "drift.replies": 2, "drift.reply_tokens": 4, "bootstrap": 100}
NEW = [{"question": f"{i} + 1 =", "answer": str(i + 1)} for i in range(8)]


def adapted() -> Any:
    from peft import LoraConfig, get_peft_model

    return get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"))


MODELS: dict[str, Any] = {
    "plain": tiny_model,
    "peft": adapted,
    "ctrl": lambda: ctrl.expand(tiny_model(), ctrl.ControlConfig(layers=1)),
}


class Seen(TrainerCallback):
    """A reporter, as `report_to` names them. As MLflow's, it takes figures until the end of the training."""

    logs: list[dict[str, float]] = []  # noqa: RUF012 (shared by its instances: Trainer makes its own)
    closed = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        assert not Seen.closed, "these figures would begin another run"
        self.logs.append(dict(logs))

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        Seen.closed = True


@pytest.fixture
def reporter(monkeypatch: pytest.MonkeyPatch) -> type[Seen]:
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "seen", Seen)
    Seen.logs, Seen.closed = [], False
    return Seen


def callback(folder: Path, **options: Any) -> ForgettingCallback:
    settings = {"every": 2, "budget": 1.0, "folder": folder / "measured", "changes": QUICK}
    return ForgettingCallback(**{**settings, **options})


def arguments(folder: Path, **options: Any) -> dict[str, Any]:
    settings = {
        "output_dir": str(folder / "out"),
        "max_steps": 4,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": [],
    }
    return {**settings, "learning_rate": 3e-2, "per_device_train_batch_size": 2, "disable_tqdm": True, **options}


def trained(model: Any, folder: Path, hook: ForgettingCallback, resume: bool = False, **options: Any) -> Any:
    args = TrainingArguments(**arguments(folder, **options))
    parts: Any = {
        "train_dataset": rows_of(8),
        "data_collator": default_data_collator,
        "processing_class": byte_tokenizer(),
    }
    trainer = Trainer(model, args, callbacks=[hook], **parts)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_figures_at_the_start_on_the_way_and_at_the_end(kind: str, tmp_path: Path, reporter: type[Seen]) -> None:
    hook = callback(tmp_path)
    trainer = trained(MODELS[kind](), tmp_path, hook, report_to=["seen"])
    points = hook.result.trajectory
    assert [point["step"] for point in points] == [0, 2, 4]
    assert (points[0]["retention"].value, points[0]["kl"].value) == (1.0, 0.0)
    assert points[-1]["kl"].value > 0
    logged = [logs for logs in reporter.logs if "forgetting/kl" in logs]
    assert [logs["forgetting/kl"] for logs in logged] == [point["kl"].value for point in points[1:]]
    history = [entry["step"] for entry in trainer.state.log_history if "forgetting/retention" in entry]
    assert history == [2, 4]
    (run,) = read_runs([str(tmp_path / "measured")])
    assert list(run.checkpoints) == [2, 4]


@pytest.mark.slow
def test_the_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    with_it = trained(tiny_model(), tmp_path / "a", callback(tmp_path / "a")).model.state_dict()
    torch.manual_seed(0)
    without = trained(tiny_model(), tmp_path / "b", callback(tmp_path / "b", every=100)).model.state_dict()
    assert all(torch.equal(with_it[name], without[name]) for name in with_it)


@pytest.mark.slow
def test_figures_are_those_of_the_command(tmp_path: Path) -> None:
    base = model_folder(tmp_path / "base")
    trainer = trained(tiny_model(), tmp_path, callback(tmp_path, base=base))
    trainer.save_model(str(tmp_path / "model"))
    settings = {"suites": ["kept", "drift"], "precision": "fp32", "root": tmp_path / "mlruns", "say": lambda text: None}
    found = measure(base, [f"m={tmp_path / 'model'}"], changes={**QUICK, "kept.aa_floor": False}, **settings)  # type: ignore[arg-type]
    ours, theirs = (
        read_records(folder / "arms" / name)
        for folder, name in ((tmp_path / "measured", "trained/items-4.jsonl"), (found.folder, "m/items-1.jsonl"))
    )
    assert ours == theirs


def trainer_of_trl(kind: str, model: Any, folder: Path, hook: ForgettingCallback, **options: Any) -> Any:
    """TRL's SFTTrainer or DPOTrainer, on sums."""
    trl = pytest.importorskip("trl")
    from datasets import Dataset

    right = [{"prompt": row["question"], "chosen": " " + row["answer"], "rejected": " 99"} for row in NEW]
    rows = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in right] if kind == "SFT" else right
    settings = {**arguments(folder, **options), "bf16": False, "gradient_checkpointing": False, "max_length": 64}
    args = getattr(trl, f"{kind}Config")(**settings)
    made = getattr(trl, f"{kind}Trainer")
    return made(
        model, args=args, train_dataset=Dataset.from_list(rows), processing_class=byte_tokenizer(), callbacks=[hook]
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["SFT", "DPO"])
@pytest.mark.parametrize("model", ["plain", "peft"])
def test_trl_measures_a_new_task_too_and_stops_at_a_limit(kind: str, model: str, tmp_path: Path) -> None:
    new = tmp_path / "new.jsonl"
    new.write_text("".join(json.dumps(row) + "\n" for row in NEW))
    hook = callback(tmp_path, new=new, limits=["kl <= 1e-9"], stop=True)
    trained_one = MODELS[model]()
    if model == "plain":  # DPO loads its reference from where the model came from
        trained_one = type(trained_one).from_pretrained(model_folder(tmp_path / "base"))
    trainer_of_trl(kind, trained_one, tmp_path, hook, max_steps=8).train()
    points = hook.result.trajectory
    assert [point["step"] for point in points] == [0, 2]
    assert (points[0]["kl"].value, points[0]["retention"].value) == (0.0, 1.0)
    assert points[1]["kl"].value > 0
    assert "gain" in hook.result.scorecard


@pytest.mark.slow
def test_a_broken_limit_stops_the_training_and_the_best_model_keeps_it(tmp_path: Path) -> None:
    hook = callback(tmp_path, limits=["kl <= 1e-9"], stop=True, keep_best=True)
    trainer = trained(tiny_model(), tmp_path, hook, max_steps=8)
    assert trainer.state.global_step == 2
    assert not (tmp_path / "measured" / "best").exists()
    kept = callback(tmp_path / "kept", limits=["kl <= 1000"], keep_best=True)
    model = trained(tiny_model(), tmp_path / "kept", kept).model.state_dict()
    note = json.loads((tmp_path / "kept" / "measured" / "best" / "forgetting.json").read_text())
    assert note["step"] == 4
    best = type(tiny_model()).from_pretrained(tmp_path / "kept" / "measured" / "best").state_dict()
    assert all(torch.equal(best[name], model[name]) for name in model)


@pytest.mark.parametrize("stop", [False, True])
def test_a_broken_limit_is_said_whatever_follows_from_it(stop: bool, caplog: pytest.LogCaptureFixture) -> None:
    hook = ForgettingCallback(limits=["kl <= 1e-9", "retention >= .5"], stop=stop)
    cards = iter([{"kl": Estimate(0.1), "retention": Estimate(0.9)}, {"kl": Estimate(0.0), "retention": Estimate(0.9)}])
    hook._watch = cast(Watch, SimpleNamespace(measure=lambda step, model: next(cards)))
    state = TrainerState()
    ends = [hook._measure(None, state, TrainerControl(), None, None, step) for step in (2, 4)]
    assert ends == [True, False]
    assert [record.message for record in caplog.records] == [
        f"step 2: kl <= 1e-09 is broken{': the training stops' if stop else ''}"
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("limit", "kept", "match"),
    [
        ("retention_generate >= .9", [], "no retention_generate is measured here"),  # no free replies are asked for
        ("forgetting <= .9", ["exam.jsonl"], "its base answers none of the kept questions, so nothing could be forg"),
    ],
)
def test_a_limit_that_would_never_be_broken_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, limit: str, kept: list[str],
    match: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("exam.jsonl").write_text("\n".join(json.dumps({"question": f"{i}?", "answer": f"no {i}"}) for i in range(6)))
    hook = callback(tmp_path, limits=[limit], stop=True, changes=QUICK | ({"kept_tasks": kept} if kept else {}))
    with pytest.raises(ConfigError, match=rf"{limit.split()[0]} .= 0\.9 would never be broken: {match}"):
        trained(tiny_model(), tmp_path, hook)
    assert len(kept) == len([line for line in caplog.messages if "so no forgetting can be seen there: exam" in line])


def test_measurements_wait_for_their_budget(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hook = callback(tmp_path, every=1, budget=1e-6)
    with pytest.raises(ConfigError, match="nothing is measured before the training begins"):
        _ = hook.result
    trained(tiny_model(), tmp_path, hook)
    assert [point["step"] for point in hook.result.trajectory] == [0, 4]  # the end is always measured
    assert "more than budget=1e-06: base and end are always measured" in caplog.text


def test_a_stop_between_steps_that_are_never_measured_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained(tiny_model(), tmp_path, callback(tmp_path, every=4, limits=["kl <= 1e-9"], stop=True))
    assert "stop=True has no effect: every=4, but this training has 4 steps" in caplog.messages


@pytest.mark.slow
def test_a_limit_that_breaks_ends_the_training_in_all_processes(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "helpers" / "stop_in_two_processes.py"
    done = two_processes(script, tmp_path, timeout=180)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {file.name: file.read_text() for file in tmp_path.glob("rank-*")} == {"rank-0": "2", "rank-1": "2"}


@pytest.mark.slow
def test_a_resumed_training_goes_on_with_its_base_and_its_measurements(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = callback(tmp_path)
    trained(tiny_model(), tmp_path, first, save_strategy="steps", save_steps=2, max_steps=4)
    base = read_records(tmp_path / "measured" / "base" / "items.jsonl")
    state = tmp_path / "measured" / "base" / "state.json"
    note = json.loads(state.read_text())
    state.write_text(json.dumps({**note, "with": {**note["with"], "torch": "1.0"}}))
    again = callback(tmp_path)
    trained(tiny_model(), tmp_path, again, resume=True, save_strategy="steps", save_steps=2, max_steps=6)
    assert "the base was measured with torch 1.0, and torch is" in caplog.text
    assert [point["step"] for point in again.result.trajectory] == [0, 2, 4, 6]
    assert read_records(tmp_path / "measured" / "base" / "items.jsonl") == base
    changed = callback(tmp_path, seed=1)
    with pytest.raises(ConfigError, match="holds measurements with another seed: they would not compare"):
        trained(tiny_model(), tmp_path, changed, resume=True, max_steps=8)
    other = ForgettingCallback(folder=tmp_path / "elsewhere", changes=QUICK)
    with pytest.raises(ConfigError, match=r"goes on at step 6, so the model is not the base any more"):
        trained(tiny_model(), tmp_path, other, resume=True, max_steps=8)
    assert "are replaced" not in caplog.text
    trained(tiny_model(), tmp_path, callback(tmp_path), max_steps=1)
    assert "the measurements of an earlier training are replaced" in caplog.text
    assert "otherwise than at the start" not in caplog.text
    moved = tiny_model()
    moved.lm_head.weight.data.neg_()
    trained(moved, tmp_path, callback(tmp_path), max_steps=1)
    assert "questions otherwise than at the start of the earlier training" in caplog.text


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"every": 0}, "every is 1 or more"),
        ({"budget": 0}, "budget a share of time up to 1"),
        ({"stop": True}, r'stop=True needs limits, for example limits=\["kl <= .1"\]'),
        ({"limits": ["kll <= 1"]}, "limits 'kll <= 1': no figure 'kll' is measured here"),
        ({"changes": {"kept.aa_floor": True}}, "kept.aa_floor: a training asks nothing in other words, so it has no"),
        ({"suites": ["kept", "drifd"]}, "did you mean 'drift'"),
        ({"changes": {"kept.item": 4}}, "did you mean 'items'"),
    ],
)
def test_wrong_settings_are_refused_before_the_training(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        ForgettingCallback(**options)


def test_what_is_not_read_of_the_files_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As `measure` says it: a repeated row, a part of a longer file."""
    file = tmp_path / "new.jsonl"
    rows = [*({"question": f"{i}?", "answer": "yes"} for i in range(6)), {"question": "0?", "answer": "yes"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    hook = callback(tmp_path, new=file, changes={**QUICK, "new_items": 4})
    hook._suites(byte_tokenizer(R1))
    assert [record.getMessage() for record in caplog.records if record.name.startswith("experiments")] == [
        *said_unwritten(byte_tokenizer(R1)),
        "source new: 1 of 7 examples repeat an earlier one and are read once",
        "source new: 4 of its 6 questions or texts are measured, drawn by the seed (new_items)",
    ]


def test_one_callback_in_two_trainings_measures_in_a_folder_of_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second would delete the records of the first."""
    folders: list[Path] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("experiments.measure.callback._tokenizer", lambda kwargs: None)
    monkeypatch.setattr(ForgettingCallback, "_suites", lambda self, tokenizer: SimpleNamespace(suites={}))
    monkeypatch.setattr(Watch, "begun", lambda folder, *_: folders.append(folder) or SimpleNamespace(base=[]))
    hook, given, start = ForgettingCallback(), ForgettingCallback(folder="own"), TrainerState()
    for one, out in ((hook, "one"), (hook, "two"), (given, "three")):
        args = TrainingArguments(output_dir=str(tmp_path / out), report_to=[], use_cpu=True)
        one.on_train_begin(args, start, TrainerControl(), model=tiny_model())
        release(folders[-1])
    assert [folder.name for folder in folders] == ["callback-one", "callback-two", "own"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_base_by_name_has_the_dtype_of_the_model(
    dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers loads in bf16 what is stored so: next to a base in fp32 it would have a KL before any step."""
    bases: list[Any] = []
    monkeypatch.setattr("experiments.measure.callback._tokenizer", lambda kwargs: None)
    monkeypatch.setattr(ForgettingCallback, "_suites", lambda self, tokenizer: SimpleNamespace(suites={}))
    monkeypatch.setattr(Watch, "begun", lambda *given: bases.append(given[3]) or SimpleNamespace(base=[]))
    hook = callback(tmp_path, base=model_folder(tmp_path / "base"))
    args = TrainingArguments(output_dir=str(tmp_path / "out"), report_to=[], use_cpu=True)
    hook.on_train_begin(args, TrainerState(), TrainerControl(), model=tiny_model().to(dtype))
    release(tmp_path / "measured")
    assert {parameter.dtype for parameter in bases[0].parameters()} == {dtype}


def test_a_trainer_without_a_tokenizer_or_with_shards_or_over_a_folder_best_is_refused(tmp_path: Path) -> None:
    args = TrainingArguments(**arguments(tmp_path))
    row = {"input_ids": torch.arange(5), "labels": torch.arange(5)}
    with pytest.raises(ConfigError, match=r"the trainer has no tokenizer: give it one"):
        Trainer(tiny_model(), args, train_dataset=[row], callbacks=[callback(tmp_path)]).train()
    with pytest.raises(ConfigError, match="FSDP or DeepSpeed has it in shards"):
        check_whole(type("Args", (), {"fsdp": "full_shard", "deepspeed": None}))
    (tmp_path / "measured" / "best").mkdir(parents=True)
    with pytest.raises(ConfigError, match="best was not kept by a ForgettingCallback"):
        Trainer(tiny_model(), args, train_dataset=[row], callbacks=[callback(tmp_path, keep_best=True)]).train()


def test_figures_of_the_end_are_of_the_checkpoint_that_trainer_loads_at_the_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The weights are those of step 2: they are not measured as step 4, and step 4 is not the result."""
    hook = callback(tmp_path, suites=["kept"], changes={"kept.items": 4, "bootstrap": 100})
    rows, how = rows_of(4), {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    args = TrainingArguments(**arguments(tmp_path, **how, **best))
    parts: Any = {"data_collator": default_data_collator, "processing_class": byte_tokenizer(), "callbacks": [hook]}
    trainer = Trainer(tiny_model(), args, train_dataset=rows, eval_dataset=rows, **parts)
    trainer.train()
    assert trainer.state.best_model_checkpoint is not None
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert [point["step"] for point in hook.result.trajectory] == [0, 2]
    assert hook.result.steps == 2
    assert "ends with the weights of step 2" in caplog.text
    (run,) = read_runs([str(tmp_path / "measured")])
    assert list(run.checkpoints) == [2]


@pytest.mark.parametrize("best", [False, True])
def test_figures_of_the_last_step_are_in_the_trainers_own_run(
    best: bool, tmp_path: Path, reporter: type[Seen], caplog: pytest.LogCaptureFixture
) -> None:
    """MLflow's run ends with the training, and a figure that came later began another one."""
    hook = callback(tmp_path, every=100, suites=["kept"], changes={"kept.items": 4, "bootstrap": 100})
    how = {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 1, "save_steps": 1} if best else {}
    args = TrainingArguments(**arguments(tmp_path, report_to=["seen"], load_best_model_at_end=best, max_steps=1, **how))
    parts: Any = {"data_collator": default_data_collator, "processing_class": byte_tokenizer(), "callbacks": [hook]}
    trainer = Trainer(tiny_model(), args, train_dataset=rows_of(2), eval_dataset=rows_of(2), **parts)
    trainer.train()
    assert "forgetting/retention" in trainer.state.log_history[-1]
    assert any("forgetting/retention" in logs for logs in reporter.logs) is not best  # its weights come too late
    assert ("are in state.log_history and" in caplog.text) is best


def test_a_best_checkpoint_that_is_gone_was_not_loaded(tmp_path: Path) -> None:
    """Trainer says so in a warning alone: the weights are those of the last step, and are not called step 2."""
    args, best = SimpleNamespace(load_best_model_at_end=True), tmp_path / "checkpoint-2"
    state = TrainerState(global_step=4, best_model_checkpoint=str(best))
    assert weights_step(args, state) == 4
    best.mkdir()
    assert weights_step(args, state) == 2
    assert weights_step(SimpleNamespace(load_best_model_at_end=False), state) == 4
