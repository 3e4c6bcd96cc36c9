"""The likelihood of general text against its definition, over windows of a story."""

from __future__ import annotations

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from experiments.evaluation.suites.text import text_nll, text_windows, windows_of
from experiments.models.tokens import text_ids
from tests.helpers.byte_level import byte_tokenizer
from tests.helpers.option_scores import sharp


def test_nll_against_the_definition() -> None:
    model = sharp()
    windows = [list(range(10)), [5, 4, 3], list(range(20, 35))]
    for window, value in zip(windows, text_nll(model, windows, batch_size=2), strict=True):
        with torch.no_grad():
            log_probs = model(input_ids=torch.tensor([window]), use_cache=False).logits[0].log_softmax(-1)
        terms = [-float(log_probs[t, token]) for t, token in enumerate(window[1:])]
        assert value == pytest.approx(sum(terms) / len(terms), abs=1e-4)


def test_text_is_the_story_in_windows(tokenizer: PreTrainedTokenizerBase) -> None:
    windows = text_windows(tokenizer, 600)
    assert [len(window) for window in windows] == [256, 256, 88]
    text = tokenizer.decode(windows[0])
    assert text.startswith("Little though they seem to think of it, the people of this twenty-ninth century")
    assert "\n" not in text.split("\n\n")[0]


@pytest.mark.parametrize("bos", [True, False])
def test_each_window_begins_as_the_tokenizer_begins_a_text(bos: bool) -> None:
    """Gemma's likelihood of a text without its bos is no measure of the model."""
    made = byte_tokenizer(bos=bos)
    start = [made.bos_token_id] * bos
    for windows in (text_windows(made, 600), windows_of(text_ids(made, "a" * 600), start)):
        assert [len(window) - len(start) for window in windows] == [256, 256, 88]
        assert all(window[: len(start)] == start for window in windows)
        assert sum(window.count(made.bos_token_id) for window in windows) == 3 * bos
