"""The option that a reply names."""

from __future__ import annotations

import pytest

from experiments.evaluation.choices import named_first

OPTIONS = ("Guinea", "Guinea-Bissau", "South Africa", "Mali")


@pytest.mark.parametrize(
    ("reply", "option"),
    [
        ("Mali", 3),
        ("It is south africa, not Mali.", 2),
        ("Guinea-Bissau.", 1),
        ("guinea and Guinea-Bissau", 0),
        ("Somalia", None),
        ("Maliguinea", None),
        ("**South** Africa", 2),
        ("<think>Mali?</think>Guinea", 0),  # a thought is no answer
        ("<think>Mali", None),
        ("\u7b54\u6848\u662fMali\u3002", 3),
        ("", None),
    ],
)
def test_a_reply_answers_what_it_names_first(reply: str, option: int | None) -> None:
    assert named_first(reply, OPTIONS) == option


@pytest.mark.parametrize("reply", ["Mali", "It is Mali.", "**Mali**, I think"])
def test_options_may_end_with_a_full_stop_and_be_marked(reply: str) -> None:
    assert named_first(reply, ("Guinea.", "**Mali**.", "3.5.")) == 1
    assert named_first("3.5 m", ("Guinea.", "Mali.", "3.5.")) == 2
    assert named_first("", ("**", "Mali.")) is None
