"""Mixtures: shares of tokens, order, random access, and a report of what was really drawn."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.data.encoding import Encoded, Encoder, Piece
from experiments.data.items import Example, Item, Text
from experiments.data.mixture import Mixture, Part, Rows, most_lacking
from experiments.data.source import Finite, Source

NONE: frozenset[str] = frozenset()


class Listed(Finite):
    """Texts that are given, to see where each row comes from."""

    source: Literal["listed"] = "listed"
    texts: tuple[str, ...]

    @property
    def label(self) -> str:
        return "listed"

    @property
    def examples(self) -> tuple[Example, ...]:  # type: ignore[override]
        return tuple(Text(text) for text in self.texts)


class Endless(Source):
    """Chats about a word, of different lengths and without end."""

    source: Literal["endless"] = "endless"
    word: str

    @property
    def label(self) -> str:
        return self.word

    def epoch(self, number: int, seed: int, held_out_ids: frozenset[str]) -> Iterator[Example]:
        return (Item(f"{self.word} {i}", "word " * (1 + i * 7 % 11)) for i in itertools.count())


class Long(Endless):
    """Chats of which none fits a row."""

    source: Literal["long"] = "long"  # type: ignore[assignment]

    def epoch(self, number: int, seed: int, held_out_ids: frozenset[str]) -> Iterator[Example]:
        return (Item(f"{self.word} {i}", "word " * 200) for i in itertools.count())


def mixture(tokenizer: PreTrainedTokenizerBase, parts: list[Part], regime: Any = "sft", length: int = 64) -> Mixture:
    return Mixture(parts, Encoder(tokenizer, regime, length), 0, NONE)


def chats(*shares: float) -> list[Part]:
    return [Part(Endless(word=f"source{i}"), share, i > 0) for i, share in enumerate(shares)]


class TestShares:
    @given(st.lists(st.floats(0.01, 1), min_size=1, max_size=5), st.lists(st.integers(1, 50), min_size=1, max_size=99))
    def test_no_source_is_ahead_by_a_whole_item(self, weights: list[float], lengths: list[int]) -> None:
        shares = [weight / sum(weights) for weight in weights]
        tokens = [0] * len(shares)
        for length in lengths:
            tokens[most_lacking(shares, tokens)] += length
            for share, own in zip(shares, tokens, strict=True):
                assert own - share * sum(tokens) <= max(lengths) + 1e-6
                assert share * sum(tokens) - own <= (len(shares) - 1) * max(lengths) + 1e-6

    def test_ties_go_to_the_first(self) -> None:
        assert most_lacking([0.5, 0.5], [0, 0]) == most_lacking([0.5, 0.5], [7, 7]) == 0
        assert most_lacking([0.5, 0.5], [1, 0]) == 1

    @pytest.mark.parametrize("regime", ["sft", "cpt"])
    def test_realised_shares(self, regime: str, tokenizer: PreTrainedTokenizerBase) -> None:
        rows = Rows(mixture(tokenizer, chats(0.7, 0.2, 0.1), regime, 80), 200)
        drawn = rows.drawn()
        total = sum(one.tokens for one in drawn)
        for one, share in zip(drawn, (0.7, 0.2, 0.1), strict=True):
            assert abs(one.tokens - share * total) < 80
        if regime == "sft":
            seen = [0, 0, 0]
            for i in range(200):
                text = tokenizer.decode(rows[i]["input_ids"])
                seen[next(k for k in range(3) if f"source{k}" in text)] += len(rows[i]["input_ids"])
            assert seen == [one.tokens for one in drawn]

    def test_replay_only_interleaves(self, tokenizer: PreTrainedTokenizerBase) -> None:
        mixed = Rows(mixture(tokenizer, chats(0.9, 0.1)), 60)
        new = [mixed[i] for i in range(60) if not mixed[i]["replayed"]]
        alone = Rows(mixture(tokenizer, chats(1.0, 0.0)), len(new))
        assert 45 < len(new) < 60
        assert [alone[i] for i in range(len(new))] == new
        assert len(alone.drawn()) == 1


class TestRows:
    @pytest.mark.parametrize("regime", ["sft", "cpt"])
    def test_a_row_does_not_depend_on_what_was_read_before(
        self, regime: str, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("experiments.data.mixture.WINDOW", 16)
        count = 40

        def fresh() -> Rows:
            parts = [*chats(0.6), Part(Listed(texts=("a b c d", "e f g h i j", "k l")), 0.4, True)]
            return Rows(mixture(tokenizer, parts, regime), count)

        resumed, jumping, read = fresh(), fresh(), fresh()
        whole = [read[i] for i in range(count)]
        assert [resumed[i] for i in range(count - 9, count)] == whole[-9:]
        for index in (3, 1, count - 1, 0, 2, 16):
            assert jumping[index] == whole[index]
        assert resumed.drawn() == jumping.drawn()

    def test_reading_behind_the_window_starts_again_and_within_it_does_not(
        self, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("experiments.data.mixture.WINDOW", 16)
        rows = Rows(mixture(tokenizer, chats(1.0)), 30)
        first = rows[0]
        begun = rows.stream
        assert rows[15] is not None
        assert rows[0] is first
        assert rows.stream is begun
        assert rows[29] is not None
        assert rows[0] == first
        assert rows.stream is not begun

    @pytest.mark.parametrize("index", [-1, 5])
    def test_rows_end(self, index: int, tokenizer: PreTrainedTokenizerBase) -> None:
        with pytest.raises(IndexError, match=f"row {index} of 5"):
            Rows(mixture(tokenizer, chats(1.0)), 5)[index]


class TestEpochs:
    def test_a_finite_source_starts_over_in_another_order(self, tokenizer: PreTrainedTokenizerBase) -> None:
        texts = tuple(f"text number {i}" for i in range(8))
        rows = Rows(mixture(tokenizer, [Part(Listed(texts=texts), 1.0, False)]), 20)
        seen = [tokenizer.decode(rows[i]["input_ids"][:-1]) for i in range(20)]
        assert set(seen[:8]) == set(seen[8:16]) == set(texts)
        assert seen[:8] != seen[8:16]
        (drawn,) = rows.drawn()
        assert (drawn.epochs, drawn.examples, drawn.pieces, drawn.too_long, drawn.repeats) == (3, 20, 20, 0, 12)

    def test_what_is_held_out_is_never_drawn(self, tokenizer: PreTrainedTokenizerBase) -> None:
        source = Listed(texts=tuple(f"text number {i}" for i in range(8)))
        task = source.held_out(3, 0)
        drawn = [e for _, e in itertools.islice(source.stream(0, task.ids), 15)]
        assert {e.id for e in drawn} | task.ids == {e.id for e in source.examples}
        assert not {e.id for e in drawn} & task.ids

    def test_too_long_chats_are_counted(self, tokenizer: PreTrainedTokenizerBase) -> None:
        rows = Rows(mixture(tokenizer, chats(1.0), length=44), 30)
        (drawn,) = rows.drawn()
        assert drawn.examples == 30
        assert drawn.too_long > 0

    def test_what_is_passed_over_is_not_too_long(
        self, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found = [Encoded([], refused="why"), Encoded([], left_out=9), Encoded([Piece([1, 2], [1, 2])])]
        monkeypatch.setattr("experiments.data.mixture.encoded_epoch", lambda *args: iter(found))
        rows = Rows(mixture(tokenizer, [Part(Listed(texts=("a",)), 1.0, False)]), 2)
        (drawn,) = rows.drawn()
        assert (drawn.refused, drawn.too_long, drawn.examples, drawn.tokens_left_out) == (2, 2, 2, 18)

    def test_only_too_long_chats_is_an_error(
        self, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("experiments.data.mixture.PATIENCE", 50)
        with pytest.raises(ConfigError, match=r"source0: 50 examples in a row are longer than data.length=16"):
            Rows(mixture(tokenizer, chats(1.0), length=16), 1)[0]

    @pytest.mark.parametrize("stage", [0, 1])
    def test_any_source_without_a_usable_example_is_found_before_the_first_row(
        self, stage: int, tokenizer: PreTrainedTokenizerBase
    ) -> None:
        mixed = mixture(tokenizer, [*chats(0.9), Part(Long(word="long"), 0.1, True, stage)])
        good = mixture(tokenizer, chats(0.5, 0.5))
        expected = list(itertools.islice(mixture(tokenizer, chats(0.5, 0.5)).stage(0), 5))
        good.check()
        assert list(itertools.islice(good.stage(0), 5)) == expected
        with pytest.raises(ConfigError, match=r"source long: .* are longer than data.length=64 tokens: raise"):
            mixed.check()

    def test_nothing_left_is_an_error(self, tokenizer: PreTrainedTokenizerBase) -> None:
        source = Listed(texts=("a", "b"))
        held_out_ids = frozenset(e.id for e in source.examples)
        with pytest.raises(ConfigError, match=r"nothing is left to train on besides 2 held-out items"):
            next(source.stream(0, held_out_ids))
