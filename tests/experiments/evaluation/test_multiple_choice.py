"""Scores of options against their naive formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import MambaConfig, MambaForCausalLM, PreTrainedModel

from experiments.data.sources import ReasoningGym
from experiments.evaluation import multiple_choice
from experiments.evaluation.multiple_choice import Choice, score_options
from experiments.evaluation.tree import next_log_probs, reads_trees
from experiments.models.base import load_base
from experiments.models.modes import evaluating
from tests.helpers.families import EVERY, WINDOW
from tests.helpers.option_scores import BF16, expanded, largest_gap, naive_scores, random_choices, sharp
from tests.helpers.readers import build_other
from tests.helpers.small_run import draw_suites, small_config

SLOW = pytest.mark.slow


def short_choices(prefix: tuple[int, ...] = ()) -> list[Choice]:
    """Within the tiny models' sliding windows, but for a long prefix."""
    choices = [Choice(c.prompt[:3], tuple(option[:3] for option in c.options)) for c in random_choices((), 6)]
    return [Choice((*prefix, *c.prompt), c.options) for c in choices]


def mamba() -> PreTrainedModel:
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    return MambaForCausalLM(MambaConfig(**shape, eos_token_id=None)).eval()


class TestMultipleChoice:
    @pytest.mark.parametrize("prefix", [(), tuple(range(20))], ids=["no prefix", "shared prefix"])
    @pytest.mark.parametrize("build", [sharp, expanded])
    @pytest.mark.parametrize("nodes", [pytest.param(1, marks=SLOW), 50, pytest.param(512, marks=SLOW)])
    def test_equals_one_sequence_per_option(self, build: type, prefix: tuple[int, ...], nodes: int) -> None:
        model, choices = build(), random_choices(prefix, 12)
        expected = naive_scores(model, choices)
        assert np.ptp([score for row in expected for score in row]) > 0.5  # the options do differ
        assert reads_trees(model, 30)
        assert largest_gap(score_options(model, choices, nodes), expected) < 1e-4

    @pytest.mark.parametrize("eager", [False, True])
    @pytest.mark.parametrize("family", EVERY)
    def test_every_family_as_trees(self, tiny_model: type, family: str, eager: bool) -> None:
        model, choices = tiny_model(family).eval(), short_choices()
        if eager:
            model.set_attn_implementation("eager")
        assert reads_trees(model, max(choice.longest for choice in choices))
        assert largest_gap(score_options(model, choices), naive_scores(model, choices)) < 1e-4

    @pytest.mark.parametrize("family", EVERY)
    def test_every_family_behind_a_long_prompt(self, tiny_model: type, family: str) -> None:
        """Where its attention slides, paths longer than the window are read row by row."""
        model, choices = tiny_model(family).eval(), short_choices(tuple(range(1, 21)))
        slides = getattr(model.config, "sliding_window", None) == WINDOW
        assert reads_trees(model, max(choice.longest for choice in choices)) is not slides
        assert largest_gap(score_options(model, choices), naive_scores(model, choices)) < 1e-4

    @pytest.mark.parametrize("known", [True, False], ids=["by its name", "by the probe"])
    def test_a_window_of_its_own_is_read_row_by_row(self, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """GPT-Neo counts it in the tree's order, so a path's start can be too far away. Each path alone fits."""
        model, choices = build_other("gpt_neo", window_size=48), random_choices((), 12)
        if not known:
            monkeypatch.setattr("experiments.evaluation.tree.windows", lambda model: {})
        assert not reads_trees(model, 14, 64)
        assert largest_gap(score_options(model, choices, 64), naive_scores(model, choices)) < 1e-4

    def test_a_recurrent_model_is_read_row_by_row(self) -> None:
        model, choices = mamba(), random_choices((), 6)
        assert not reads_trees(model, 1)
        assert largest_gap(score_options(model, choices), naive_scores(model, choices)) < 1e-4

    def test_a_model_whose_branches_mix_is_read_row_by_row(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A model that takes a mask and does not heed it."""
        model, choices = sharp(), random_choices((), 6)
        attend = torch.nn.functional.scaled_dot_product_attention
        monkeypatch.setattr(
            torch.nn.functional,
            "scaled_dot_product_attention",
            lambda q, k, v, attn_mask=None, **rest: attend(
                q, k, v, **{**rest, "is_causal": attn_mask is None or len(attn_mask) == 1}
            ),
        )
        assert not reads_trees(model, 1)
        monkeypatch.undo()
        assert not reads_trees(model, 1)  # tried once
        assert largest_gap(score_options(model, choices), naive_scores(model, choices)) < 1e-4

    def test_adapters_and_bf16_are_read_as_trees(self) -> None:
        model, choices = get_peft_model(sharp(), LoraConfig(target_modules="all-linear")), random_choices((), 12)
        with evaluating(model, BF16):
            assert reads_trees(model, 30)
            scores, expected = score_options(model, choices), naive_scores(model, choices)
        assert largest_gap(scores, expected) < 0.03
        assert largest_gap(scores, naive_scores(model, choices)) > 0  # in fp32: bf16 it was

    def test_a_model_that_takes_no_such_mask(self) -> None:
        """OpenAI-GPT raised RuntimeError."""
        model, choices = build_other("openai"), random_choices((), 6)
        assert not reads_trees(model, 30)
        assert largest_gap(score_options(model, choices), naive_scores(model, choices)) < 1e-4

    def test_flash_attention_takes_no_tree(self) -> None:
        model = sharp()
        model.config._attn_implementation_internal = "flash_attention_2"
        assert not reads_trees(model, 1)

    def test_a_diverged_model_scores_nan(self) -> None:
        model, choices = sharp(), random_choices((), 2)
        torch.nn.init.constant_(model.lm_head.weight, torch.nan)
        assert reads_trees(model, 30)
        assert all(np.isnan(score) for row in score_options(model, choices) for score in row)

    def test_each_beginning_is_read_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        read: list[list[int]] = []
        monkeypatch.setattr(
            multiple_choice,
            "next_log_probs",
            lambda model, tree, asked: (read.append(tree.tokens), next_log_probs(model, tree, asked))[1],
        )
        choices = [Choice((1, 2, 3), ((4, 5, 6), (4, 5, 7), (8,))), Choice((1, 2), ((3, 9), (4,)))]
        assert largest_gap(score_options(sharp(), choices), naive_scores(sharp(), choices)) < 1e-5
        assert read == [[1, 2, 3, 4, 5]]

    def test_options_of_one_token(self) -> None:
        model, choices = sharp(), [Choice((1, 2, 3), ((4,), (5,), (6,), (7,)))]
        assert largest_gap(score_options(model, choices), naive_scores(model, choices)) < 1e-5

    def test_progress_counts_every_choice(self) -> None:
        seen: list[int] = []
        score_options(sharp(), random_choices((), 7), nodes=20, progress=seen.append)
        assert sum(seen) == 7
        assert len(seen) > 1

    def test_progress_counts_every_choice_read_row_by_row(self) -> None:
        seen: list[int] = []
        score_options(mamba(), random_choices((), 20), progress=seen.append)
        assert seen == [16, 4]

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
        suites = draw_suites(config, tokenizer, [ReasoningGym(name="chain_sum").held_out(1, 0)])
        for form in ("plain", "chat"):
            choices = suites.suites["kept"].choices[form][::3]
            assert largest_gap(score_options(model.eval(), choices), naive_scores(model, choices)) < 1e-4
