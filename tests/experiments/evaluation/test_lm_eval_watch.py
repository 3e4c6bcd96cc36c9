"""What lm_eval meets without a word is said: logits that are NaN, and prompts that it cuts."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from experiments.common.errors import NotFinite
from experiments.evaluation.lm_eval_watch import ITS_LOGGER, cuts_said, finite


class Model(nn.Module):
    def forward(self, logits: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=logits)


def test_logits_that_are_nan_end_the_measurement() -> None:
    """Greedy replies would be token 0, and the likelihood of a single option wrong: both look like a wrong answer."""
    model, good = Model(), torch.zeros(2, 3, 5)
    bad = good.clone()
    bad[1, -1] = torch.nan
    with finite(model):
        model(good)
        with pytest.raises(NotFinite, match="logits are not finite"):
            model(bad)
    model(bad)  # the hook is gone


@pytest.mark.parametrize("said", ["Truncating 3 tokens from the left.", "Left truncation applied. Original"])
def test_prompts_that_are_cut_are_said_once(said: str, caplog: pytest.LogCaptureFixture) -> None:
    theirs = logging.getLogger(ITS_LOGGER)
    before = theirs.level
    theirs.setLevel(logging.ERROR)
    try:
        with cuts_said("gsm8k"):
            theirs.warning(said)
            theirs.warning(said)
            theirs.warning("of a model that is loaded")
        assert [said in text and "gsm8k" in text for text in caplog.messages] == [True]
        with cuts_said("gsm8k"):
            theirs.warning("of a model that is loaded")
        assert len(caplog.messages) == 1
        assert theirs.level == logging.ERROR
    finally:
        theirs.setLevel(before)
