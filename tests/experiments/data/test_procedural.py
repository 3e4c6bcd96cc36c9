"""Tasks of reasoning_gym: distinct questions, held-out ones apart, verifiers, worked answers, errors."""

from __future__ import annotations

import itertools
import random
import time
from pathlib import Path

import pytest
import torch

from experiments.common.errors import ConfigError
from experiments.data.config import DataConfig
from experiments.data.items import Item, NewTask
from experiments.data.procedural import CHUNK, ReasoningGym
from experiments.data.rights import supported
from experiments.evaluation.replies import parse_answer
from tests.helpers.small_run import SUMS

SUM = SUMS["new"]
SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}  # 10 x 10 numbers, + or -: 200 questions


def train(count: int = 40, test: int = 20, seed: int = 0, **fields: object) -> list[Item]:
    source = ReasoningGym(**SUM | fields)
    held_out_ids = source.held_out(test, seed).ids
    return [item for item in itertools.islice(source.epoch(0, seed, held_out_ids), count) if isinstance(item, Item)]


def held_out(count: int = 20, seed: int = 0, **fields: object) -> NewTask:
    return ReasoningGym(**SUM | fields).held_out(count, seed)


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
        assert drawn.form == "number"
        assert drawn.correct(item.answer, item)
        assert drawn.correct(f"{item.answer}.0", item)
        assert not drawn.correct(str(int(item.answer) + 1), item)
        assert not drawn.correct(None, item)

    @pytest.mark.parametrize("name", ["letter_counting", "word_sorting", "leg_counting", "basic_arithmetic", "gcd"])
    def test_other_generators_accept_their_own_answers(self, name: str) -> None:
        drawn = held_out(3, name=name)
        assert all(drawn.correct(item.answer, item) for item in drawn.test)
        assert drawn.form == ("text" if name == "word_sorting" else "number")

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
        with pytest.raises(ConfigError, match=r"only \d+ training items were found besides the 20 held out"):
            train(300, params=SMALL)
        with pytest.raises(ConfigError, match=r"only \d+ test items were found"):
            held_out(300, params=SMALL)

    def test_generators_that_list_their_tasks_beforehand_start_at_once(self) -> None:
        # these draw one choice per index when they are made: 2^30 of them would fill the memory
        assert len(train(3, 2, name="list_functions")) == len(train(3, 2, name="gsm_symbolic")) == 3

    def test_chunks_follow_one_another(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("experiments.data.procedural.CHUNK", 5)
        few = train(23)
        assert len({item.id for item in few}) == 23
        assert few[:5] == train(5)
        monkeypatch.undo()
        assert CHUNK > 1000
        assert few[:5] == train(5)
        assert few != train(23)


RUNS_REPLIES = {
    *("binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication", "puzzle24"),
    *("simple_integration", "spiral_matrix", "string_insertion"),
}


class TestRepliesAreNeverCode:
    def test_a_task_that_runs_them_is_refused_with_the_way_out(self) -> None:
        with pytest.raises(ConfigError, match=r"verifier of countdown runs .* as code.*set run_code: true"):
            held_out(2, name="countdown", params={})

    @pytest.mark.slow
    @pytest.mark.skipif(not supported(), reason="needs Linux with seccomp")
    def test_with_the_field_they_run_without_rights(self, tmp_path: Path) -> None:
        drawn = held_out(2, name="n_queens", params={}, run_code=True)
        mark = tmp_path / "ran"
        assert not drawn.correct(f"__import__('os').system('touch {mark}')", drawn.test[0])
        assert not mark.exists()
        assert all(drawn.correct(item.answer, item) for item in drawn.test)

    def test_elsewhere_the_field_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("experiments.data.rights.ALLOWED", {})
        with pytest.raises(ConfigError, match=r"replies of n_queens cannot be checked here without rights"):
            held_out(2, name="n_queens", params={}, run_code=True)

    def test_the_field_is_in_the_digest_only_if_it_is_set(self) -> None:
        assert "run_code" not in ReasoningGym(name="gcd").model_dump()
        assert ReasoningGym(name="gcd", run_code=True).digest() != ReasoningGym(name="gcd").digest()

    def test_a_verifier_that_ends_in_an_error_calls_the_reply_wrong(self) -> None:
        drawn = held_out(2, name="prime_factorization", params={})
        assert [drawn.correct(reply, drawn.test[0]) for reply in ("two", "", "{}", "1e999")] == [False] * 4
        assert drawn.correct(drawn.test[0].answer, drawn.test[0])


LONG = ("9" * 100_000, "(" * 100_000, "a b " * 25_000)
NASTY = ("1e999999999", "9**9**9**9", "[" * 500 + "]" * 500)


@pytest.mark.slow
def test_every_generator_of_the_library(tmp_path: Path) -> None:
    """Its own answers are right; the few without any, and the one that needs others to be made of, are refused.

    No reply runs as code, and those that would are refused. Long and nasty replies are wrong, after a short time.
    """
    from reasoning_gym.factory import DATASETS

    refused, mark = {}, tmp_path / "ran"
    payloads = [f"__import__('os').system('touch {mark}')", f"open('{mark}', 'w')", f"[open('{mark}', 'w')]"]
    names = sorted(DATASETS.keys() - {"acre"})  # which takes a minute to begin
    assert len(names) > 100
    for name in names:
        try:
            drawn = held_out(2, name=name, params={})
        except ConfigError as error:
            refused[name] = str(error)
            if "as code" not in refused[name] or not supported():
                continue
            drawn = held_out(2, name=name, params={}, run_code=True)
        assert all(drawn.correct(item.answer, item) for item in drawn.test), name
        for reply in payloads:
            drawn.correct(reply, drawn.test[0])  # some generators call any reply right
            assert not mark.exists(), name
        start = time.process_time()
        assert not any(drawn.correct(reply, drawn.test[0]) for reply in LONG), name
        for reply in NASTY if name not in RUNS_REPLIES else ():  # whose limit has a test of its own
            drawn.correct(reply, drawn.test[0])
        assert time.process_time() - start < 10, name
    assert {name for name, said in refused.items() if "as code" in said} == RUNS_REPLIES
    without = {name for name, said in refused.items() if "gives none to learn from" in said}
    assert without == {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
    assert refused.keys() - without - RUNS_REPLIES == {"composite"}


class TestWorkedAnswers:
    def test_what_is_learned_where_a_config_names_nothing(self) -> None:
        source, named = DataConfig().new[0], ReasoningGym(name="gsm_symbolic")
        assert isinstance(source, ReasoningGym)
        assert source.held_out(5, 0).test == named.held_out(5, 0).test
        assert all(item.reply != item.answer for item in source.held_out(5, 0).test)

    def test_reply_is_the_worked_answer_and_the_verifier_accepts_what_is_read_from_it(self) -> None:
        drawn = held_out(60, name="gsm_symbolic")
        for item in drawn.test:
            lines = item.reply.splitlines()
            assert len(lines) > 1
            assert lines[-1] == f"Answer: {item.answer}"
            assert "####" not in item.reply
            assert drawn.correct(parse_answer(item.reply, drawn.form), item)

    def test_without_it_the_reply_is_the_answer(self) -> None:
        bare = held_out(5, name="gsm_symbolic", worked=False)
        assert [item.reply for item in bare.test] == [item.answer for item in bare.test]
        assert [i.id for i in bare.test] == [i.id for i in held_out(5, name="gsm_symbolic").test]

    def test_a_generator_without_worked_answers_trains_on_the_answer(self) -> None:
        assert all(item.reply == item.answer for item in train(5))


class TestQuestionInOtherWords:
    def test_fields_of_the_metadata_are_filled_in_and_the_answer_stays(self) -> None:
        plain, asked = held_out(params=SMALL), held_out(params=SMALL, question="{expression} =")
        for before, after in zip(plain.test, asked.test, strict=True):
            assert before.question.endswith(f" {after.question}")
            assert after.question[0].isdigit()
            assert before.answer == after.answer
            assert asked.correct(before.answer, after)

    def test_the_generators_own_words_are_a_field(self) -> None:
        assert held_out(1, params=SMALL, question="Quick! {question}").test[0].question.startswith("Quick! State")

    @pytest.mark.parametrize("template", ["{expresion}", "{expression", "{expression.size}", "{}"])
    def test_a_wrong_field_names_those_there_are(self, template: str) -> None:
        with pytest.raises(ConfigError, match=r"data, question of chain_sum: .*fields are .*expression.*question"):
            held_out(params=SMALL, question=template)
