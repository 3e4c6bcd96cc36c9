"""The new task: items, token ids and batches."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from experiments.config import ConfigError
from experiments.data.items import Item, NewTask
from experiments.data.rows import ChatDataset, Collator
from experiments.data.sources import ReasoningGym
from experiments.data.tokens import IGNORED, continuation_ids, end_of_turn, prompt_ids, reply_ids
from experiments.models import shipped_folder

SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}  # 10 x 10 numbers, + or -: 200 questions


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(shipped_folder())


@pytest.fixture
def plain_tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(shipped_folder())
    tokenizer.chat_template = None
    return tokenizer


def train(count: int = 40, test: int = 20, seed: int = 0, **fields: object) -> list[Item]:
    return list(itertools.islice(ReasoningGym(**fields).train(seed, test), count))


def held_out(count: int = 20, seed: int = 0, **fields: object) -> NewTask:
    return ReasoningGym(**fields).held_out(count, seed)


class TestReasoningGym:
    def test_counts_and_disjoint_distinct_questions(self) -> None:
        # nearly exhausts the space, so overlaps do occur in the draws
        items = [*train(120, 60, params=SMALL), *held_out(60, params=SMALL).test]
        assert len({item.question for item in items}) == len(items) == 180

    def test_same_seed_same_items_other_seed_other_items(self) -> None:
        assert train() == train() != train(seed=1)
        assert held_out().test == held_out().test != held_out(seed=1).test

    def test_more_held_out_items_begin_with_the_fewer(self) -> None:
        assert held_out(40, params=SMALL).test[:20] == held_out(20, params=SMALL).test

    def test_item_ids_are_distinct_and_stable(self) -> None:
        assert len({item.id for item in held_out().test}) == 20
        assert Item("1 + 1 =", "2").id == Item("1 + 1 =", "3").id != Item("1 + 2 =", "3").id

    def test_global_random_state_is_untouched(self) -> None:
        before = random.getstate(), torch.get_rng_state()
        train()
        assert random.getstate() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])

    def test_verifier_marks_answers(self) -> None:
        drawn = held_out()
        item = drawn.test[0]
        assert drawn.numeric
        assert drawn.correct(item.answer, item)
        assert drawn.correct(f"{item.answer}.0", item)
        assert not drawn.correct(str(int(item.answer) + 1), item)
        assert not drawn.correct(None, item)

    @pytest.mark.parametrize("name", ["letter_counting", "word_sorting", "leg_counting", "basic_arithmetic", "gcd"])
    def test_other_generators_accept_their_own_answers(self, name: str) -> None:
        drawn = held_out(3, name=name)
        assert all(drawn.correct(item.answer, item) for item in drawn.test)
        assert drawn.numeric == (name != "word_sorting")

    def test_unknown_task_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match=r"unknown task 'chain_sums': did you mean 'chain_sum'"):
            held_out(name="chain_sums")

    def test_unknown_parameter_names_the_nearest(self) -> None:
        with pytest.raises(ConfigError, match=r"unknown parameter 'min_term': did you mean 'min_terms'"):
            held_out(params={"min_term": 2})

    @pytest.mark.parametrize("key", ["seed", "size"])
    def test_seed_and_size_are_not_parameters(self, key: str) -> None:
        with pytest.raises(ConfigError, match=f"unknown parameter '{key}'"):
            held_out(params={key: 3})

    @pytest.mark.parametrize("params", [{"min_terms": 5, "max_terms": 2}, {"min_digits": "two"}, {"min_terms": 0}])
    def test_refused_parameters_are_shown(self, params: dict[str, object]) -> None:
        with pytest.raises(ConfigError, match=r"params of chain_sum: .*min_.* is refused by the generator"):
            held_out(params=params)

    def test_too_small_a_space_says_how_many_there_are(self) -> None:
        with pytest.raises(ConfigError, match=r"only \d+ training items were found beside the 20 held out"):
            train(300, params=SMALL)
        with pytest.raises(ConfigError, match=r"only \d+ test items were found"):
            held_out(300, params=SMALL)


class TestTokens:
    def test_training_prompt_is_the_generation_prompt(self, tokenizer: PreTrainedTokenizerBase) -> None:
        item = Item("What is 2 + 3?", "5")
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": item.question}], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        encoded = ChatDataset([item], tokenizer, seed=0)[0]
        assert prompt_ids(tokenizer, item.question) == prompt
        assert encoded["input_ids"][: len(prompt)] == prompt
        assert encoded["labels"][: len(prompt)] == [IGNORED] * len(prompt)

    def test_default_system_turn_is_kept(self, tokenizer: PreTrainedTokenizerBase) -> None:
        assert "named SmolLM" in tokenizer.decode(prompt_ids(tokenizer, "Hello"))

    def test_whole_conversation_is_the_template_up_to_the_end_of_turn(self, tokenizer: PreTrainedTokenizerBase) -> None:
        item = Item("What is 2 - 30?", "-28")
        turns = [{"role": "user", "content": item.question}, {"role": "assistant", "content": item.answer}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
        assert tokenizer.decode(ChatDataset([item], tokenizer, seed=0)[0]["input_ids"]) == text.removesuffix("\n")

    def test_labels_are_the_answer_and_its_end(self, tokenizer: PreTrainedTokenizerBase) -> None:
        labels = [x for x in ChatDataset([Item("q", "1234")], tokenizer, seed=0)[0]["labels"] if x != IGNORED]
        assert tokenizer.decode(labels) == "1234<|im_end|>"
        assert labels[-1] == end_of_turn(tokenizer)

    def test_end_of_turn_comes_from_the_template_not_from_eos(self, plain_tokenizer: PreTrainedTokenizerBase) -> None:
        plain_tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}\n<file_sep>\n{% endfor %}"
        assert plain_tokenizer.convert_ids_to_tokens(end_of_turn(plain_tokenizer)) == "<file_sep>"

    def test_no_token_ends_a_reply(self, plain_tokenizer: PreTrainedTokenizerBase) -> None:
        plain_tokenizer.eos_token = None
        with pytest.raises(ConfigError, match="set its eos_token"):
            end_of_turn(plain_tokenizer)

    def test_base_model_without_a_template(self, plain_tokenizer: PreTrainedTokenizerBase) -> None:
        encoded = ChatDataset([Item("1 + 1?", "2")], plain_tokenizer, seed=0)[0]
        assert plain_tokenizer.decode(encoded["input_ids"]) == "Question: 1 + 1?\nAnswer: 2<|im_end|>"
        assert plain_tokenizer.decode(prompt_ids(plain_tokenizer, "1 + 1?")) == "Question: 1 + 1?\nAnswer:"
        assert plain_tokenizer.decode(reply_ids(plain_tokenizer, "1 + 1?", "2")) == " 2"

    def test_continuation_where_the_boundary_lies_inside_a_token(self, tokenizer: PreTrainedTokenizerBase) -> None:
        assert tokenizer.decode(continuation_ids(tokenizer, "The capital of France is", " Paris")) == " Paris"
        assert tokenizer.decode(continuation_ids(tokenizer, "unbeliev", "able")) == "able"


class TestBatches:
    def test_order_depends_on_the_seed_alone(self, tokenizer: PreTrainedTokenizerBase) -> None:
        items = train()
        first, again, other = (ChatDataset(items, tokenizer, seed).items for seed in (0, 0, 1))
        assert first == again != other
        assert {item.id for item in first} == {item.id for item in other} == {item.id for item in items}

    def test_right_padding_to_the_longest(self, tokenizer: PreTrainedTokenizerBase) -> None:
        items = [Item("1 + 1?", "2"), Item("What is one thousand plus one?", "1001")]
        data = ChatDataset(items, tokenizer, seed=0)
        batch = Collator(tokenizer)([data[0], data[1]])
        longest = max(len(data[0]["input_ids"]), len(data[1]["input_ids"]))
        assert set(batch) == {"input_ids", "attention_mask", "labels"}
        assert all(tensor.shape == (2, longest) and tensor.dtype == torch.int64 for tensor in batch.values())
        for row in range(2):
            n = len(data[row]["input_ids"])
            assert batch["input_ids"][row, :n].tolist() == data[row]["input_ids"]
            assert batch["labels"][row, :n].tolist() == data[row]["labels"]
            assert batch["attention_mask"][row].tolist() == [1] * n + [0] * (longest - n)
            assert (batch["labels"][row, n:] == IGNORED).all()
            assert (batch["input_ids"][row, n:] == tokenizer.pad_token_id).all()

    def test_padding_without_a_pad_token(self, tokenizer: PreTrainedTokenizerBase) -> None:
        bare = AutoTokenizer.from_pretrained(shipped_folder())
        bare.pad_token = None
        data = ChatDataset([Item("a", "1"), Item("a b c", "12345")], bare, seed=0)
        assert Collator(bare)([data[0], data[1]])["input_ids"].shape[0] == 2
