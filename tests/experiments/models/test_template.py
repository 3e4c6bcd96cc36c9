"""The settled chat template: its system turn, its variables and its date, as all who use the tokenizer read them."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from experiments.common.errors import ModelError
from experiments.data.items import Item
from experiments.models.base import load_base
from experiments.models.template import TEMPLATES, save_tokenizer, set_template, variables
from experiments.models.tokens import end_of_turn, prompt_ids
from tests.helpers.byte_level import CHATML, QWEN3, byte_base, byte_tokenizer
from tests.helpers.encoded import encode


def prompt(tokenizer: PreTrainedTokenizerBase) -> str:
    return str(tokenizer.decode(prompt_ids(tokenizer, "hi")))


class TestSystem:
    @pytest.fixture
    def tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
        return copy.deepcopy(tokenizer)  # the session's own stays as it is

    def test_prompts_begin_with_the_given_turn(self, tokenizer: PreTrainedTokenizerBase) -> None:
        before = tokenizer.decode(prompt_ids(tokenizer, "Hello"))
        set_template(tokenizer, 'Say "no".\nÄ{{1}}')
        text = tokenizer.decode(prompt_ids(tokenizer, "Hello"))
        assert text.startswith('<|im_start|>system\nSay "no".\nÄ{{1}}<|im_end|>\n')
        assert text.partition("<|im_end|>")[2] == before.partition("<|im_end|>")[2]

    def test_an_empty_one_leaves_it_empty_and_rows_hold_it(self, tokenizer: PreTrainedTokenizerBase) -> None:
        set_template(tokenizer, "")
        row = encode(Item("2 + 3 =", "5"), tokenizer)
        assert tokenizer.decode(row["input_ids"]).startswith(
            "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n2 + 3 ="
        )

    def test_a_system_turn_in_the_chat_wins(self, tokenizer: PreTrainedTokenizerBase) -> None:
        set_template(tokenizer, "mine")
        turns = [{"role": "system", "content": "theirs"}, {"role": "user", "content": "x"}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        assert "theirs" in text
        assert "mine" not in text

    def test_it_is_saved_with_the_tokenizer(self, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
        set_template(tokenizer, "mine")
        tokenizer.save_pretrained(tmp_path)
        assert prompt_ids(AutoTokenizer.from_pretrained(tmp_path), "x") == prompt_ids(tokenizer, "x")

    def test_no_template_and_one_that_refuses(self, plain_tokenizer: PreTrainedTokenizerBase) -> None:
        plain_tokenizer.chat_template = None
        set_template(plain_tokenizer)
        with pytest.raises(ModelError, match=r"data\.system='x' needs a chat template"):
            set_template(plain_tokenizer, "x")
        with pytest.raises(ModelError, match=r"data\.template_options=\{'a': 1\} needs a chat template"):
            set_template(plain_tokenizer, options={"a": 1})
        plain_tokenizer.chat_template = (
            "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
        )
        with pytest.raises(ModelError, match=r"refuses it \(no system turns\)"):
            set_template(plain_tokenizer, "x")

    def test_one_that_leaves_it_out(self) -> None:
        without = CHATML.replace("for m in messages", "for m in messages if m['role'] != 'system'")
        assert without != CHATML
        with pytest.raises(ModelError, match=r"data\.system='Be brief\.': .*leaves it out: data\.merge_system: true"):
            set_template(byte_tokenizer(without), "Be brief.")
        set_template(byte_tokenizer(without), "Be brief.", merge_system=True)
        set_template(byte_tokenizer(without), "")
        trimmed = CHATML.replace("m['content']", "m['content'] | trim")
        set_template(byte_tokenizer(trimmed), " Be \n brief. ")


class TestNamed:
    @pytest.mark.parametrize("system", [None, "Be brief."])
    def test_of_several_templates_the_default_one_is_taken(self, system: str | None) -> None:
        named, single = byte_tokenizer({"default": CHATML, "tool_use": CHATML + "TOOLS"}), byte_tokenizer(CHATML)
        set_template(named, system)
        set_template(single, system)
        assert prompt(named) == prompt(single)
        assert system is None or prompt(named).startswith("<|im_start|>system\nBe brief.<|im_end|>")

    def test_none_is_the_default(self) -> None:
        with pytest.raises(ModelError, match=r"several chat templates \(rag, tool_use\) and none is named default"):
            set_template(byte_tokenizer({"tool_use": CHATML, "rag": CHATML}))

    def test_a_loaded_base_has_one(self, tmp_path: Path) -> None:
        folder = byte_base(tmp_path, byte_tokenizer({"default": CHATML, "tool_use": CHATML + "TOOLS"}))
        tokenizer = load_base(folder, "Be brief.")[1]
        system = "<|im_start|>system\nBe brief.<|im_end|>\n"
        chat = f"{system}<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nyo<|im_end|>"
        assert encode(Item("hi", "yo"), tokenizer)["input_ids"] == tokenizer(chat)["input_ids"]


class TestOptions:
    @pytest.mark.parametrize("value", [False, 3, 0.5, 'a "b"\n{{ c }}'])
    def test_a_variable_has_the_value_in_prompts_and_rows(self, value: bool | float | str) -> None:
        tokenizer = byte_tokenizer("{{ shown }}|" + CHATML)
        set_template(tokenizer, options={"shown": value})
        assert prompt(tokenizer).startswith(f"{value}|<|im_start|>user")
        assert tokenizer.decode(encode(Item("hi", "yo"), tokenizer)["input_ids"]).startswith(f"{value}|<|im_start|>")

    def test_thinking_is_switched_off_in_the_prompt(self) -> None:
        tokenizer = byte_tokenizer(QWEN3, extra=("<think>", "</think>"))
        set_template(tokenizer, "Be brief.", {"enable_thinking": False})
        assert prompt(tokenizer).startswith("<|im_start|>system\nBe brief.")
        assert prompt(tokenizer).endswith("assistant\n<think>\n\n</think>\n\n")

    def test_a_variable_that_the_template_does_not_read(self) -> None:
        with pytest.raises(ModelError, match="reads no 'enable_thinkin': leave it out"):
            set_template(byte_tokenizer(QWEN3), options={"enable_thinkin": False})
        own = (
            "{%- set system_message = messages[0]['content'] %}{{ system_message }}"  # what is given would be replaced
        )
        for name in ("system_message", "content"):
            with pytest.raises(ModelError, match=f"reads no '{name}': leave it out"):
                set_template(byte_tokenizer(own), options={name: "x"})

    @pytest.mark.parametrize(
        "template",
        [
            "{% if x is not defined %}{% set x = 1 %}{% endif %}{{ x }}",
            "{% if messages[0].role == 'system' %}{% set x = 1 %}{% endif %}{{ x }}",
            "{% generation %}{{ x }}{% endgeneration %}",
            "{% for m in messages %}{% if x %}{% break %}{% endif %}{% endfor %}",
            "{% unknown %}{{ x }}",
        ],
    )
    def test_a_variable_with_a_default_of_the_template_is_read(self, template: str) -> None:
        assert "x" in variables(template)

    def test_a_value_that_the_template_refuses(self) -> None:
        template = "{% if mode == 'x' %}{{ raise_exception('no mode x') }}{% endif %}" + CHATML
        with pytest.raises(ModelError, match=r"template_options=\{'mode': 'x'\}.*refuses it \(no mode x\)"):
            set_template(byte_tokenizer(template), options={"mode": "x"})


class TestDates:
    @pytest.mark.parametrize("call", ['strftime_now("%d %b %Y")', "strftime_now( '%d %b %Y' )"])
    def test_a_date_is_the_same_on_all_days_of_a_run(self, call: str, tmp_path: Path) -> None:
        day = f"{{% if strftime_now is defined %}}{{% set day = {call} %}}{{% endif %}}{{{{ day }}}}"
        tokenizer = byte_tokenizer(day + CHATML)
        set_template(tokenizer, system="Be brief.")
        settled = tokenizer.chat_template
        assert prompt(tokenizer).startswith("26 Jul 2024<|im_start|>system")
        save_tokenizer(copy.deepcopy(tokenizer), tmp_path)  # as an exported model is served
        assert AutoTokenizer.from_pretrained(tmp_path).chat_template == settled.replace('"26 Jul 2024"', call)
        assert tokenizer.chat_template == settled

    def test_a_format_that_is_computed(self) -> None:
        with pytest.raises(ModelError, match="each day would give other chats"):
            set_template(byte_tokenizer("{{ strftime_now(format) }}" + CHATML))


class TestChosen:
    @pytest.mark.parametrize("name", TEMPLATES)
    def test_a_tokenizer_without_a_template_gets_one_by_name(self, name: str) -> None:
        tokenizer = byte_tokenizer(None, eos="</s>")
        set_template(tokenizer, "Be brief.", template=name)
        text = prompt(tokenizer)
        assert text.index("Be brief.") < text.index("hi")
        row = encode(Item("hi", "yo"), tokenizer)
        assert str(tokenizer.decode(row["input_ids"])).startswith(text + "yo")
        assert row["labels"][-1] == end_of_turn(tokenizer)
        assert row["input_ids"].count(tokenizer.bos_token_id) == (name == "plain")

    def test_one_of_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "a.jinja").write_text(CHATML.replace("user", "person"), encoding="utf-8-sig")
        tokenizer = byte_tokenizer("{{ messages }}")
        set_template(tokenizer, template=str(tmp_path / "a.jinja"))
        assert prompt(tokenizer) == prompt(byte_tokenizer(CHATML))

    def test_one_of_the_tokenizers_own(self) -> None:
        tokenizer = byte_tokenizer({"tool_use": "TOOLS" + CHATML, "rag": CHATML})
        set_template(tokenizer, template="tool_use")
        assert prompt(tokenizer).startswith("TOOLS<|im_start|>user")

    def test_faults(self, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"data.template='chatm' is no file .* did you mean 'chatml'\?"):
            set_template(byte_tokenizer(), template="chatm")
        (tmp_path / "a.jinja").write_bytes(b"\xff")
        with pytest.raises(ModelError, match=r"a.jinja' is not UTF-8 text"):
            set_template(byte_tokenizer(), template=str(tmp_path / "a.jinja"))
        (tmp_path / "a.jinja").write_text("{% if %}")
        with pytest.raises(ModelError, match=r"data.template='.*a.jinja': this model's chat template refuses it"):
            set_template(byte_tokenizer(), template=str(tmp_path / "a.jinja"))
        with pytest.raises(ModelError, match=r"data.merge_system=True needs a chat template"):
            set_template(byte_tokenizer(None), merge_system=True)


class TestMergedSystem:
    @pytest.mark.parametrize(
        ("roles", "merged"),
        [
            ("su", "[user]s\n\nu"),
            ("sa", "[user]s[assistant]a"),
            ("s", "[user]s"),
            ("ua", "[user]u[assistant]a"),
            (" u", "[user]u"),
        ],
    )
    def test_it_begins_the_question(self, roles: str, merged: str) -> None:
        names = {"s": "system", " ": "system", "u": "user", "a": "assistant"}
        tokenizer = byte_tokenizer("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
        set_template(tokenizer, merge_system=True)
        turns = [{"role": names[one], "content": one} for one in roles]
        assert tokenizer.apply_chat_template(turns, tokenize=False) == merged

    def test_that_of_the_config_too(self) -> None:
        tokenizer = byte_tokenizer("{{ messages[0].role }}: " + CHATML)
        set_template(tokenizer, "Be brief.", merge_system=True)
        assert prompt(tokenizer).startswith("user: <|im_start|>user\nBe brief.\n\nhi<|im_end|>")
