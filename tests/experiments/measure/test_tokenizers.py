"""In which words and tokens a model is asked, and that this is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers

from experiments.models.tokens import text_ids
from tests.helpers.byte_level import CHATML, QWEN3, byte_tokenizer
from tests.helpers.measured import model_folder, read


def test_other_rules_for_the_same_words_are_another_tokenizer(base: str, tmp_path: Path) -> None:
    """A model that learned lower case alone would be asked with the base's tokens, which it has never seen."""
    tokenizer: Any = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    (found,) = read(base, model_folder(tmp_path / "lower", tokenizer=tokenizer))
    assert (found.own, found.left_out) == (True, {})
    assert found.remark == "asked in its own tokens (the base has others): answers may change for that alone"
    assert found.tokenizer("ABC")["input_ids"] == tokenizer("abc")["input_ids"]


@pytest.mark.parametrize("template", [CHATML, None])
def test_another_start_of_texts_is_another_tokenizer(template: str | None, tmp_path: Path) -> None:
    """`add_bos_token` alone: a chat template may write no start, but plain texts and options begin with it."""
    base = model_folder(tmp_path / "base", tokenizer=byte_tokenizer(template))
    (found,) = read(base, model_folder(tmp_path / "bos", tokenizer=byte_tokenizer(template, bos=True)))
    assert (found.own, found.left_out) == (True, {})
    assert found.remark == "asked in its own tokens (the base has others): answers may change for that alone"
    assert text_ids(found.tokenizer, "a")[0] == found.tokenizer.bos_token_id


def test_another_template_asks_in_the_models_own_words(base: str, tmp_path: Path) -> None:
    """Its tokens are the base's, so distributions are compared."""
    (found,) = read(base, model_folder(tmp_path / "instruct", tokenizer=byte_tokenizer(QWEN3)))
    assert (found.own, found.left_out, found.extra) == (True, {}, 0)
    assert found.tokenizer.chat_template == QWEN3
    why = "answers may change for that alone"
    assert found.remark == ""  # its prompts are those of the base
    (found,) = read(base, model_folder(tmp_path / "brief", tokenizer=byte_tokenizer(f"Be brief.{CHATML}")))
    assert found.remark == f"asked in its own chat template (the base has another): {why}"
    plain = model_folder(tmp_path / "plain", tokenizer=byte_tokenizer(None))
    (found,), (other,) = read(plain, base), read(base, plain)
    assert found.remark == f"asked in its own chat template (the base has none): {why}"
    assert other.remark == f"asked without a chat template (the base has one): {why}"


def test_a_template_that_writes_the_same_prompts_is_not_said(base: str, tmp_path: Path) -> None:
    """Trainers mark what is learned in it, or save it with other blanks."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{# marked #}" + str(tokenizer.chat_template)
    (found,) = read(base, model_folder(tmp_path / "marked", tokenizer=tokenizer))
    assert (found.own, found.remark) == (True, "")
