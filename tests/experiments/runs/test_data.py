"""The data section as a whole: what arms see, what is measured, what is reported, and training on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from experiments.common.errors import ConfigError
from experiments.config import ExperimentConfig, load_config
from experiments.data.items import NewText, Text
from experiments.data.packing import packing
from experiments.runs.data import ExperimentData
from tests.helpers.run_data import never, trained
from tests.helpers.small_run import small_config

MODULES = ["json", "email", "html", "wave", "heapq", "bisect", "queue", "sched"]
PYTHON = {"source": "python", "modules": MODULES}
SELF = {"source": "self", "number": 6, "max_tokens": 6}


def arms(*replay: float | None) -> list[dict[str, Any]]:
    full = {"method": "full", "learning_rates": [1e-3]}
    return [{"name": f"arm{i}", "replay": share, **full} for i, share in enumerate(replay)]


@pytest.mark.slow
def test_every_arm_gets_the_same_rows_unless_it_asks_for_another_share(
    base: str, tokenizer: PreTrainedTokenizerBase
) -> None:
    data = {"old": {"name": "gcd"}, "replay": 0.25}
    config = small_config(base, data=data, arms=arms(None, None, 0.0, 0.5))
    made = ExperimentData(config, tokenizer, never)
    rows = [[made.rows(arm)[i] for i in range(16)] for arm in config.arms]
    assert rows[0] == rows[1]
    replayed = [sum(row["replayed"] for row in one) for one in rows]
    assert replayed[2] == 0 < replayed[0] < replayed[3]


def test_what_is_measured_is_never_trained_on(base: str, tokenizer: PreTrainedTokenizerBase) -> None:
    few = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}  # 200 questions in all
    chain = {"name": "chain_sum", "params": few}
    config = small_config(
        base, data={"new": chain, "old": chain, "replay": 0.5}, evaluation={"new_items": 60}, training={"steps": 12}
    )
    made = ExperimentData(config, tokenizer, never)
    rows = made.rows(config.arms[0])
    seen = {tokenizer.decode(rows[i]["input_ids"]) for i in range(len(rows))}
    (task,) = made.tasks
    assert not isinstance(task, NewText)
    assert len(task.test) == 60
    assert len(seen) > 90
    assert not any(f"\n{item.question}<|im_end|>" in text for item in task.test for text in seen)


def test_held_out_documents_are_cut_to_a_row(base: str, tokenizer: PreTrainedTokenizerBase) -> None:
    made = ExperimentData(small_config(base, data={"new": PYTHON, "length": 32}), tokenizer, never)
    (task,) = made.tasks
    assert isinstance(task, NewText)
    assert all(1 < len(tokenizer(document)["input_ids"]) <= 33 for document in task.documents)
    whole = [e.text for e in made.new[0].epoch(0, 0, frozenset()) if isinstance(e, Text)]
    assert all(any(text.startswith(document) for text in whole) for document in task.documents)


def test_no_item_is_measured_twice(base: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Two sources may ask one question under one name, and documents that begin alike are equal once they are cut."""
    sums = {"name": "chain_sum", "params": {"max_terms": 2}}
    twice = {"new": [sums, {"name": "chain_sum", "params": {"max_terms": 3}}]}
    made = ExperimentData(small_config(base, data=twice, evaluation={"new_items": 48}), tokenizer, never)
    ids = [item.id for task in made.tasks if not isinstance(task, NewText) for item in task.test]
    assert 48 < len(ids) == len(set(ids))
    with pytest.raises(ConfigError, match="every held-out item of chain_sum is in another source of that name too"):
        ExperimentData(small_config(base, data={"new": [sums, sums]}), tokenizer, never)
    (short,) = ExperimentData(small_config(base, data={"new": PYTHON, "length": 16}), tokenizer, never).tasks
    assert isinstance(short, NewText)
    assert len(set(short.documents)) == len(short.documents)


@pytest.mark.parametrize("regime", ["sft", "cpt"])
def test_what_was_drawn_is_what_was_asked_for(
    regime: str, base: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    old = [{**SELF, "share": 0.5}, {**PYTHON, "share": 0.5}]
    config = small_config(
        base,
        data={"regime": regime, "length": 96, "new": {"name": "gcd"}, "old": old, "replay": 0.3},
        training={"steps": 20, "batch_size": 4},
    )
    made = ExperimentData(config, tokenizer, lambda: AutoModelForCausalLM.from_pretrained(base), tmp_path)
    drawn = made.drawn(config.arms[0])
    total = sum(one["tokens"] for one in drawn)
    assert [one["name"].split()[0] for one in drawn] == ["gcd", "self", "python"]
    assert [one["asked"] for one in drawn] == pytest.approx([0.7, 0.15, 0.15])
    assert [one["replayed"] for one in drawn] == [False, True, True]
    assert sum(one["share"] for one in drawn) == pytest.approx(1)
    assert all(abs(one["share"] - one["asked"]) * total < 2 * 96 for one in drawn)
    assert drawn[1]["epochs"] > 1
    described = made.describe()
    assert described[0]["items"] == "endless"
    assert [one["kind"] for one in described] == ["reasoning_gym", "self", "python"]
    assert [one["share"] for one in described] == pytest.approx([0.7, 0.15, 0.15])
    assert all(len(one["digest"]) == 16 for one in described)


def test_chats_that_are_too_long_are_counted_for_the_report(base: str, tokenizer: PreTrainedTokenizerBase) -> None:
    for length, some in ((64, True), (512, False)):
        config = small_config(base, data={"length": length})
        (drawn,) = ExperimentData(config, tokenizer, never).drawn(config.arms[0])
        assert drawn["examples"] == 16
        assert (drawn["too_long"] > 0) == some


def test_the_base_is_not_asked_for_where_nothing_is_replayed(base: str, tokenizer: PreTrainedTokenizerBase) -> None:
    config = small_config(base, data={"old": SELF})
    assert len(ExperimentData(config, tokenizer, never).rows(config.arms[0])) == 16
    with pytest.raises(AssertionError, match="the base model was asked for"):
        _ = ExperimentData(small_config(base, data={"old": SELF}, arms=arms(0.1)), tokenizer, never).old
    for loaded in ("", "eager"):
        config = small_config(base, data={"old": SELF}, **({"attention": loaded} if loaded else {}))
        assert ExperimentData(config, tokenizer, never).context.loaded == loaded


@pytest.mark.parametrize("regime", ["sft", "cpt"])
def test_old_batches_are_those_of_data_old(regime: str, base: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Also for an arm that replays nothing, and the replayed rows of one that does."""
    data = {"regime": regime, "length": 96, "old": {"name": "gcd"}}
    made = ExperimentData(small_config(base, data=data), tokenizer, never)
    batches = made.old_batches(2)
    assert [len(batch["input_ids"]) for batch in batches] == [4, 4]
    assert all("replayed" not in batch and (batch["labels"] != -100).any() for batch in batches)
    first = tokenizer.decode(batches[0]["input_ids"][0])
    assert "GCD" in first or "Greatest Common Divisor" in first
    again = ExperimentData(small_config(base, data=data), tokenizer, never).old_batches(2)
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, again, strict=True))
    if regime == "sft":
        replaying = ExperimentData(small_config(base, data=data, arms=arms(0.5)), tokenizer, never)
        rows = replaying.rows(replaying.config.arms[0])
        replayed = [row["input_ids"] for row in (rows[i] for i in range(len(rows))) if row["replayed"]]
        assert batches[0]["input_ids"][0].tolist()[: len(replayed[0])] == replayed[0]


@pytest.mark.slow
def test_without_data_old_the_base_writes_the_text_once(
    base: str, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    config = small_config(base)
    state = torch.get_rng_state()
    batches = ExperimentData(config, tokenizer, never, tmp_path).old_batches(1)
    assert torch.equal(state, torch.get_rng_state())
    (file,) = tmp_path.glob("self/*/rows.jsonl")
    written = [json.loads(line)["question"] for line in file.read_text().splitlines()]
    assert len(batches) == 1
    assert len(batches[0]["input_ids"]) == 4
    texts = [tokenizer.decode(row) for row in batches[0]["input_ids"]]
    assert all(any(question in text for question in written) for text in texts)
    stamp = file.stat().st_mtime_ns
    again = ExperimentData(config, tokenizer, never, tmp_path).old_batches(1)
    assert torch.equal(again[0]["input_ids"], batches[0]["input_ids"])
    assert file.stat().st_mtime_ns == stamp


def test_an_arm_that_replays_nothing_says_what_to_write(base: str, tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ConfigError, match=r"arm 'arm1': replay=0.1 needs something to replay: write data.old"):
        ExperimentData(small_config(base, arms=arms(None, 0.1)), tokenizer, never)


def test_the_example_of_cpt_loads() -> None:
    config = load_config("cpt-python")
    assert config.data.regime == "cpt"
    assert config.data.replay > 0
    control = config.arms[-1].control
    assert (control.interpolation, control.alpha, control.divergence) == ("dlerp", "learned", "cosine")


def test_rows_of_one_document_where_a_row_cannot_hold_several(base: str, tokenizer: PreTrainedTokenizerBase) -> None:
    config = cpt(base, 4)
    made = ExperimentData(config, tokenizer, never, packed=False)
    rows = made.rows(config.arms[0])
    texts = {tuple(row["input_ids"]) for row in (rows[i] for i in range(len(rows)))}
    assert all(1 < len(text) <= 32 for text in texts)
    assert len({len(text) for text in texts}) > 1
    batch = made.collator([rows[i] for i in range(4)])
    assert "position_ids" not in batch
    assert (
        (batch["labels"] != -100).sum()
        == batch["attention_mask"].sum()
        == sum(len(rows[i]["input_ids"]) for i in range(4))
    )


def packed(base: str, packed: bool, **changes: Any) -> ExperimentConfig:
    data = {"length": 256, "new": {"name": "gcd"}, "old": {"name": "chain_sum"}, "replay": 0.3, "packed": packed}
    return small_config(base, **{"data": data, "training": {"steps": 3, "batch_size": 4, "warmup_steps": 1}} | changes)


def test_packed_conversations_are_those_of_padded_rows(base: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """A step trains on `batch_size` conversations either way, in the same order."""
    data = [ExperimentData(packed(base, one), tokenizer, never) for one in (True, False)]
    rows, plain = (one.rows(one.config.arms[0]) for one in data)
    given = [rows[i] for i in range(len(rows))]
    assert given == [plain[i] for i in range(len(plain))]
    assert len(given) == 3 * 4
    batch = data[0].collator(given[:4])
    assert int((batch["documents"].diff(dim=1, prepend=torch.zeros(len(batch["documents"]), 1)) > 0).sum()) == 4
    assert len(batch["input_ids"]) < 4
    found = data[0].packing_of(rows, 4)
    assert found is not None
    assert (found.conversations, found.tokens) == (12, sum(len(row["input_ids"]) for row in given))
    assert found.tokens <= found.computed < found.padded
    assert data[0].packing_of(rows, 4, most=8) == packing([len(row["input_ids"]) for row in given[:8]], 4, 256)
    assert data[1].packing_of(rows, 4) is None
    for one, other in zip(data[0].old_batches(2), data[1].old_batches(2), strict=True):
        assert one.keys() == other.keys()  # methods read old text row by row: packing changes nothing there
        assert torch.equal(one["input_ids"], other["input_ids"])


def test_documents_of_cpt_can_have_rows_of_their_own(base: str, tokenizer: PreTrainedTokenizerBase) -> None:
    made = ExperimentData(cpt(base, 4, packed=False), tokenizer, never)
    assert "attention_mask" in made.collator([made.rows(made.config.arms[0])[0]])
    assert made.packing_of(made.rows(made.config.arms[0]), 4) is None


PACKED_ARMS: dict[str, Any] = {
    "full": {"method": "full"},
    "control": {"method": "control", "control": {"layers": 2}},
    "kl": {"train": {"control": {"layers": 2}}, "loss": [{"kl": {"tokens": "replayed"}}, "not_replayed"]},
    "copy": {"train": "full", "loss": ["dft", {"kl": {"weight": 0.5}}, {"l2sp": {"weight": 0.5}}]},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKED_ARMS)
def test_training_on_packed_conversations_is_training_on_padded_rows(name: str, base: str, tmp_path: Path) -> None:
    arms = [{"name": name, "learning_rates": [1e-2], **PACKED_ARMS[name]}]
    training = {"steps": 3, "batch_size": 4, "gradient_accumulation": 2, "warmup_steps": 1}
    one, other = (
        trained(packed(base, how, arms=arms, training=training), name, tmp_path / str(how)) for how in (True, False)
    )
    assert one[0] == pytest.approx(other[0], rel=2e-5)
    assert one[1]["tokens"] == other[1]["tokens"]


@pytest.mark.parametrize("method", ["full", "control"])
@pytest.mark.slow
def test_packed_training_learns_and_counts_every_token(method: str, base: str, tmp_path: Path) -> None:
    losses, cost = trained(cpt(base, 6), method, tmp_path)
    assert cost["tokens"] == 6 * 4 * 32
    assert sum(losses[-2:]) < sum(losses[:2]) - 0.02


@pytest.mark.slow
@pytest.mark.parametrize("regime", ["sft", "cpt"])
def test_a_resumed_run_goes_on_with_the_rows_it_would_have_had(regime: str, base: str, tmp_path: Path) -> None:
    config = cpt(base, 6, regime=regime, length=96)
    whole, _ = trained(config, "full", tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt, match="step 5"):
        trained(config, "full", tmp_path / "parts", stop=5)
    rest, cost = trained(config, "full", tmp_path / "parts")
    assert rest == whole[-len(rest) :]
    assert len(rest) == 2  # saved at step 4
    assert cost["tokens"] > 0


def cpt(base: str, steps: int, **data: Any) -> ExperimentConfig:
    return small_config(
        base,
        data={"regime": "cpt", "length": 32, "new": PYTHON, "old": {"name": "gcd"}, "replay": 0.2, **data},
        training={"steps": steps, "batch_size": 4, "warmup_steps": 1, "save_every": 2},
        evaluation={"every": steps, "new_items": 2},
    )
