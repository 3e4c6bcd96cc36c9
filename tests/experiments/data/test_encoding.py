"""Rows of token ids: what carries a loss, what is cut, and packed documents that do not see one another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import ctrl
from experiments.common.errors import ConfigError
from experiments.data.encoding import Encoder, PackedCollator, PaddingCollator, Piece, packed_rows, padded_rows
from experiments.data.items import Item, Text, chat
from experiments.models.base import shipped_folder
from experiments.models.head import only_label_logits
from experiments.models.tokens import IGNORED
from experiments.training.meter import real_tokens
from tests.helpers.byte_level import CHATML, byte_tokenizer
from tests.helpers.chat_families import FAMILIES, family_tokenizer
from tests.helpers.families import VOCAB, build, perturb

TWO = [Item("1 + 1?", "2"), Item("What is one thousand plus one?", "1001")]


class TestEncoder:
    def test_a_text_has_its_loss_on_all_tokens_and_ends(self, tokenizer: PreTrainedTokenizerBase) -> None:
        (piece,) = Encoder(tokenizer, "sft", 512).pieces(Text("Once upon a time."))
        assert tokenizer.decode(piece.ids) == "Once upon a time.<|endoftext|>"
        assert piece.labels == piece.ids

    def test_a_long_text_becomes_pieces_and_loses_nothing(self, tokenizer: PreTrainedTokenizerBase) -> None:
        text = "one two three four five six seven eight nine ten " * 5
        pieces = Encoder(tokenizer, "sft", 16).pieces(Text(text))
        assert [len(p) for p in pieces[:-1]] == [16] * (len(pieces) - 1)
        assert tokenizer.decode([t for p in pieces for t in p.ids]) == text + "<|endoftext|>"

    def test_a_piece_of_one_token_predicts_nothing_and_is_left_out(self, tokenizer: PreTrainedTokenizerBase) -> None:
        assert Encoder(tokenizer, "sft", 16).pieces(Text(" a" * 16)) == Encoder(tokenizer, "sft", 16).pieces(
            Text(" a" * 16, ended=False)
        )

    def test_a_chat_whose_answer_would_be_cut_is_left_out(self, tokenizer: PreTrainedTokenizerBase) -> None:
        item = Item("Why?", "because " * 20)
        length = len(Encoder(tokenizer, "sft", 512).pieces(item)[0])
        assert Encoder(tokenizer, "sft", length).pieces(item)
        assert Encoder(tokenizer, "sft", length - 1).pieces(item) == []

    @pytest.mark.parametrize("example", [Item("Why?", "Beca", ended=False), Text("Beca", ended=False)])
    def test_what_was_cut_off_has_no_end(self, example: Item | Text, tokenizer: PreTrainedTokenizerBase) -> None:
        for regime in ("sft", "cpt"):
            (piece,) = Encoder(tokenizer, regime, 64).pieces(example)  # type: ignore[arg-type]
            assert str(tokenizer.decode(piece.ids)).endswith("Beca")

    def test_in_cpt_a_chat_has_its_loss_on_the_prompt_too(self, tokenizer: PreTrainedTokenizerBase) -> None:
        (chat,) = Encoder(tokenizer, "cpt", 64).pieces(TWO[0])
        (answer,) = Encoder(tokenizer, "sft", 64).pieces(TWO[0])
        assert chat.labels == chat.ids == answer.ids
        assert answer.labels.count(IGNORED) == len(answer.ids) - 2
        cut = Encoder(tokenizer, "cpt", 20).pieces(TWO[0])
        assert [t for piece in cut for t in piece.ids] == chat.ids
        assert len(cut) > 1


class TestPadding:
    def test_right_padding_to_the_longest(self, tokenizer: PreTrainedTokenizerBase) -> None:
        encoder = Encoder(tokenizer, "sft", 512)
        data = list(padded_rows(piece for item in TWO for piece in encoder.pieces(item, replayed=item is TWO[1])))
        batch = PaddingCollator(tokenizer)(data)
        longest = max(len(row["input_ids"]) for row in data)
        assert set(batch) == {"input_ids", "attention_mask", "labels", "replayed"}
        assert batch.pop("replayed").tolist() == [False, True]
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
        encoder = Encoder(bare, "sft", 512)
        data = list(padded_rows(piece for item in TWO for piece in encoder.pieces(item)))
        assert PaddingCollator(bare)(data)["input_ids"].shape[0] == 2

    def test_real_tokens_are_those_that_are_no_padding(self, tokenizer: PreTrainedTokenizerBase) -> None:
        encoder = Encoder(tokenizer, "sft", 512)
        data = list(padded_rows(piece for item in TWO for piece in encoder.pieces(item)))
        assert real_tokens(PaddingCollator(tokenizer)(data)) == sum(len(row["input_ids"]) for row in data)


def documents(lengths: Sequence[int], seed: int = 0) -> list[Piece]:
    generator = torch.Generator().manual_seed(seed)
    ids = [torch.randint(2, VOCAB, (n,), generator=generator).tolist() for n in lengths]
    return [Piece(one, one, replayed=i % 2 == 1) for i, one in enumerate(ids)]


class TestPacking:
    @given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(2, 16))
    def test_rows_are_full_and_hold_all_tokens_in_order(self, lengths: list[int], length: int) -> None:
        pieces = documents(lengths)
        rows = list(packed_rows(iter(pieces), length))
        tokens = [token for piece in pieces for token in piece.ids]
        assert len(rows) == len(tokens) // length
        assert [token for row in rows for token in row["input_ids"]] == tokens[: len(rows) * length]
        replayed = [piece.replayed for piece in pieces for _ in piece.ids]
        assert [one for row in rows for one in row["replayed"]] == replayed[: len(rows) * length]
        for row in rows:
            assert {len(values) for values in row.values()} == {length}
            starts = [i for i, position in enumerate(row["position_ids"]) if position == 0]
            assert starts[0] == 0
            assert [i for i, label in enumerate(row["labels"]) if label == IGNORED] == starts
            for i in set(range(length)) - set(starts):
                assert row["position_ids"][i] == row["position_ids"][i - 1] + 1
                assert row["labels"][i] == row["input_ids"][i]

    def test_labels_that_carry_no_loss_stay_so(self) -> None:
        (row,) = packed_rows(iter([Piece([5, 6, 7, 8], [IGNORED, IGNORED, 7, 8])]), 4)
        assert row["labels"] == [IGNORED, IGNORED, 7, 8]

    @pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
    @pytest.mark.parametrize("expanded", [False, True], ids=["base", "expanded"])
    def test_each_document_is_what_it_is_alone(self, family: str, expanded: bool) -> None:
        model, lengths = prepared(family, expanded), [5, 1, 11, 7]
        pieces = documents(lengths)
        batch = PackedCollator()(list(packed_rows(iter(pieces), sum(lengths))))
        batch.pop("replayed")
        packed = model(**batch)
        alone = [model(input_ids=torch.tensor([piece.ids])).logits[0] for piece in pieces]
        assert torch.allclose(packed.logits[0], torch.cat(alone), atol=1e-5)
        with torch.no_grad():  # the guard: without restarted positions the documents do see one another
            mixed = model(**{**batch, "position_ids": torch.arange(sum(lengths))[None]}).logits[0]
        assert not torch.allclose(mixed, torch.cat(alone), atol=1e-2)

    @pytest.mark.parametrize("expanded", [False, True], ids=["base", "expanded"])
    def test_loss_is_the_mean_over_the_documents_own_predictions(self, expanded: bool) -> None:
        model, lengths = prepared("llama", expanded), [5, 11, 8]
        pieces = documents(lengths)
        batch = PackedCollator()(list(packed_rows(iter(pieces), 12)))
        batch.pop("replayed")
        cut = [pieces[0].ids, pieces[1].ids[:7], pieces[1].ids[7:], pieces[2].ids]  # where rows of 12 cut them
        total, count = 0.0, 0
        for ids in cut:
            log_probs = model(input_ids=torch.tensor([ids])).logits[0].detach().log_softmax(-1)
            total -= sum(float(log_probs[i, ids[i + 1]]) for i in range(len(ids) - 1))
            count += len(ids) - 1
        out = model(**only_label_logits(batch))
        loss = out.lm_loss if expanded else out.loss
        assert loss.item() == pytest.approx(total / count, rel=1e-5)
        whole = model(**batch)
        assert torch.allclose(out.loss, whole.loss, rtol=1e-6)
        assert real_tokens(batch) == 24

    def test_a_batch_has_no_mask_and_no_cache(self) -> None:
        batch = PackedCollator()(list(packed_rows(iter(documents([9, 9])), 6)))
        assert set(batch) == {"input_ids", "labels", "position_ids", "replayed", "use_cache"}
        assert batch["use_cache"] is False
        assert batch["replayed"].shape == batch["input_ids"].shape == (3, 6)
        assert batch["replayed"].dtype == torch.bool


def prepared(family: str, expanded: bool) -> PreTrainedModel:
    model = build(family)
    if expanded:
        ctrl.expand(model, ctrl.ControlConfig(layers=2, structure="concat"))
        perturb(model)
    return model


TURNS = [{"role": role, "content": f"{role} says {i}"} for i in range(3) for role in ("user", "assistant")]


class TestChats:
    """A conversation becomes rows of its own; what is too long is left out, cut, or an error, and is counted."""

    @pytest.fixture
    def chatml(self) -> PreTrainedTokenizerBase:
        return byte_tokenizer()

    def text(self, tokenizer: PreTrainedTokenizerBase, labels: Sequence[int]) -> str:
        return str(tokenizer.decode([label for label in labels if label != IGNORED]))

    @pytest.mark.parametrize(("loss", "replies"), [("all_turns", (0, 1, 2)), ("last_turn", (2,))])
    def test_the_loss_is_on_the_replies(
        self, loss: Any, replies: Sequence[int], chatml: PreTrainedTokenizerBase
    ) -> None:
        (piece,) = Encoder(chatml, "sft", 512, loss=loss).pieces(chat(TURNS), replayed=True)
        assert self.text(chatml, piece.labels) == "".join(f"assistant says {i}<|im_end|>" for i in replies)
        assert piece.replayed

    @pytest.mark.parametrize("example", [chat(TURNS), Item("user says 0", "assistant says 0")])
    def test_all_tokens_as_in_cpt(self, example: Item, chatml: PreTrainedTokenizerBase) -> None:
        (piece,) = Encoder(chatml, "sft", 512, loss="all_tokens").pieces(example)
        assert piece.labels == piece.ids == Encoder(chatml, "cpt", 512).pieces(example)[0].ids

    def test_results_of_tools_carry_no_loss_in_cpt_either(self, chatml: PreTrainedTokenizerBase) -> None:
        example = chat([*TURNS[:2], {"role": "tool", "content": "RAIN"}, TURNS[3]])
        pieces = Encoder(chatml, "cpt", 32).pieces(example)
        assert "RAIN" in "".join(str(chatml.decode(piece.ids)) for piece in pieces)
        assert "RAIN" not in "".join(self.text(chatml, piece.labels) for piece in pieces)

    def test_too_long(self, chatml: PreTrainedTokenizerBase) -> None:
        whole = Encoder(chatml, "sft", 512).pieces(chat(TURNS))[0]
        tokens = len(whole)
        dropped = Encoder(chatml, "sft", tokens - 1).encode(chat(TURNS))
        assert (dropped.pieces, dropped.left_out) == ([], tokens)
        cut = Encoder(chatml, "sft", tokens - 1, overlong="cut").encode(chat(TURNS))
        assert (cut.pieces[0].ids, cut.left_out) == (whole.ids[:-1], 1)
        assert cut.pieces[0].labels == whole.labels[:-1]
        nothing = Encoder(chatml, "sft", 16, overlong="cut").encode(chat(TURNS))
        assert (nothing.pieces, nothing.left_out) == ([], tokens)
        with pytest.raises(
            ConfigError, match=rf"^here has {tokens} tokens with its answer, more than data.length=16: "
        ):
            Encoder(chatml, "sft", 16, overlong="error").encode(chat(TURNS, place="here"))
        with pytest.raises(ConfigError, match=r"^the question 'what' has \d+ tokens"):
            Encoder(chatml, "sft", 16, overlong="error").encode(Item("what", "that"))

    def test_of_several_rows_those_that_fit_are_kept(self) -> None:
        tokenizer = byte_tokenizer(None, eos="</s>")
        rows = Encoder(tokenizer, "sft", 512).pieces(chat(TURNS))
        fitting = Encoder(tokenizer, "sft", len(rows[1])).encode(chat(TURNS))
        assert ([len(piece) for piece in fitting.pieces], fitting.left_out) == (
            [len(rows[0]), len(rows[1])],
            len(rows[2]),
        )

    @pytest.mark.parametrize("loss", ["all_turns", "last_turn"])
    def test_markers_count_for_a_single_question_too(self, loss: Any) -> None:
        """A plain question with its answer, and the same as messages: what is outside of the markers is not learned."""
        marked = CHATML.replace(
            "{{ m['content'] }}",
            "{% if m['role'] == 'assistant' %}Hm. {% generation %}{{ m['content'] }}{% endgeneration %}"
            "{% else %}{{ m['content'] }}{% endif %}",
        )
        assert marked != CHATML
        tokenizer = byte_tokenizer(marked)
        item = chat(TURNS[:2])
        assert type(item) is Item
        (piece,) = Encoder(tokenizer, "sft", 512, loss=loss).pieces(item)
        assert self.text(tokenizer, piece.ids).endswith("assistant\nHm. assistant says 0<|im_end|>")
        assert self.text(tokenizer, piece.labels) == "assistant says 0<|im_end|>"
        (cut,) = Encoder(tokenizer, "sft", 512, loss=loss).pieces(Item("user says 0", "assistant", ended=False))
        assert self.text(tokenizer, cut.labels) == "Hm. assistant"

    def test_a_chat_without_a_learned_reply_is_passed_over_and_is_not_too_long(self) -> None:
        unlearned = chat([*TURNS[:3], {**TURNS[3], "weight": 0}])
        encoder = Encoder(byte_tokenizer(), "sft", 512, loss="last_turn")
        found = encoder.encode(unlearned)
        assert (found.pieces, found.left_out) == ([], 0)
        assert found.refused == "its last reply has weight 0, and data.loss is last_turn"

    def test_a_row_that_the_template_refuses_is_passed_over_if_asked(self) -> None:
        encoder = Encoder(family_tokenizer(FAMILIES["gemma-2"]), "sft", 512)
        refused = chat([{"role": "system", "content": "Be brief."}, *TURNS[:2]], place="here")
        with pytest.raises(ConfigError, match=r"^here: the chat template refuses a conversation"):
            encoder.encode(refused)
        found = encoder.encode_or_skip(refused)
        assert (found.pieces, found.left_out) == ([], 0)
        assert found.refused.startswith("here: the chat template refuses a conversation of the roles system, user")
        assert (encoder.refusal(refused), encoder.refusal(chat(TURNS))) == (found.refused, "")
        assert encoder.encode_or_skip(chat(TURNS)) == encoder.encode(chat(TURNS))
        with pytest.raises(ConfigError, match=r"more than data.length=16"):  # of another kind
            Encoder(encoder.tokenizer, "sft", 16, overlong="error").encode_or_skip(chat(TURNS))
