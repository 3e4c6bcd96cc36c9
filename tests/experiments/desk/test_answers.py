"""The browser of answers: which are chosen, and a page that shows texts as texts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from experiments.common.errors import ConfigError, DamagedError
from experiments.common.yaml_values import dump_yaml
from experiments.config import parse_config
from experiments.desk.answers import Answers, answers, last_records, sorted_answers
from experiments.records import ArmResult, Record, write_records
from experiments.runs.arm_records import write_noted
from experiments.runs.result_file import write_result

OPTIONS = ("right", "wrong")


def scored(item: str, lead: float, suite: str = "kept", task: str = "facts") -> Record:
    choice = int(lead < 0)
    return Record(
        suite, task, "chat", item, correct=1 - choice, choice=choice, options=OPTIONS, answer="0", scores=(lead, 0.0)
    )


BASE = [scored("a", 3), scored("b", 1), scored("c", -1), scored("d", 2), scored("e", 4)]
AFTER = [scored("a", -2), scored("b", -5), scored("c", 1), scored("d", 1.9), scored("e", 1)]


def found(**texts: str) -> Answers:
    questions = {r.key: texts.get(r.item, f"question {r.item}") for r in BASE}
    return Answers(sorted_answers(BASE, {"full-0.001": AFTER}, questions), count=1)


def test_each_answer_has_its_word_and_the_clearest_are_first() -> None:
    table = found().frame
    assert [(w, q) for w, q in zip(table["answer"], table["question"], strict=True)] == [
        ("lost", "question b"), ("lost", "question a"), ("won", "question c"), ("kept", "question e"),
        ("kept", "question d"),
    ]  # fmt: skip
    assert table["clarity"].tolist() == pytest.approx([6, 5, 2, 3, 0.1])
    assert table.loc[0, ["right", "before", "after"]].tolist() == ["right", "right", "wrong"]


def test_the_sample_is_the_clearest_of_each_word() -> None:
    assert found().sample() == found().sample("full-0.001") == ["question b", "question c", "question e"]
    same = Answers(sorted_answers(BASE, {"same": BASE}, {}), count=1)
    assert same.sample() == ["a"]  # nothing turned: a kept one alone
    with pytest.raises(ConfigError, match=r"no arm 'full-0\.01' among these answers: did you mean 'full-0\.001'"):
        found().sample("full-0.01")


def test_answers_of_the_new_task_are_there_too() -> None:
    before = Record("new", "sums", "generate", "n", correct=0, reply="12", answer="15")
    after = Record("new", "sums", "generate", "n", correct=1, reply="15", answer="15")
    (row,) = sorted_answers([before], {"x": [after]}, {})["x"]
    assert (row[0], row[1].before, row[1].after, row[1].right) == ("won", "12", "15", "15")


def test_the_page_shows_as_many_as_asked_and_says_how_many_there_are() -> None:
    page = found()._repr_html_()
    assert len(re.findall("<tr>", page)) == 1 + 3  # the head, and one of each word
    assert "Questions with a lost, won or kept answer" in page  # retention counts answers
    assert "full-0.001: 2 lost, 1 won, 2 kept" in page
    assert "<option>lost</option>" in page


def test_texts_of_others_are_no_tags() -> None:
    page = found(b="<img src=x onerror=alert(1)>")._repr_html_()
    assert "<img" not in page
    assert "&lt;img" in page


def test_arms_are_named_as_their_folders(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "x-0123abcd"
    folder.mkdir(parents=True)
    arm = {"name": "full", "method": "full", "learning_rates": [1e-3]}
    config = parse_config({"name": "x", "arms": [arm]})
    (folder / "config.yaml").write_text(dump_yaml(config.to_dict()), encoding="utf-8")
    with pytest.raises(ConfigError, match="no arm of x-0123abcd has been measured yet"):
        last_records(folder)
    for step, records in ((2, BASE), (10, AFTER)):
        write_records(folder / "arms" / "full-0.001" / f"items-{step}.jsonl", records)
    assert last_records(folder) == {"full-0.001": AFTER}
    with pytest.raises(ConfigError, match=r"no arm 'ful-0.001' in x-0123abcd: did you mean 'full-0\.001'"):
        last_records(folder, ["ful-0.001"])
    with pytest.raises(ConfigError, match="count=0: give how many"):
        answers(folder, count=0)


def test_answers_are_those_that_the_arm_gave(tmp_path: Path) -> None:
    """A stray file of a later step, or one that was changed, shows the replies of another model."""
    arm = tmp_path / "arms" / "full-0.001"
    config = parse_config({"name": "x", "arms": [{"name": "full", "method": "full", "learning_rates": [1e-3]}]})
    arm.mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(dump_yaml(config.to_dict()), encoding="utf-8")
    write_noted(arm / "items-2.jsonl", BASE)
    write_noted(arm / "items-4.jsonl", AFTER)
    write_records(arm / "items-4.jsonl", BASE[:1])
    assert last_records(tmp_path) == {"full-0.001": BASE}  # it is not finished, and will measure step 4 again
    write_records(arm / "items-4.jsonl", AFTER)
    write_result(arm, ArmResult("full", "full", 1e-3, "finished", steps=4))
    write_records(arm / "items-9.jsonl", BASE)
    assert last_records(tmp_path) == {"full-0.001": AFTER}
    write_records(arm / "items-4.jsonl", BASE)
    with pytest.raises(DamagedError, match=r"items-4\.jsonl is not the file that .* was made from"):
        last_records(tmp_path)
