"""Requests of lm_eval are asked in parts that do not depend on the number of processes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from experiments.evaluation import lm_eval_parts
from experiments.evaluation.lm_eval_parts import KINDS, parts_of, share_requests


class Model:
    """Answers each request with its text, a number of the random state, and how many it was asked at once."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def _answers(self, requests: list[Any], **options: Any) -> list[Any]:
        self.asked.append(len(requests))
        return [(request.args[0], options, torch.rand(1).item()) for request in requests]

    loglikelihood = loglikelihood_rolling = generate_until = _answers


def requests_of(*texts: str) -> list[Any]:
    return [SimpleNamespace(args=(text, "x")) for text in texts]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_each_request_in_order(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_eval_parts, "PART", 2)
    model = Model()
    share_requests(model)
    texts = ["b", "ccc", "a", "ccc", "dd"]
    first = getattr(model, kind)(requests_of(*texts), disable_tqdm=True)
    assert [text for text, _, _ in first] == texts
    assert all(options == {"disable_tqdm": True} for _, options, _ in first)
    assert model.asked == [2, 2, 1]
    torch.rand(7)  # what is drawn depends on the part alone
    assert getattr(model, kind)(requests_of(*texts), disable_tqdm=True) == first


def test_parts_begin_with_the_longest_and_keep_a_prompt_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_eval_parts, "PART", 3)
    assert parts_of(requests_of("bb", "a", "aa", "bb", "cccc", "aa")) == [[4, 2, 5], [0, 3, 1]]
    assert parts_of([]) == []
