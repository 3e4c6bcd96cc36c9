"""Replay of the base model's own text: sampled once, kept with its provenance, whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.data.base_text import PROVENANCE, ROWS, BaseText, SampledText
from experiments.data.items import Item, Text
from experiments.data.source import SourceContext
from experiments.models.weights_digest import weights_digest
from tests.helpers.small_run import tiny_base

pytestmark = pytest.mark.slow

SMALL: dict[str, Any] = {"number": 6, "max_tokens": 5, "batch_size": 4}


class Calls:
    """Gives the model and counts how often it was asked for. favour: a token that gets this much on its logit."""

    def __init__(self, base: str, tokenizer: PreTrainedTokenizerBase, favour: float = 0.0) -> None:
        self.base, self.count, self.favour = base, 0, favour
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    def __call__(self) -> PreTrainedModel:
        self.count += 1
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(self.base)
        bias = torch.zeros(model.config.vocab_size)
        bias[self.end] = self.favour
        model.get_output_embeddings().register_forward_hook(lambda module, inputs, out: out + bias)
        return model


Open = Callable[..., tuple[SourceContext, Calls]]


@pytest.fixture
def open_context(base: str, tmp_path: Path) -> Open:
    def open_(template: bool = True, favour: float = 0.0, name: str = base) -> tuple[SourceContext, Calls]:
        tokenizer = AutoTokenizer.from_pretrained(base)
        if not template:
            tokenizer.chat_template = None
        calls = Calls(base, tokenizer, favour)
        return SourceContext(tokenizer, calls, name, "fp32", tmp_path), calls

    return open_


def sampled(context: SourceContext, **fields: Any) -> SampledText:
    made = BaseText(**{**SMALL, **fields}).materialise(context)
    assert isinstance(made, SampledText)
    return made


def test_a_chat_model_writes_questions_and_replies(open_context: Open) -> None:
    context, _ = open_context()
    rows = sampled(context).examples
    assert 3 < len(rows) <= 6
    for row in rows:
        assert isinstance(row, Item)
        assert row.question
        assert row.answer
        assert row.question != row.answer
        assert not row.ended  # a random model hardly ever ends a turn within five tokens
        assert "<|" not in row.question + row.answer


def test_questions_are_sampled_behind_the_templates_opening_and_replies_behind_the_questions(
    open_context: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def generate(self: PreTrainedModel, **inputs: Any) -> Any:
        real = zip(inputs["input_ids"], inputs["attention_mask"].bool(), strict=True)
        asked.extend(context.tokenizer.decode(ids[mask]) for ids, mask in real)
        return plain(self, **inputs)

    plain = LlamaForCausalLM.generate
    monkeypatch.setattr(LlamaForCausalLM, "generate", generate)
    context, _ = open_context()
    rows = sampled(context).examples
    assert len(set(asked[:6])) == 1
    assert asked[0].endswith("<|im_start|>user\n")
    assert {f"<|im_start|>user\n{row.question}<|im_end|>\n<|im_start|>assistant\n" for row in rows} <= {
        text[text.index("<|im_start|>user") :] for text in asked[6:]
    }


def test_a_reply_that_ends_by_itself_is_marked_so(open_context: Open) -> None:
    context, _ = open_context(favour=9.5)
    rows = [row for row in sampled(context, number=16, batch_size=16).examples if isinstance(row, Item)]
    assert {row.ended for row in rows} == {True, False}
    lengths = [len(context.tokenizer(row.answer)["input_ids"]) for row in rows if not row.ended]
    assert min(lengths) > 2


def test_a_base_model_writes_texts(open_context: Open) -> None:
    context, _ = open_context(template=False)
    rows = sampled(context).examples
    assert rows
    assert all(isinstance(row, Text) and row.text for row in rows)


def test_a_second_run_does_not_call_the_model(open_context: Open) -> None:
    context, calls = open_context()
    first = sampled(context, share=0.5)
    again = sampled(context)
    assert calls.count == 1
    assert again.examples == first.examples
    assert (first.share, again.share) == (0.5, 1.0)


def test_the_same_settings_give_the_same_sample_and_others_another(open_context: Open, tmp_path: Path) -> None:
    context, calls = open_context()
    first = sampled(context)
    elsewhere = SourceContext(context.tokenizer, calls, context.base_model, context.precision, tmp_path / "elsewhere")
    before = torch.get_rng_state()
    assert sampled(elsewhere).examples == first.examples
    assert torch.equal(torch.get_rng_state(), before)
    for change in ({"seed": 1}, {"temperature": 0.5}, {"max_tokens": 4}):
        other = sampled(context, **change)
        assert other.folder != first.folder
        assert other.examples != first.examples
    assert calls.count == 5


def test_another_model_is_another_cache(open_context: Open, tmp_path: Path) -> None:
    context, _ = open_context()
    other, calls = open_context(name=tiny_base(tmp_path / "other"))
    assert sampled(context).folder != sampled(other).folder
    assert calls.count == 1
    loaded = dataclasses.replace(context, loaded="4bit")  # of the same files
    assert len({sampled(one).folder for one in (context, loaded, dataclasses.replace(context, loaded="eager"))}) == 3


def test_other_weights_of_the_same_size_and_time_are_another_cache(
    open_context: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = Path(tiny_base(tmp_path / "other")) / "model.safetensors"
    monkeypatch.setenv("HOME", str(tmp_path))  # now: the shipped model's tokenizer is in a folder below the real one
    context, calls = open_context(name="~/other")
    first, known = sampled(context), file.stat()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] + whole[len(whole) // 2 :][::-1])
    os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns))
    assert sampled(context).folder != first.folder
    assert calls.count == 2
    known, between = file.stat(), len(whole) // 30  # in the middle of two samples, which the folder's name is made of
    changed = bytearray(file.read_bytes())
    changed[between] ^= 1
    for data, count in ((changed, 3), (changed, 3)):
        file.write_bytes(data)
        os.utime(file, ns=(known.st_atime_ns, known.st_mtime_ns))
        sampled(context)
        assert calls.count == count


def test_provenance_says_how_it_was_made(open_context: Open) -> None:
    context, calls = open_context()
    made = json.loads((Path(sampled(context).folder) / PROVENANCE).read_text())
    assert made["base_model"] == context.base_model
    assert made["settings"] == {**BaseText(**SMALL).model_dump(exclude={"source", "share"})}
    assert set(made["versions"]) == {"torch", "transformers"}
    assert made["rows"] == len((Path(sampled(context).folder) / ROWS).read_text().splitlines())
    assert made["weights"] == weights_digest(calls())


@pytest.mark.parametrize("damage", ["unfinished", "cut short", "no json", "of other settings"])
def test_half_a_cache_is_sampled_again(damage: str, open_context: Open) -> None:
    context, calls = open_context()
    first = sampled(context)
    folder = Path(first.folder)
    if damage == "unfinished":
        (folder / PROVENANCE).unlink()
    elif damage == "cut short":
        (folder / ROWS).write_text((folder / ROWS).read_text()[:-9])
    elif damage == "of other settings":
        made = json.loads((folder / PROVENANCE).read_text())
        (folder / PROVENANCE).write_text(json.dumps(made | {"precision": "bf16"}))
    else:
        (folder / PROVENANCE).write_text("{")
    assert sampled(context).examples == first.examples
    assert calls.count == 2


def test_a_killed_sampling_leaves_nothing_that_counts(open_context: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    context, calls = open_context()

    def killed(path: Path, values: Any) -> None:
        raise KeyboardInterrupt("killed")

    with monkeypatch.context() as patch:
        patch.setattr("experiments.data.base_text.write_json", killed)
        with pytest.raises(KeyboardInterrupt, match="killed"):
            sampled(context)
    assert sampled(context).examples
    assert calls.count == 2


def test_nothing_usable_says_what_to_do(open_context: Open) -> None:
    context, _ = open_context(favour=100.0)
    with pytest.raises(ConfigError, match=r"none of 6 texts sampled from .* could be used: raise max_tokens"):
        sampled(context)


def test_another_commit_of_a_model_of_the_hub_writes_its_own_text(
    open_context: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its name stays the same when somebody uploads other weights. Earlier versions noted no commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    newest = tmp_path / "hub" / "models--some--model" / "refs" / "main"
    newest.parent.mkdir(parents=True)
    context, calls = open_context(name="some/model")
    sampled(context)  # of a commit that is not known
    newest.write_text("1111")
    sampled(context)
    assert calls.count == 1
    note = next(tmp_path.rglob(PROVENANCE))
    note.write_text(json.dumps({**json.loads(note.read_text()), "content": [["commit", "1111"]]}))
    sampled(context)
    assert calls.count == 1
    newest.write_text("2222")
    sampled(context)
    assert calls.count == 2
    sampled(context)
    assert calls.count == 2
