"""What is shown of a config before a run: shapes, counts, and the tokens that carry loss."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

import experiments
from experiments.common.printable import CODES
from experiments.config import ExperimentConfig
from experiments.runs.data import ExperimentData
from experiments.runs.preview import pieces, preview
from tests.helpers.byte_level import CHATML, byte_base, byte_tokenizer
from tests.helpers.chat_templates import QWEN3
from tests.helpers.small_run import small_config

TURNS = [{"role": role, "content": f"{role} \u65e5{i}"} for i in range(2) for role in ("user", "assistant")]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    (tmp_path / "own.jsonl").write_text("\n".join(json.dumps({"messages": TURNS, "id": i}) for i in range(3)))
    return tmp_path / "own.jsonl"


def config_of(base: str, chats: Path, **data: Any) -> ExperimentConfig:
    return small_config(base, data={"new": {"source": "file", "path": str(chats)}, **data})


@pytest.fixture(scope="module")
def base_of_bytes(tmp_path_factory: pytest.TempPathFactory) -> str:
    return byte_base(tmp_path_factory.mktemp("bytes"))


def test_the_shape_the_counts_and_one_example(base_of_bytes: str, chats: Path) -> None:
    found = experiments.preview(config_of(base_of_bytes, chats, length=128))
    (source,) = found.sources
    tokens = len(source.rows[0])
    assert source.name == "new: own"
    shape, counts, same, unread = source.facts
    assert shape == "shape: messages (columns messages)"
    learned = sum(len(f"assistant \u65e5{i}".encode()) + 1 for i in range(2))
    assert counts.startswith("1 examples: ")
    assert f" tokens, {learned} of them with loss (" in counts
    assert same == "2 of 3 examples repeat an earlier one and are read once"
    assert unread.startswith("columns that are not read: id. ")
    assert "".join(token.text for token in source.rows[0] if token.learned) == (
        "assistant \u65e50<|im_end|>assistant \u65e51<|im_end|>"
    )
    assert [learned for _, learned in pieces(source.rows[0])] == [False, True, False, True]
    assert tokens > 50
    assert "\u00ab" + "\u00a6".join(["a", "s", "s", "i", "s", "t", "a", "n", "t", " ", "\u65e5", "1"]) in str(found)
    page = found._repr_html_()
    assert "<h4>new: own</h4>" in page
    assert page.count("<span style=") == 2
    assert "&lt;|im_end|&gt;" in page


def test_what_prompts_lack_of_the_template_is_said(tmp_path: Path, chats: Path) -> None:
    """Here it is all that an option would change: enable_thinking had no effect, without a word."""
    block = "assistant\n{% if not enable_thinking %}<think></think>{% endif %}{% endif %}"
    closed = CHATML.replace("assistant\n{% endif %}", block)
    base = byte_base(tmp_path / "base", byte_tokenizer(closed))
    for options, found in (({"enable_thinking": False}, 1), ({"enable_thinking": True}, 0)):
        shown = str(preview(config_of(base, chats, length=128, template_options=options)))
        config = small_config(base, data={"new": {"name": "chain_sum"}, "template_options": options})
        said = ExperimentData(config, config.load_tokenizer()).counted()
        assert [text.count("ends a prompt with '<think></think>'") for text in (shown, str(said))] == [found, found]


def test_a_notebook_shows_text_of_others_as_it_is(base_of_bytes: str, tmp_path: Path) -> None:
    """Of rows, of names of files, and of columns."""
    hostile = "<script>alert(1)</script><img src=x onerror='alert(1)'>&amp;$x$"
    file = tmp_path / f"{hostile.replace('/', '')}.jsonl"
    file.write_text(json.dumps({"question": hostile, "answer": hostile, hostile: 1}))
    page = preview(config_of(base_of_bytes, file))._repr_html_()
    tags = re.findall("<[^>]*>", page)
    assert {tag.split()[0].strip("<>/") for tag in tags} == {"div", "h4", "pre", "span"}
    assert "ignore" in tags[0]  # formulas
    assert tags[-1] == "</div>"
    assert html.unescape(re.sub("<[^>]*>", "", page)).replace("\u00a6", "").count(hostile) == 3


def test_what_the_template_refuses_is_counted_and_another_one_is_shown(base_of_bytes: str, tmp_path: Path) -> None:
    rows = [{"messages": TURNS[1:]}, {"messages": TURNS}, {"messages": TURNS[:2]}]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    strict = "{% if messages[0].role == 'assistant' %}{{ raise_exception('no question') }}{% endif %}"
    (tmp_path / "strict.jinja").write_text(strict + str(byte_tokenizer().chat_template))
    new = {"source": "file", "path": str(tmp_path / "own.jsonl"), "skip_bad_rows": True}
    data = {"new": new, "template": str(tmp_path / "strict.jinja")}
    (source,) = preview(small_config(base_of_bytes, data=data)).sources
    assert any("1 of 3 conversations are passed over (" in fact and "no question" in fact for fact in source.facts)
    assert "assistant \u65e50<|im_end|>" in "".join(token.text for token in source.rows[0] if token.learned)


def test_what_is_too_long_is_counted_even_if_it_is_an_error(base_of_bytes: str, chats: Path) -> None:
    (source,) = preview(config_of(base_of_bytes, chats, length=32, overlong="error")).sources
    assert source.facts[1] == "1 examples: 0 tokens, 0 of them with loss (0%)"
    assert source.facts[2].startswith("1 are longer than data.length=32: ")
    assert "".join(token.text for token in source.rows[0]).endswith("\u65e51<|im_end|>")


def test_an_example_of_several_rows(tmp_path: Path, chats: Path) -> None:
    tokenizer = byte_tokenizer(QWEN3, extra=("<think>", "</think>"))
    (source,) = preview(config_of(byte_base(tmp_path / "base", tokenizer), chats, length=256)).sources
    assert source.facts[-1] == "this example is 2 rows: the template rewrites earlier turns"
    assert len(source.rows) == 2


def test_what_is_made_in_the_run_is_said(base_of_bytes: str, chats: Path) -> None:
    (_, written) = preview(config_of(base_of_bytes, chats, length=128, old={"source": "self"})).sources
    assert (written.name, written.facts) == ("old: self", ("written by the base model when the run starts",))


def test_text_of_others_has_no_codes_that_a_terminal_obeys(base_of_bytes: str, tmp_path: Path) -> None:
    hostile = "\x1b]0;title\x07 \x1b[2J \u202egnp.exe"
    row = {"messages": [{"role": "user", "content": hostile}, {"role": "assistant", "content": hostile}]}
    file = tmp_path / "a\x1b[2J.jsonl"
    file.write_text(json.dumps(row))
    found = experiments.preview(config_of(base_of_bytes, file, length=128))
    shown = [str(found), found._repr_html_(), *(text for text, _ in pieces(found.sources[0].rows[0]))]
    assert not any(CODES.search(text) for text in shown)
    assert "\\x1b" in shown[0]
