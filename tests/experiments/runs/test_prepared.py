"""What all arms share is measured once, and is prepared anew when its sources have changed."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.common.files import read_json, write_json
from experiments.common.owner import CONFIG, SOURCES
from experiments.config import ExperimentConfig
from experiments.evaluation.evaluate import Suites
from experiments.evaluation.replies import ROOM
from experiments.evaluation.suites.text import TextSuite
from experiments.models.tokens import IGNORED
from experiments.records import ArmResult, Record
from experiments.runs.base_records import check_tokenizer
from experiments.runs.baseline import cut_off, without_room
from experiments.runs.prepared import _check_sources, prepare, read_inputs
from experiments.runs.result_file import write_result
from experiments.runs.run import run_experiment, run_folder
from tests.helpers.byte_level import CHATML, QWEN3, byte_base, byte_tokenizer
from tests.helpers.readers import build_other
from tests.helpers.small_run import small_config, small_values, tiny_base

pytestmark = pytest.mark.slow


def test_another_run_with_the_same_base_does_not_measure_it(store: Path, base: str) -> None:
    """As the trials of a study: another name, the same base, seed and evaluation."""
    arms = [{"name": "full", "method": "full", "learning_rates": [1e-3]}]
    training = {"steps": 1, "batch_size": 4, "warmup_steps": 1}
    second = small_config(base, name="second", arms=arms, training=training)
    run_experiment(second, store)
    folders = [run_folder(config, store) for config in (small_config(base), second)]
    measured = [json.loads((folder / "base" / "timing.json").read_text())["measured"] for folder in folders]
    assert measured == [["new", "kept", "drift", "text"], []]
    assert json.loads((folders[0] / "base" / "timing.json").read_text())["precision"] == "fp32"
    for file in ("base/items.jsonl", "base/state.json"):
        assert (folders[0] / file).read_text() == (folders[1] / file).read_text()


def test_a_source_that_has_changed_is_found(base: str, tmp_path: Path) -> None:
    rows = [{"question": f"{i} + 1 =", "answer": str(i + 1)} for i in range(40)]
    file = tmp_path / "sums.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))

    def config() -> ExperimentConfig:  # read anew: a source keeps what it has read
        arm = {**small_values(base)["arms"][0], "control": {"layers": 1}}
        short = {"training": {"steps": 1, "batch_size": 1, "warmup_steps": 0}, "arms": [arm]}
        return small_config(base, data={"new": {"source": "file", "path": str(file)}}, **short)

    outcome = run_experiment(config(), tmp_path / "mlruns")
    file.write_text("\n".join(json.dumps({**row, "answer": "7"}) for row in rows))
    with pytest.raises(ConfigError, match=r"sums has changed since small-.* began, .* start anew with --fresh"):
        run_experiment(config(), tmp_path / "mlruns")
    assert run_experiment(config(), tmp_path / "mlruns", fresh=True).folder == outcome.folder


@pytest.mark.parametrize("method", ["ewc", "full"])
def test_old_text_that_a_method_reads_without_replay_is_in_the_digests(method: str, base: str, tmp_path: Path) -> None:
    """Its rows decide what ewc holds: arms that went on with others would not compare."""
    arm = {**small_values(base)["arms"][0], "name": "x", "method": method, "control": None}
    data = {**small_values(base)["data"], "old": {"source": "file", "path": str(tmp_path / "old.jsonl")}}
    digests = []
    for answer in "ab":
        rows = [{"question": f"q{i}", "answer": answer} for i in range(9)]
        (tmp_path / "old.jsonl").write_text("\n".join(map(json.dumps, rows)))
        config = small_config(base, data=data, arms=[{k: v for k, v in arm.items() if v is not None}])
        digests.append(read_inputs(config, tmp_path, lambda text: None).digests)
    assert ("1 old" in digests[0]) == (method == "ewc")
    assert (digests[0] != digests[1]) == (method == "ewc")


@pytest.mark.parametrize("written", [None, {}, {"0 sums": "other"}], ids=["gone", "emptied", "of others"])
def test_deleted_digests_do_not_hide_changed_data(written: dict[str, str] | None, tmp_path: Path) -> None:
    """The results know them as well."""
    result = ArmResult("full", "full", 1e-3, "finished", steps=4)
    write_json(tmp_path / SOURCES, {"0 sums": "old", CONFIG: "c"})
    write_result(tmp_path / "arms" / "full-0.001", result)
    (tmp_path / SOURCES).unlink()
    if written is not None:
        write_json(tmp_path / SOURCES, written)
    with pytest.raises(ConfigError, match=r"sums has changed since .* began"):
        _check_sources(tmp_path, {"0 sums": "new"}, "c")
    if written is None:
        _check_sources(tmp_path, {"0 sums": "old"}, "c")
        assert read_json(tmp_path / SOURCES) == {"0 sums": "old", CONFIG: "c"}


@pytest.mark.parametrize("old", ["sums", "more"])
def test_data_that_is_new_and_replayed_is_said(old: str, base: str, tmp_path: Path) -> None:
    """`data.old` with the path of `data.new`: the arm that replays looks like one that keeps old text."""
    rows = [{"question": f"{i} + 1 =", "answer": str(i + 1)} for i in range(40)]
    for name in ("sums", "more"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    files = {
        key: {"source": "file", "path": str(tmp_path / f"{name}.jsonl")}
        for key, name in (("new", "sums"), ("old", old))
    }
    lines: list[str] = []
    read_inputs(small_config(base, data={**files, "replay": 0.25}), tmp_path, lines.append)
    found = [line for line in lines if "the new task itself" in line]
    assert found == ["data.old reads sums as data.new does: what is replayed is the new task itself"] * (old == "sums")


def test_rows_that_are_not_read_are_said_before_the_base_is_measured(base: str, tmp_path: Path) -> None:
    rows = [{"question": f"{i} + 1 =", "answer": None if i == 30 else str(i + 1)} for i in range(40)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "README.md").write_text("# Sums")
    (tmp_path / "data" / "sums.jsonl").write_text("\n".join(json.dumps(row) for row in rows))

    def said(**fields: object) -> list[str]:
        lines: list[str] = []
        new = {"source": "file", "path": str(tmp_path / "data"), **fields}
        arm = {**small_values(base)["arms"][0], "control": {"layers": 1}}
        short = {"training": {"steps": 1, "batch_size": 1, "warmup_steps": 0}, "arms": [arm]}
        run_experiment(small_config(base, data={"new": new}, **short), tmp_path / "mlruns", say=lines.append)
        return [line for line in lines if line.startswith(("arm", "source data", "measuring"))]

    with pytest.raises(ConfigError, match=r"sums.jsonl, line 31: column 'answer' is empty. To pass over such rows"):
        said()
    assert said(skip_bad_rows=True)[:4] == [
        f"arm {small_values(base)['arms'][0]['name']}: control is not read, since full trains full",
        "source data: not read, because they describe the data: README.md",
        f"source data: 1 row passed over ({tmp_path / 'data' / 'sums.jsonl'}, line 31: column 'answer' is empty)",
        "measuring the base model (results of earlier runs are reused) ...",
    ]
    (tmp_path / "data" / "sums.jsonl").rename(tmp_path / "test.jsonl")
    (tmp_path / "data" / "sums.jsonl").write_text(
        "\n".join(json.dumps({"question": row["question"] + "?", "answer": "0"}) for row in rows)
    )
    assert said(skip_bad_rows=True, test=str(tmp_path / "test.jsonl"))[2] == (
        f"source data: test: 1 row passed over ({tmp_path / 'test.jsonl'}, line 31: column 'answer' is empty)"
    )


@pytest.mark.parametrize(
    ("suite", "options", "right", "said"),
    [
        ("kept", None, 0, "no forgetting can be seen there: t (f): 0 of 9 right"),
        ("kept", None, 1, ""),
        ("kept", ("a", "b", "c"), 3, "no forgetting can be seen there: t (f): 3 of 9 right"),
        ("kept", ("a", "b", "c"), 4, ""),
        ("kept", ("a", "b", "c"), 9, ""),
        ("new", None, 9, "knows all of it, so there is nothing to gain: t: 9 of 9 right"),
        ("new", None, 8, ""),
        ("new", None, 0, ""),
        ("instructions", None, 0, ""),
    ],
)
def test_tasks_that_can_show_nothing_are_said(
    suite: str, options: tuple[str, ...] | None, right: int, said: str
) -> None:
    records = [Record(suite, "t", "f", str(i), correct=int(i < right), options=options) for i in range(9)]
    found = list(without_room([*records, Record(suite, "texts", "nll", "1", value=1.0, tokens=3)]))
    assert bool(found) is bool(said)
    assert said in "".join(found)
    other = [replace(one, form="g", correct=int(suite == "kept")) for one in records]  # another way of asking
    assert len(list(without_room([*records, *other]))) == (suite == "kept" and bool(said))
    many = [replace(one, task=f"t{i}") for one in records for i in range(57)]
    assert len(list(without_room(many))) == bool(said)  # one line for all parts of an exam
    assert ("and 53 more" in "".join(without_room(many))) is bool(said)


@pytest.mark.parametrize(("suite", "size", "said"), [("new", 9, True), ("kept", 9, True), ("new", 7, False)])
def test_replies_that_may_be_cut_are_said(suite: str, size: int, said: bool) -> None:
    suites = Suites({suite: SimpleNamespace(name=suite, limits={"t": 9})})  # type: ignore[dict-item]
    records = [Record(suite, "t", "generate", str(i), correct=0, reply="x" * (size if i < 2 else 3)) for i in range(9)]
    others = [replace(one, task="other", reply="x" * 99) for one in records]
    found = list(cut_off([*records, *others], suites, byte_tokenizer()))
    assert len(found) == said
    assert not found or found[0].startswith(f"{suite} task t: 2 of 9 replies of the base model have the 9 tokens that")
    assert ("max_tokens" in "".join(found)) == (said and suite == "new")
    assert list(cut_off([*records[2:] * 3, *records[:2]], suites, byte_tokenizer())) == []  # a few


def test_nothing_is_said_of_replies_to_what_the_bench_invents(tmp_path: Path) -> None:
    """The base talks to the end of its room there, in the quickstart: no answer of it could be cut off."""
    base = tiny_base(tmp_path / "base")
    for new, named in (({"source": "facts"}, False), ({"source": "language"}, False), ({"name": "chain_sum"}, True)):
        said: list[str] = []
        config = small_config(base, data={"new": new}, evaluation={"suites": {"new": {}}})
        prepared = prepare(config, tmp_path / "runs" / str(new), say=said.append)
        assert bool(prepared.suites.suites["new"].limits) is named
        room = read_json(prepared.folder / "base" / "timing.json")["room"]["new"]  # for `compare`
        assert room.keys() == {task.name for task in prepared.data.tasks}
        assert min(room.values()) > ROOM
        assert any("tokens that one may have" in line for line in said) <= named


def test_template_options_reach_all_prompts(tmp_path: Path) -> None:
    folder = byte_base(tmp_path / "base", byte_tokenizer(QWEN3, extra=("<think>", "</think>")))
    config = small_config(folder, data={"template_options": {"enable_thinking": False}, "system": "Be brief."})
    prepared = prepare(config, tmp_path / "runs" / "small", say=lambda text: None)
    opening = "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    row = prepared.data.rows(config.arms[0])[0]
    answer = prepared.tokenizer.decode([token for token in row["labels"] if token != IGNORED])
    assert prepared.tokenizer.decode(row["input_ids"]).endswith(f"{opening}{answer}")
    for reply in prepared.evaluation.suites["drift"].state()["replies"]:
        assert prepared.tokenizer.decode(reply["prompt"]).endswith(opening)


def test_a_base_whose_documents_see_each_other_gets_rows_of_one(tmp_path: Path) -> None:
    folder = byte_base(tmp_path / "base", model=build_other("opt"))
    config = small_config(folder, data={"regime": "cpt", "length": 32, "new": {"name": "gcd"}})
    said: list[str] = []
    prepared = prepare(config, tmp_path / "runs" / "small", said.append)
    assert "each row is one document" in said[0]
    assert "attention_mask" in prepared.data.collator([prepared.data.rows(config.arms[0])[0]])


def test_packed_conversations_of_such_a_base_get_rows_of_their_own(tmp_path: Path) -> None:
    bases = {"opt": byte_base(tmp_path / "opt", model=build_other("opt")), "llama": byte_base(tmp_path / "llama")}
    for name, base in bases.items():
        said: list[str] = []
        data = {"packed": True, "length": 256, "new": {"name": "gcd"}}
        prepared = prepare(small_config(base, data=data), tmp_path / name / "runs" / "small", said.append)
        rows = prepared.data.rows(prepared.config.arms[0])
        batch = prepared.data.collator([rows[i] for i in range(4)])
        assert ("each has a row of its own, not packed" in said[0]) == ("attention_mask" in batch) == (name == "opt")


def test_a_template_file_that_has_changed_is_found(tmp_path: Path) -> None:
    folder = byte_base(tmp_path / "base")
    file = tmp_path / "own.jinja"
    file.write_text(CHATML)
    config = small_config(folder, data={"template": str(file)})
    place = tmp_path / "runs" / "small"
    prepare(config, place, say=lambda text: None)
    prepare(config, place, say=lambda text: None)
    file.write_text("X" + CHATML)
    with pytest.raises(ConfigError, match=r"data.template has changed since small began"):
        prepare(config, place, say=lambda text: None)


def test_a_run_whose_questions_or_code_have_changed_measures_no_other_arm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an update of the bench: the base model was asked otherwise than an arm would be."""
    arms = [{"name": name, "method": "full", "learning_rates": [1e-3]} for name in ("one", "two")]
    short = {"training": {"steps": 1, "batch_size": 1, "warmup_steps": 0}, "arms": arms}
    config = small_config(byte_base(tmp_path / "base"), data={"new": {"name": "gcd"}}, **short)
    outcome = run_experiment(config, tmp_path, say=lambda text: None)
    monkeypatch.setattr(TextSuite, "version", TextSuite.version + 1)
    again = run_experiment(config, tmp_path, say=lambda text: None)  # its report, of what was measured
    assert repr(again.results) == repr(outcome.results)  # some figures are nan
    shutil.rmtree(outcome.folder / "arms" / "two-0.001")
    with pytest.raises(
        ConfigError, match=r"text: the questions, or the code that asks them, have changed since small-"
    ):
        run_experiment(config, tmp_path, say=lambda text: None)
    assert not (outcome.folder / "arms" / "two-0.001" / "result.json").exists()
    timing = outcome.folder / "base" / "timing.json"
    write_json(timing, {name: value for name, value in read_json(timing).items() if name != "suites"})
    assert len(run_experiment(config, tmp_path, say=lambda text: None).results) == 2  # of an earlier version


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("config.json", {"attention_dropout": 0.5}, r"other config \(attention_dropout is 0\.0 there, 0\.5 here\)"),
        ("config.json", {"rms_norm_eps": 0.5}, r"other config \(.*rms_norm_eps is 1e-06 there, 0.5 here"),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "other tokenizer than when small began"),
        (
            "generation_config.json",
            {"eos_token_id": [257]},
            r"other ends of replies \(tokens \[259\] there, \[259, 257\] here",
        ),
        ("config.json", {"initializer_range": 0.5, "use_cache": False}, ""),
    ],
)
def test_a_base_whose_config_or_tokenizer_has_changed(
    tmp_path: Path, name: str, change: dict[str, Any], said: str
) -> None:
    """Weights and questions are the same, but its records are no longer those of this model."""
    folder = byte_base(tmp_path / "base")
    evaluation = small_values(folder)["evaluation"] | {"suites": ["text"]}
    config = small_config(folder, evaluation=evaluation)
    prepare(config, tmp_path / "runs" / "small", say=lambda text: None)
    file = Path(folder, name)
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    if not said:
        prepare(config, tmp_path / "runs" / "small", say=lambda text: None)
        return
    with pytest.raises(ConfigError, match=f"base_model has {said}"):
        prepare(config, tmp_path / "runs" / "small", say=lambda text: None)
    if name == "tokenizer.json":  # what an export would write next to the weights
        with pytest.raises(ConfigError, match="base_model has another tokenizer than when small began"):
            check_tokenizer(tmp_path / "runs" / "small", config.load_tokenizer())


def test_data_that_a_later_arm_reads_is_known_too(tmp_path: Path) -> None:
    """A run that grows may get an arm that replays; what was noted before stays."""
    _check_sources(tmp_path, {"0 sums": "a"}, "c")
    _check_sources(tmp_path, {"0 sums": "a", "1 old": "b"}, "c")
    with pytest.raises(ConfigError, match="old has changed since"):
        _check_sources(tmp_path, {"0 sums": "a", "1 old": "other"}, "c")
    _check_sources(tmp_path, {"0 sums": "a"}, "c")
    assert read_json(tmp_path / "sources.json") == {"0 sums": "a", "1 old": "b", "config": "c"}
