"""Tables as people have them are recognised, and become the examples that they mean."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from experiments.common.errors import ConfigError
from experiments.data.files import LocalFile
from experiments.data.hub import HuggingFace
from experiments.data.items import Chat, Example, Item, Text, chat
from experiments.data.shapes import SHAPES, recognised
from tests.helpers.question_files import write

HI, HELLO = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
MORE = [{"role": "user", "content": "and?"}, {"role": "assistant", "content": "so"}]
BRIEF = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def shaped(**columns: Any) -> dict[str, Any]:
    return columns


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


CASES: dict[str, tuple[dict[str, Any], Example]] = {
    "messages": (shaped(messages=[HI, HELLO]), Item("hi", "hello")),
    "messages-turns": (shaped(messages=[HI, HELLO, *MORE]), chat([HI, HELLO, *MORE])),
    "messages-system": (shaped(messages=[BRIEF, HI, HELLO]), chat([BRIEF, HI, HELLO])),
    "messages-and-text": (shaped(messages=[HI, HELLO], text="hi hello"), Item("hi", "hello")),
    "messages-and-prompt": (shaped(messages=[HI, HELLO], prompt="hi"), Item("hi", "hello")),
    "messages-json": (shaped(messages=json.dumps([HI, HELLO, *MORE])), chat([HI, HELLO, *MORE])),
    "messages-parts": (
        shaped(messages=[{**HI, "content": parts("h", "i")}, {**HELLO, "content": parts("hello")}]),
        Item("hi", "hello"),
    ),
    "messages-left-over": (shaped(messages=[HI, HELLO, {"role": "user", "content": "bye"}]), Item("hi", "hello")),
    "sharegpt": (
        shaped(conversations=[{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]),
        Item("hi", "hello"),
    ),
    "sharegpt-system-column": (
        shaped(system="Be brief.", conversations=[{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]),
        chat([BRIEF, HI, HELLO]),
    ),
    "conversations-of-roles": (shaped(conversations=[HI, HELLO, *MORE]), chat([HI, HELLO, *MORE])),
    "prompt": (shaped(prompt="hi", completion="hello"), Item("hi", "hello")),
    "prompt-messages": (shaped(prompt=[HI], completion=[HELLO]), Item("hi", "hello")),
    "prompt-history": (
        shaped(prompt=[HI, HELLO, MORE[0]], completion=[MORE[1]]),
        chat([HI, HELLO, *MORE], context=3),
    ),
    "prompt-history-system": (
        shaped(system="Be brief.", prompt=[HI, HELLO, MORE[0]], completion=[MORE[1]]),
        chat([BRIEF, HI, HELLO, *MORE], context=4),
    ),
    "prompt-reply": (  # a reply that ends the prompt, and a completion that does not go on with it
        shaped(prompt=[HI, HELLO], completion=MORE),
        chat([HI, HELLO, *MORE], context=2),
    ),
    "prompt-written": (shaped(prompt="Write!", completion=json.dumps([HI])), Item("Write!", json.dumps([HI]))),
    "alpaca": (shaped(instruction="Add", input="1 1", output="2"), Item("Add\n\n1 1", "2")),
    "alpaca-history": (
        shaped(instruction="and?", input="", output="so", history=[["hi", "hello"]]),
        chat([HI, HELLO, *MORE]),
    ),
    "alpaca-no-history": (shaped(instruction="hi", input="", output="hello", history=[]), Item("hi", "hello")),
    "messages-weight": (
        shaped(messages=[HI, {**HELLO, "weight": 0}, MORE[0], {**MORE[1], "weight": 1}]),
        chat([HI, {**HELLO, "weight": 0}, *MORE]),
    ),
    "alpaca-no-input": (shaped(instruction="hi", input="", output="hello", text="rendered"), Item("hi", "hello")),
    "question": (shaped(question="hi", answer="hello", system="not read", text="nor this"), Item("hi", "hello")),
    "text": (shaped(text="hi"), Text("hi")),
    "tools": (shaped(messages=[HI, HELLO], tools=[TOOL]), chat([HI, HELLO], [TOOL])),
    "tools-json": (shaped(messages=[HI, HELLO], tools=json.dumps([TOOL["function"]])), chat([HI, HELLO], [TOOL])),
    "tools-null": (shaped(messages=[HI, HELLO], tools=None), Item("hi", "hello")),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
class TestShapes:
    @pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "csv"])
    def test_a_row_of_a_file(self, name: str, ending: str, tmp_path: Path) -> None:
        row, expected = CASES[name]
        path = tmp_path / f"a.{ending}"
        if ending == "csv":
            cells = {key: json.dumps(cell) if isinstance(cell, list) else cell for key, cell in row.items()}
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, [*cells])
                writer.writeheader()
                writer.writerow(cells)
        else:
            write(path, [row])
        source = LocalFile(path=str(path))
        assert source.examples == (expected,)
        assert type(source.examples[0]) is type(expected)

    def test_a_row_of_a_dataset(self, name: str) -> None:
        import datasets

        row, expected = CASES[name]
        source = HuggingFace(name="x")
        vars(source)["loaded"] = datasets.Dataset.from_list([row, row])
        assert list(source.epoch(0, 0, frozenset())) == [expected, expected]
        assert [note for note in source.notes if not note.startswith("columns that are not read: ")] == []


def test_every_shape_has_a_case() -> None:
    assert {recognised(row, "x").name for row, _ in CASES.values()} == {shape.name for shape in SHAPES}


class TestUnknown:
    @pytest.mark.parametrize(
        ("columns", "said"),
        [
            (["a", "b"], r"has no known shape \(its columns: a, b; known shapes: question \+ answer; messages; "),
            (["prompt", "chosen"], r"has no known shape \(its columns: prompt, chosen"),
            (["messages", "conversations"], r"fits several shapes, messages and conversations \(its columns"),
            (
                ["prompt", "completion", "instruction", "output"],
                r"fits several shapes, prompt and completion and instruction and output",
            ),
        ],
    )
    def test_columns_and_known_shapes_are_listed(self, columns: list[str], said: str) -> None:
        with pytest.raises(ConfigError, match=rf"file a {said}.* Name the columns with question"):
            recognised(columns, "file a")

    def test_named_columns_win(self, tmp_path: Path) -> None:
        path = str(
            write(tmp_path / "a.jsonl", [{"messages": [HI, HELLO], "conversations": [HI, HELLO, *MORE], "q": "x"}])
        )
        assert LocalFile(path=path, messages="conversations").examples == (chat([HI, HELLO, *MORE]),)
        assert LocalFile(path=path, text="q").examples == (Text("x"),)
        with pytest.raises(ConfigError, match=r"line 1 has no column 'message': did you mean 'messages'\?"):
            LocalFile(path=path, messages="message").examples  # noqa: B018

    @pytest.mark.parametrize("text", ["plain text", *(json.dumps(row) for row, _ in CASES.values())])
    def test_the_fields_that_a_run_keeps_recognise_it_again(self, text: str, tmp_path: Path) -> None:
        """They hold the defaults too: posthoc, and the command in the report, refused the run's own data."""
        path = tmp_path / ("a.jsonl" if text.startswith("{") else "a.txt")
        path.write_text(text)
        source = LocalFile(path=str(path))
        again = LocalFile(**source.model_dump(mode="json"))
        assert (again.recognised, again.examples) == (source.recognised, source.examples)

    def test_a_row_of_another_shape_is_passed_over_and_shown(self, tmp_path: Path) -> None:
        path = str(write(tmp_path / "a.jsonl", [{"messages": [HI, HELLO]}, {"text": "hi"}]))
        with pytest.raises(ConfigError, match=r"a.jsonl, line 2 has no column 'messages'.*skip_bad_rows"):
            LocalFile(path=path).examples  # noqa: B018
        source = LocalFile(path=path, skip_bad_rows=True)
        assert source.examples == (Item("hi", "hello"),)
        assert source.notes[0].startswith("1 row passed over (")

    def test_columns_that_are_not_read_are_said_unless_the_config_names_some(self, tmp_path: Path) -> None:
        """The schema of a question to a database, or the options of one, are often in a column of their own."""
        row = {"question": "q", "context": "CREATE TABLE t", "answer": "a", "text": "q a", "id": 1}
        path = str(write(tmp_path / "a.jsonl", [row]))
        (said,) = LocalFile(path=path).notes
        assert said.startswith("columns that are not read: context, id. If one belongs to the example, put it")
        assert LocalFile(path=path, question="{context} {question}").notes == []
        many = {f"c{i}": "x" for i in range(10)}
        (said,) = LocalFile(path=str(write(tmp_path / "b.jsonl", [{"text": "x", **many}]))).notes
        assert "c6, c7 and 2 more. " in said

    def test_keys_without_a_value_in_tools_and_calls_are_said(self, tmp_path: Path) -> None:
        """`datasets` writes them into JSON; it fills up Parquet too, of which they are not read."""
        import datasets

        names = ("x", "y")
        calls = [
            [{"type": "function", "function": {"name": name, "arguments": {name: 1}}, "id": None}] for name in names
        ]
        rows = [
            {"messages": [{**HI, "content": name}, {**HELLO, "tool_calls": call}, {**HELLO, "tool_calls": None}]}
            for name, call in zip(names, calls, strict=True)
        ]
        rows = [
            {**row, "tools": [{**TOOL, "name": name, "note": {name: 1}}]} for name, row in zip(names, rows, strict=True)
        ]
        table = datasets.Dataset.from_list(rows)
        table.to_json(tmp_path / "a.jsonl")
        table.to_parquet(tmp_path / "a.parquet")
        assert [note.partition(", which")[0] for note in LocalFile(path=str(tmp_path / "a.jsonl")).notes] == [
            "2 cells of column 'messages' with keys that are null",
            "2 cells of column 'tools' with keys that are null",
        ]
        assert LocalFile(path=str(tmp_path / "a.parquet")).notes == []
        own = [{"messages": [{**HI, "name": None}, {**HELLO, "tool_calls": None}], "tools": None}]
        assert LocalFile(path=str(write(tmp_path / "b.jsonl", own))).notes == []


class TestChats:
    def test_its_question_is_all_before_the_last_reply(self) -> None:
        one, other = chat([BRIEF, HI, HELLO, *MORE]), chat([BRIEF, HI, HELLO, MORE[0], HELLO])
        assert isinstance(one, Chat)
        assert (one.id, one.answer) == (other.id, "so")
        assert one != other
        assert one.id != chat([HI, HELLO, *MORE]).id
        assert one.messages == [BRIEF, HI, HELLO, *MORE]
        assert len({one, other, chat([BRIEF, HI, HELLO, *MORE])}) == 2

    def test_a_held_out_question_is_not_trained_on_as_an_earlier_turn(self, tmp_path: Path) -> None:
        rows = [{"messages": [HI, HELLO]}, {"messages": [HI, HELLO, *MORE]}, {"messages": [MORE[0], HELLO]}]
        source = LocalFile(path=str(write(tmp_path / "a.jsonl", rows)))
        short, long, other = source.examples
        assert list(source.epoch(0, 0, frozenset({short.id}))) == [other]
        assert set(source.epoch(0, 0, frozenset({long.id}))) == {short, other}
        assert isinstance(long, Chat)
        assert long.ids == {long.id, short.id}

    def test_a_second_system_turn_is_said_to_be_unread(self, tmp_path: Path) -> None:
        rows = [
            {"messages": [BRIEF, HI, HELLO], "system": system, "system_prompt": other}
            for system, other in (("Be rude.", ""), (BRIEF["content"], "Be rude."), (f" {BRIEF['content']}\n", None))
        ]
        rows.append({"messages": [HI, HELLO], "system": "Be rude.", "system_prompt": ""})
        source = LocalFile(path=str(write(tmp_path / "a.jsonl", rows)))
        end = "not read: the conversation has another system turn"
        assert source.notes[:2] == [f"1 cell of column 'system' {end}", f"1 cell of column 'system_prompt' {end}"]
        assert source.examples[-1] == chat([{"role": "system", "content": "Be rude."}, HI, HELLO])

    def test_a_reply_of_calls_is_answered_with_them(self) -> None:
        call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
        made = chat([HI, {"role": "assistant", "content": "", "tool_calls": [call]}], [TOOL])
        assert isinstance(made, Chat)
        assert json.loads(made.answer) == [call["function"]]
        assert made.messages[-1] == {"role": "assistant", "content": "", "tool_calls": [call]}
        assert made.tools == [TOOL]
