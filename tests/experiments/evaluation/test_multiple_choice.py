"""Scores of options against their naive formula."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.data.sources import ReasoningGym
from experiments.evaluation.evaluate import Evaluation
from experiments.evaluation.multiple_choice import Choice, _blocks, score_options
from experiments.evaluation.prompts import Prompts
from experiments.models import load_base
from tests.experiments.evaluation.models import expanded, largest_gap, naive_scores, random_choices, sharp
from tests.experiments.small import small_config


class TestMultipleChoice:
    @pytest.mark.parametrize("prefix", [(), tuple(range(20))], ids=["no prefix", "shared prefix"])
    @pytest.mark.parametrize("build", [sharp, expanded])
    @pytest.mark.parametrize("batch_size", [1, 5, 64])
    @pytest.mark.slow
    def test_equals_one_sequence_per_option(self, build: type, prefix: tuple[int, ...], batch_size: int) -> None:
        model, choices = build(), random_choices(prefix, 12)
        expected = naive_scores(model, choices)
        assert np.ptp([score for row in expected for score in row]) > 0.5  # the options do differ
        assert largest_gap(score_options(model, choices, batch_size), expected) < 1e-4

    @pytest.mark.parametrize("family", ["mistral", "qwen3", "gpt2", "gpt_neox"])
    def test_other_families(self, tiny_model: type, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a start that all prompts share, and options that leave early. Short: within sliding windows."""
        monkeypatch.setattr("experiments.evaluation.prompts.PAYS", 1)
        monkeypatch.setattr("experiments.evaluation.multiple_choice.PAYS", 1)
        model, choices = tiny_model(family).eval(), random_choices((), 6)
        short = [Choice((1, 2, *c.prompt[:2]), tuple(option[:3] for option in c.options)) for c in choices]
        assert largest_gap(score_options(model, short), naive_scores(model, short)) < 1e-4

    def test_options_of_one_token(self) -> None:
        model, choices = sharp(), [Choice((1, 2, 3), ((4,), (5,), (6,), (7,)))]
        assert largest_gap(score_options(model, choices), naive_scores(model, choices)) < 1e-5

    def test_options_that_end_early_leave(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Scores are the same, and fewer tokens are read."""
        model, choices = sharp(), random_choices((), 60)
        expected = naive_scores(model, choices)
        read: list[int] = []
        one = Prompts.read
        monkeypatch.setattr(
            Prompts, "read", lambda self, ids, *rest: (read.append(ids.numel()), one(self, ids, *rest))[1]
        )
        assert largest_gap(score_options(model, choices), expected) < 1e-4
        prompts, *blocks = read
        read.clear()
        monkeypatch.setattr("experiments.evaluation.multiple_choice.PAYS", 10**6)
        assert largest_gap(score_options(model, choices), expected) < 1e-4
        assert prompts == read[0]
        assert sum(blocks) < 0.8 * sum(read[1:])

    @pytest.mark.parametrize(
        ("lengths", "cuts"),
        [
            ([1, 2, 3], [3]),  # 2 tokens could be saved: not worth a pass
            ([5] * 100, [5]),
            ([1] * 64 + [2], [1, 2]),
            ([1] * 63 + [2], [2]),
            ([1] * 50 + [3] * 50 + [5] * 50, [1, 3, 5]),
        ],
    )
    def test_blocks(self, lengths: list[int], cuts: list[int]) -> None:
        assert _blocks(lengths) == cuts

    def test_progress_counts_every_choice(self) -> None:
        seen: list[int] = []
        score_options(sharp(), random_choices((), 7), batch_size=3, advance=seen.append)
        assert seen == [3, 3, 1]

    def test_nothing_to_score(self) -> None:
        assert score_options(sharp(), []) == []

    @pytest.mark.parametrize(("prompt", "options"), [((), ((1,),)), ((1,), ()), ((1,), ((1,), ()))])
    def test_empty_parts_are_refused(self, prompt: tuple[int, ...], options: tuple[tuple[int, ...], ...]) -> None:
        with pytest.raises(ValueError, match="need at least one token"):
            Choice(prompt, options)

    @pytest.mark.slow
    def test_equals_one_sequence_per_option_on_the_real_model(self) -> None:
        model, tokenizer = load_base("smollm2-135m-instruct")
        config = small_config("smollm2-135m-instruct")
        evaluation = Evaluation(config, tokenizer, [ReasoningGym().held_out(1, 0)])
        for form in ("plain", "chat"):
            choices = evaluation.suites["kept"].choices[form]
            assert largest_gap(score_options(model.eval(), choices), naive_scores(model, choices)) < 1e-4
