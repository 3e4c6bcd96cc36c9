"""Evaluation: probes, scores against their naive formulas, replies, drift, and the suite as a whole."""

from __future__ import annotations

import collections
import copy
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import ctrl
from experiments.config import ConfigError, ExperimentConfig
from experiments.data.sources import ReasoningGym
from experiments.data.tokens import end_of_turn, prompt_ids
from experiments.evaluation import drift
from experiments.evaluation.drift import Reply, fp32_head, kl_per_token, reply_log_probs, text_nll, text_windows
from experiments.evaluation.generation import FIRST_ROUND, by_length, generate_ids, generate_replies, parse_answer
from experiments.evaluation.multiple_choice import Choice, score_options
from experiments.evaluation.probes import PROBES, kept_items
from experiments.evaluation.suite import PARTS, Suite, evaluating
from experiments.models import Precision, load_base
from experiments.records import Record
from tests.experiments.small import small_config, tiny_base

FP32, BF16 = Precision("fp32"), Precision("bf16")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def model(base: str) -> PreTrainedModel:
    return load_base(base)[0].eval()


@pytest.fixture(scope="module")
def tokenizer(base: str) -> PreTrainedTokenizerBase:
    return load_base(base)[1]


@pytest.fixture(scope="module")
def config(base: str) -> ExperimentConfig:
    return small_config(base)


@pytest.fixture(scope="module")
def suite(config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase) -> Suite:
    return Suite(config, tokenizer, [ReasoningGym().held_out(config.evaluation.new_items, config.seed)])


def sharp(vocab: int = 97, seed: int = 0) -> PreTrainedModel:
    """A tiny Llama with wide weights: its predictions depend on every token and position before."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocab, num_key_value_heads=2, eos_token_id=None, **shape))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def expanded() -> PreTrainedModel:
    """The same with copies that differ from their originals, so that a shared cache slot would show."""
    model = ctrl.expand(sharp(), ctrl.ControlConfig(layers=2))
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def random_choices(prefix: Sequence[int], count: int, seed: int = 0) -> list[Choice]:
    """Prompts of 1-9 tokens behind the prefix; 2-4 options of 1-5 tokens."""
    rng = random.Random(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(97) for _ in range(n))

    return [
        Choice((*prefix, *ids(rng.randint(1, 9))), tuple(ids(rng.randint(1, 5)) for _ in range(rng.randint(2, 4))))
        for _ in range(count)
    ]


@torch.no_grad()
def naive_scores(model: PreTrainedModel, choices: Sequence[Choice]) -> list[list[float]]:
    """One sequence per option, no cache, no padding."""
    scores = []
    for choice in choices:
        row = []
        for option in choice.options:
            text = torch.tensor([[*choice.prompt, *option]], device=model.device)
            log_probs = model(input_ids=text, use_cache=False).logits[0].float().log_softmax(-1)
            start = len(choice.prompt) - 1
            row.append(sum(float(log_probs[start + t, token]) for t, token in enumerate(option)) / len(option))
        scores.append(row)
    return scores


def largest_gap(left: list[list[float]], right: list[list[float]]) -> float:
    assert [len(row) for row in left] == [len(row) for row in right]
    return max(abs(a - b) for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


class TestProbes:
    @pytest.mark.parametrize("task", PROBES)
    def test_every_question_can_be_asked(self, task: str) -> None:
        questions = PROBES[task]()
        assert len(questions) >= 100
        assert len({q.id for q in questions}) == len(questions)
        for question in questions:
            assert len(set(question.wrong)) >= 3
            assert question.right not in question.wrong

    def test_four_distinct_options_with_the_right_one_marked(self) -> None:
        right = {(task, q.id): q.right for task, builder in PROBES.items() for q in builder()}
        for probe in kept_items(100, seed=3):
            assert len(set(probe.options)) == 4
            assert probe.options[probe.answer] == right[probe.task, probe.id]

    def test_same_seed_same_probes_and_more_items_change_none(self) -> None:
        few, many = kept_items(10, seed=0), kept_items(50, seed=0)
        assert few == kept_items(10, seed=0) != kept_items(10, seed=1)
        assert set(few) < set(many)

    def test_the_right_option_stands_anywhere(self) -> None:
        """Over 20 seeds and 160 probes each place has 1/4; 5 standard deviations are 0.04."""
        places = collections.Counter(p.answer for seed in range(20) for p in kept_items(40, seed))
        total = places.total()
        assert total == 20 * 160
        assert all(abs(places[i] / total - 0.25) < 0.04 for i in range(4))

    def test_known_facts(self) -> None:
        found = {(p.task, p.id): p.options[p.answer] for p in kept_items(100, seed=0)}
        assert found["capitals", "France"] == "Paris"
        assert found["continents", "Kenya"] == "Africa"
        assert found["past tense", "go"] == "went"
        assert found["plurals", "mouse"] == "mice"

    def test_nothing_gives_the_answer_away(self) -> None:
        for probe in kept_items(100, seed=0):
            if probe.task in ("capitals", "continents"):
                answer = probe.options[probe.answer].lower()
                assert not set(answer.split()) & set(probe.id.lower().split()), probe

    def test_articles(self) -> None:
        stems = {q.id: q.plain for q in PROBES["capitals"]()}
        assert stems["The Netherlands"] == "The capital of the Netherlands is"
        assert stems["Philippines"] == "The capital of the Philippines is"
        assert stems["France"] == "The capital of France is"

    def test_too_many_says_how_many_there_are(self) -> None:
        with pytest.raises(ConfigError, match=r"kept_items=1000, but the kept task 'capitals' has only \d+ items"):
            kept_items(1000, seed=0)


class TestMultipleChoice:
    @pytest.mark.parametrize("prefix", [(), tuple(range(20))], ids=["no prefix", "shared prefix"])
    @pytest.mark.parametrize("build", [sharp, expanded])
    @pytest.mark.parametrize("batch_size", [1, 5, 64])
    def test_equals_one_sequence_per_option(self, build: type, prefix: tuple[int, ...], batch_size: int) -> None:
        model, choices = build(), random_choices(prefix, 12)
        expected = naive_scores(model, choices)
        assert np.ptp([score for row in expected for score in row]) > 0.5  # the options do differ
        assert largest_gap(score_options(model, choices, batch_size), expected) < 1e-4

    @pytest.mark.parametrize("family", ["mistral", "qwen3", "gpt2", "gpt_neox"])
    def test_other_families(self, tiny_model: type, family: str) -> None:
        model, choices = tiny_model(family).eval(), random_choices((), 6)
        short = [Choice(c.prompt[:3], tuple(option[:3] for option in c.options)) for c in choices]  # within windows
        assert largest_gap(score_options(model, short), naive_scores(model, short)) < 1e-4

    def test_options_of_one_token(self) -> None:
        model, choices = sharp(), [Choice((1, 2, 3), ((4,), (5,), (6,), (7,)))]
        assert largest_gap(score_options(model, choices), naive_scores(model, choices)) < 1e-5

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
        suite = Suite(config, tokenizer, [ReasoningGym().held_out(1, 0)])
        for form in ("plain", "chat"):
            choices = suite.choices[form]
            assert largest_gap(score_options(model.eval(), choices), naive_scores(model, choices)) < 1e-4


class TestGeneration:
    @pytest.mark.parametrize("build", [sharp, expanded])
    @pytest.mark.parametrize("batch_size", [2, 64])
    def test_equals_taking_the_best_token_by_hand(
        self, build: type, batch_size: int, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        model, most = build(), FIRST_ROUND + 5
        prompts = [choice.prompt for choice in random_choices((), 5)]
        end = end_of_turn(tokenizer)
        expected = []
        for prompt in prompts:
            text = list(prompt)
            while len(text) < len(prompt) + most and end not in text[len(prompt) :]:
                with torch.no_grad():
                    text.append(int(model(input_ids=torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
            expected.append(text[len(prompt) :])
        assert generate_ids(model, tokenizer, prompts, most, batch_size) == expected
        assert len({tuple(reply) for reply in expected}) > 1

    def test_stops_at_the_end_of_turn(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        end = end_of_turn(tokenizer)
        prompts = [prompt_ids(tokenizer, question) for question in ("a", "b c d")]
        with torch.no_grad():
            model.lm_head.weight.zero_()  # all logits 0, the argmax is token 0 ...
        assert generate_ids(model, tokenizer, prompts, 3) == [[0] * 3] * 2
        model.lm_head = torch.nn.Linear(model.config.hidden_size, model.config.vocab_size)
        with torch.no_grad():
            model.lm_head.weight.zero_()
            model.lm_head.bias.zero_()[end] = 1.0  # ... and now the end of turn
        assert generate_ids(model, tokenizer, prompts, 3) == [[end]] * 2
        assert generate_replies(model, tokenizer, ["a", "b c d"], 3) == ["", ""]

    def test_every_reply_is_counted_once(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        seen: list[int] = []
        generate_replies(model, tokenizer, ["a", "b", "c"], FIRST_ROUND + 2, batch_size=2, advance=seen.append)
        assert sum(seen) == 3

    def test_batches_are_sorted_and_complete(self) -> None:
        batches = list(by_length([3, 9, 1, 7, 5], 2))
        assert batches == [[1, 3], [4, 0], [2]]

    @pytest.mark.parametrize(
        ("reply", "answer"),
        [
            ("19", "19"),
            ("The answer is -28.", "-28"),
            ("12 - 5 = 1,007.", "1007"),
            ("12-5", "5"),
            ("3 + 4 = \N{MINUS SIGN}7", "-7"),
            ("It is 2.50", "2.50"),
            ("5 - 9", "9"),
            ("I do not know.", None),
            ("", None),
        ],
    )
    def test_last_number(self, reply: str, answer: str | None) -> None:
        assert parse_answer(reply, numeric=True) == answer

    @pytest.mark.parametrize(("reply", "answer"), [(" apple, pear\n", "apple, pear"), (" \n", None)])
    def test_text_answers_are_taken_whole(self, reply: str, answer: str | None) -> None:
        assert parse_answer(reply, numeric=False) == answer


class TestDrift:
    def replies(self) -> list[Reply]:
        rng = random.Random(0)
        return [
            Reply(tuple(rng.randrange(97) for _ in range(n)), tuple(rng.randrange(97) for _ in range(t)))
            for n, t in ((3, 5), (9, 1), (4, 12), (7, 7))
        ]

    @pytest.mark.parametrize("build", [sharp, expanded])
    def test_log_probabilities_are_those_of_each_text_alone(self, build: type) -> None:
        model, replies = build(), self.replies()
        got = dict(reply_log_probs(model, replies))
        for i, reply in enumerate(replies):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([reply.prompt + reply.reply]), use_cache=False).logits[0]
            expected = logits[len(reply.prompt) - 1 : -1].log_softmax(-1)
            torch.testing.assert_close(got[i], expected, atol=1e-4, rtol=0)

    def test_kl_against_the_definition(self) -> None:
        """p = (1/2, 1/2), q = (1/4, 3/4): KL = (ln 2 + ln 2/3) / 2 = ln(4/3) / 2."""
        p, q = torch.tensor([[0.5, 0.5]] * 20).log(), torch.tensor([[0.25, 0.75]] * 20).log()
        assert kl_per_token(p, q) == pytest.approx(math.log(4 / 3) / 2, abs=1e-6)
        assert kl_per_token(q, p) == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), abs=1e-6)

    def test_kl_to_itself_is_zero_and_to_another_model_is_not(self) -> None:
        replies = self.replies()
        base, same, other = (dict(reply_log_probs(m, replies)) for m in (sharp(), sharp(), sharp(seed=1)))
        assert [kl_per_token(base[i], same[i]) for i in base] == [0.0] * 4
        assert min(kl_per_token(base[i], other[i]) for i in base) > 0.1

    def test_kl_of_impossible_tokens(self) -> None:
        """0 log 0 = 0; a token that the base gives and the tuned model never gives is infinitely far."""
        p, q = torch.tensor([[1.0, 0.0]]).log(), torch.tensor([[0.5, 0.5]]).log()
        assert kl_per_token(p, q) == pytest.approx(math.log(2))
        assert kl_per_token(q, p) == math.inf
        assert math.isnan(kl_per_token(q, torch.full((1, 2), math.nan)))

    def test_fp32_head_inside_autocast(self) -> None:
        model, ids = sharp(), torch.arange(8)[None]
        with torch.no_grad(), BF16.autocast():
            assert model(ids).logits.dtype == torch.bfloat16
            with fp32_head(model):
                inside = model(ids).logits
            assert model(ids).logits.dtype == torch.bfloat16
            hidden = model.model(ids).last_hidden_state
        assert inside.dtype == torch.float32
        torch.testing.assert_close(inside, hidden.float() @ model.lm_head.weight.T)

    def test_nll_against_the_definition(self) -> None:
        model = sharp()
        windows = [list(range(10)), [5, 4, 3], list(range(20, 35))]
        for window, value in zip(windows, text_nll(model, windows, batch_size=2), strict=True):
            with torch.no_grad():
                log_probs = model(input_ids=torch.tensor([window]), use_cache=False).logits[0].log_softmax(-1)
            terms = [-float(log_probs[t, token]) for t, token in enumerate(window[1:])]
            assert value == pytest.approx(sum(terms) / len(terms), abs=1e-4)

    def test_text_is_the_story_in_windows(self, tokenizer: PreTrainedTokenizerBase) -> None:
        windows = text_windows(tokenizer, 600)
        assert [len(window) for window in windows] == [256, 256, 88]
        text = tokenizer.decode(windows[0])
        assert text.startswith("Little though they seem to think of it, the people of this twenty-ninth century")
        assert "\n" not in text.split("\n\n")[0]

    def test_too_much_text_or_too_many_replies(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        with pytest.raises(ConfigError, match=r"perplexity_tokens=1000000, but the text has only \d+ tokens"):
            text_windows(tokenizer, 1_000_000)
        with pytest.raises(ConfigError, match=f"replies=100, but there are only {len(drift.PROMPTS)} general prompts"):
            drift.base_replies(model, tokenizer, 100, 4)


class TestSuite:
    def test_one_record_per_item_and_form(self, suite: Suite, model: PreTrainedModel) -> None:
        suite.prepare(model, FP32)
        records = suite.evaluate(model, FP32, progress=False)
        counts = collections.Counter((r.suite, r.form) for r in records)
        assert counts == {
            ("new", "generate"): 4,
            ("kept", "plain"): 16,
            ("kept", "chat"): 16,
            ("drift", "kl"): 2,
            ("text", "nll"): 1,
        }
        assert len({record.key for record in records}) == len(records)
        assert all(r.value == 0.0 and r.tokens == 4 for r in records if r.suite == "drift")
        assert all(r.correct == int(r.choice == r.answer) for r in records if r.suite == "kept")
        for record in records:
            if record.suite == "kept":
                assert record.scores is not None
                assert record.choice == int(np.argmax(record.scores))
                assert record.options is not None
                assert len(record.options) == len(record.scores) == 4

    def test_evaluating_again_gives_the_same(self, suite: Suite, model: PreTrainedModel) -> None:
        suite.prepare(model, BF16)
        assert suite.evaluate(model, BF16, progress=False) == suite.evaluate(model, BF16, progress=False)

    def test_parts_alone(self, suite: Suite, model: PreTrainedModel) -> None:
        suite.prepare(model, FP32)
        together = suite.evaluate(model, FP32, progress=False)
        alone: list[Record] = []
        for part in PARTS:
            records = suite.evaluate(model, FP32, (part,), progress=False)
            assert {record.suite for record in records} == {part}
            alone += records
        assert alone == together

    def test_correct_replies_count(self, suite: Suite, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
        first, second, *_ = suite.tasks[0].test
        replies = [f"It is {first.answer}.", str(int(second.answer) + 1), "No idea", ""]
        monkeypatch.setattr("experiments.evaluation.suite.generate_replies", lambda *args, **kwargs: replies)
        records = suite.evaluate(model, FP32, ("new",), progress=False)
        assert [(r.correct, r.parsed) for r in records] == [(1, True), (0, True), (0, False), (0, False)]
        assert [r.reply for r in records] == replies

    def test_a_changed_model_has_moved(self, suite: Suite, model: PreTrainedModel) -> None:
        suite.prepare(model, FP32)
        before = suite.evaluate(model, FP32, ("drift", "text"), progress=False)
        with torch.no_grad():
            model.model.layers[1].mlp.down_proj.weight.normal_()
        after = suite.evaluate(model, FP32, ("drift", "text"), progress=False)
        assert all(r.value is not None and r.value > 1e-6 for r in after if r.suite == "drift")
        assert [r.value for r in before if r.suite == "text"] != [r.value for r in after if r.suite == "text"]

    def test_an_expanded_model_starts_where_the_base_is(self, suite: Suite, model: PreTrainedModel) -> None:
        suite.prepare(model, FP32)
        twin = ctrl.expand(copy.deepcopy(model), ctrl.ControlConfig(layers=2))
        records = suite.evaluate(twin, FP32, ("kept", "drift"), progress=False)
        base = suite.evaluate(model, FP32, ("kept", "drift"), progress=False)
        assert [r.choice for r in records] == [r.choice for r in base]
        assert all(abs(r.value or 0) < 1e-6 for r in records if r.suite == "drift")

    @pytest.mark.parametrize("precision", [FP32, BF16], ids=["fp32", "bf16"])
    def test_leaves_no_trace(self, suite: Suite, model: PreTrainedModel, precision: Precision) -> None:
        suite.prepare(model, precision)
        model.train()
        model.model.layers[0].eval()
        modes = [module.training for module in model.modules()]
        tensors = {name: parameter.data for name, parameter in model.named_parameters()}
        values = {name: data.clone() for name, data in tensors.items()}
        states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        suite.evaluate(model, precision, progress=False)
        assert [module.training for module in model.modules()] == modes
        for name, parameter in model.named_parameters():
            assert parameter.data_ptr() == tensors[name].data_ptr()
            assert torch.equal(parameter, values[name])
            assert parameter.requires_grad
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert np.random.get_state()[1].tolist() == states[2]
        assert "forward" not in vars(model.lm_head)
        model(input_ids=torch.arange(5)[None], labels=torch.arange(5)[None]).loss.backward()  # training goes on

    def test_weights_come_back_after_an_error(self, model: PreTrainedModel) -> None:
        model.train()
        inside = []

        def fail() -> None:
            with evaluating(model, BF16):
                inside.append((model.training, model.model.layers[0].mlp.up_proj.weight.dtype))
                raise RuntimeError("in between")

        with pytest.raises(RuntimeError, match="in between"):
            fail()
        assert inside == [(False, torch.bfloat16)]
        assert model.training
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    def test_bf16_weights_give_the_results_of_autocast(self, model: PreTrainedModel) -> None:
        ids = torch.arange(40)[None]
        with torch.no_grad(), BF16.autocast():
            expected = model(ids).logits
        with evaluating(model, BF16):
            assert torch.equal(model(ids).logits, expected)

    def test_drift_before_prepare(self, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase) -> None:
        fresh = Suite(config, tokenizer, [ReasoningGym().held_out(4, 0)])
        with pytest.raises(RuntimeError, match=r"call prepare\(base_model\) first"):
            fresh.evaluate(sharp(), FP32, ("drift",))

    @pytest.mark.parametrize("part", ["kept", "drift", "text"])
    def test_a_broken_model_is_no_result(self, suite: Suite, model: PreTrainedModel, part: str) -> None:
        suite.prepare(model, FP32)
        with torch.no_grad():
            model.model.norm.weight.fill_(math.nan)
        with pytest.raises(RuntimeError, match="logits are not finite"):
            suite.evaluate(model, FP32, (part,), progress=False)

    def test_unknown_part(self, suite: Suite, model: PreTrainedModel) -> None:
        with pytest.raises(ConfigError, match="unknown part 'kep': did you mean 'kept'"):
            suite.evaluate(model, FP32, ("kep",))

    def test_restored_replies_are_used(
        self, config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, tmp_path: Path
    ) -> None:
        task = [ReasoningGym().held_out(4, 0)]
        first, second = Suite(config, tokenizer, task), Suite(config, tokenizer, task)
        first.prepare(model, FP32)
        state = json.loads(json.dumps(first.state()))
        state["replies"][0]["reply"] = [7, 8]  # what this model would never write: restored, not written anew
        second.restore(state)
        second.prepare(model, FP32)
        assert second.replies[0].reply == (7, 8)
        assert second.replies[1] == first.replies[1]
        assert second.references[0].shape == (2, len(tokenizer))

    def test_restored_replies_of_another_config(self, suite: Suite) -> None:
        with pytest.raises(ConfigError, match=r"has 1 base replies, but evaluation\.replies=2"):
            suite.restore({"replies": [{"prompt": [1], "reply": [2]}]})
