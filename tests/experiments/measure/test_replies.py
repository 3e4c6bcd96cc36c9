"""Replies of a server on disk: asked for once, and again if the file or the server's model is another one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from experiments.measure.endpoint import Endpoint
from experiments.measure.replies import Replies, changed_replies
from tests.helpers.reply_server import ReplyServer, reply


def test_replies_that_are_there_are_not_asked_for_again(echo: ReplyServer, tmp_path: Path) -> None:
    one, file, counted = Endpoint.opened(echo.address), tmp_path / "replies.jsonl", list[int]()
    questions = [f"q{i}" for i in range(20)]
    assert Replies.read(one, file, counted.append).ask(questions, 5) == [q.upper() for q in questions]
    assert (len(echo.asked), sum(counted)) == (20, 20)
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:9])  # killed while it wrote the last one
    assert Replies.read(one, file).ask([*questions, "more"], 5) == [*(q.upper() for q in questions), "MORE"]
    assert len(echo.asked) == 22
    assert Replies.read(one, file).ask(questions, 6) == [q.upper() for q in questions]  # more tokens: other replies
    assert len(echo.asked) == 42


@pytest.mark.parametrize("damage", ["another reply", "bytes", "another model", "of an earlier version"])
def test_replies_that_were_changed_are_asked_again(damage: str, echo: ReplyServer, tmp_path: Path) -> None:
    one, file = Endpoint.opened(echo.address), tmp_path / "replies.jsonl"
    assert Replies.read(one, file).ask(["a", "b"], 5) == ["A", "B"]
    whole, asked = file.read_bytes(), len(echo.asked)
    if damage == "another reply":
        file.write_bytes(whole.replace(b'"A"', b'"C"'))
    elif damage == "bytes":
        file.write_bytes(whole.replace(b'"A"', b'"\xff"'))
    elif damage == "another model":
        file.write_text("")
        Replies.read(dataclasses.replace(one, model="other"), file).ask(["a"], 5)
        file.write_bytes(file.read_bytes() + b"\n" + whole.splitlines()[-1])
        asked += 1
    else:
        file.write_text(
            "".join(line[: line.index(', "digest"')] + "}\n" for line in whole.decode().split("\n") if line)
        )
    again = Replies.read(Endpoint.opened(echo.address), file)
    assert again.ask(["a", "b"], 5) == ["A", "B"]
    assert len(echo.asked) == asked + (damage != "of an earlier version")


@pytest.mark.parametrize(("now", "changed"), [("the same", 0), ("another model", 8), ("one reply", 1), ("silent", 0)])
def test_a_server_with_another_model_is_found_by_its_replies(
    now: str, changed: int, echo: ReplyServer, tmp_path: Path
) -> None:
    one, file = Endpoint.opened(echo.address), tmp_path / "replies.jsonl"
    assert changed_replies(one, file) == (0, 0)
    Replies.read(one, file).ask([f"q{i}" for i in range(20)], 5)
    if now == "another model":
        echo.answer = lambda body: reply("42")
    elif now == "one reply":
        usual = echo.answer
        echo.answer = lambda body: reply("42") if body["messages"][-1]["content"] == "q0" else usual(body)
    elif now == "silent":
        echo.answer = lambda body: (503, {}, {})
    order = [line for line in file.read_text().splitlines() if line.strip()]  # the replies came in any order
    file.write_text("\n".join(sorted(order, key=lambda line: '"q0"' not in line)))
    assert changed_replies(one, file) == (changed, 0 if now == "silent" else 8)
    echo.answer = lambda body: pytest.fail("earlier versions noted no questions")
    file.write_text("\n".join(line[: line.index(', "question"')] + "}" for line in order))
    assert changed_replies(one, file) == (0, 0)
