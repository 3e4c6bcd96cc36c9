"""Which old examples are replayed: each rule restated, the cache, and what cannot be chosen."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ctrl.structure import decoder_layers
from experiments.common.errors import ConfigError
from experiments.common.hashing import json_digest
from experiments.config import parse_config
from experiments.data.chosen import Chooser, ReplayChoice
from experiments.data.encoding import Encoder
from experiments.data.files import LocalFile
from experiments.data.items import Example, Item
from experiments.data.procedural import ReasoningGym
from experiments.data.source import SourceContext
from experiments.runs.data import ExperimentData
from tests.helpers.question_files import write
from tests.helpers.run_data import never
from tests.helpers.small_run import small_config, small_values

OLD, NEW = ReasoningGym(name="gcd"), ReasoningGym(name="chain_sum")
NONE = frozenset[str]()
EARLIER = {"source": "earlier"}


@pytest.fixture
def chooser(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Chooser:
    context = SourceContext(tokenizer, lambda: model, "tiny", "fp32", tmp_path)
    return Chooser(ReplayChoice(of=8, keep=3), context, Encoder(tokenizer, "sft", 512), [NEW], 0, NONE)


def first(source: ReasoningGym, count: int) -> list[Example]:
    found = source.epoch(0, 0, NONE)
    return [next(found) for _ in range(count)]


def backward(model: PreTrainedModel, encoder: Encoder, example: Example) -> tuple[float, torch.Tensor]:
    """The model's own loss of an example, and its gradient by the weights of the last layer."""
    (piece,) = encoder.pieces(example)
    model.zero_grad()
    value: Any = model(input_ids=torch.tensor([piece.ids]), labels=torch.tensor([piece.labels])).loss
    value.backward()
    found = [p.grad.flatten() for p in decoder_layers(model)[-1].parameters() if p.grad is not None]
    return value.item(), torch.cat(found)


def choose(chooser: Chooser, **fields: Any) -> list[Example]:
    chosen = replace(chooser, choice=ReplayChoice(of=8, keep=3, **fields)).chosen(OLD)
    assert chosen.label == OLD.label
    return list(chosen.stored())


def test_at_random_it_is_the_start_of_the_sources_own_order(chooser: Chooser) -> None:
    no_model = replace(chooser, context=replace(chooser.context, base=never))
    assert choose(no_model, by="random") == first(OLD, 3)


def test_by_loss_it_is_what_the_base_predicts_worst(chooser: Chooser, model: PreTrainedModel) -> None:
    losses = {example: backward(model, chooser.encoder, example)[0] for example in first(OLD, 8)}
    worst = sorted(losses, key=lambda example: -losses[example])[:3]
    assert set(choose(chooser, by="loss")) == set(worst)


def test_by_gradient_it_is_what_the_new_task_harms_most(
    chooser: Chooser, model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.data.chosen.NEW_EXAMPLES", 3)
    trained = {name: p.requires_grad for name, p in model.named_parameters()}
    found = choose(chooser, by="gradient")
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trained
    assert all(p.grad is None for p in model.parameters())
    new = torch.stack([backward(model, chooser.encoder, example)[1] for example in first(NEW, 3)]).mean(0)
    cosine = {}
    for example in first(OLD, 8):
        own = backward(model, chooser.encoder, example)[1]
        cosine[example] = float(own @ new / own.norm() / new.norm())
    assert set(found) == set(sorted(cosine, key=lambda example: cosine[example])[:3])


def test_a_source_that_is_too_small_to_choose_from_is_said(chooser: Chooser) -> None:
    assert chooser.chosen(OLD).notes == ["data.choose keeps 3 of 8"]
    all_of_it = replace(chooser, choice=ReplayChoice(of=3, keep=3)).chosen(OLD)
    assert all_of_it.notes == [
        "data.choose keeps 3 of 3: too few to choose from, so raise choose.of or lower choose.keep"
    ]


def test_what_was_not_read_of_the_source_is_said_too(chooser: Chooser, tmp_path: Path) -> None:
    rows = [{"question": f"q{i}", "answer": "" if i == 5 else "a"} for i in range(9)]
    source = LocalFile(path=str(write(tmp_path / "old.jsonl", rows)), skip_bad_rows=True)
    passed, kept = chooser.chosen(source).notes
    assert passed.startswith("1 row passed over (")
    assert kept == "data.choose keeps 3 of 8"


def test_scores_are_computed_once(chooser: Chooser) -> None:
    found = choose(chooser, by="loss")
    again = replace(chooser, context=replace(chooser.context, base=never))
    assert choose(again, by="loss") == found
    with pytest.raises(AssertionError, match="the base model was asked for"):
        choose(replace(again, seed=1), by="loss")
    with pytest.raises(AssertionError, match="the base model was asked for"):
        choose(replace(again, context=replace(again.context, loaded="4bit")), by="loss")


class Stream(LocalFile):
    """A stream, whose digest knows its settings alone."""

    @property
    def streamed(self) -> bool:
        return True

    def digest(self) -> str:
        return "settings"


def test_the_scores_of_a_stream_are_those_of_its_examples(chooser: Chooser, tmp_path: Path) -> None:
    def choose_again(words: str, old: bool, base: Any) -> None:
        rows = [{"question": f"{words} {i}", "answer": "a"} for i in range(3)]
        stream = Stream(path=str(write(tmp_path / "old.jsonl", rows)))
        choice = ReplayChoice(of=2, keep=1, by="loss" if old else "gradient")
        own = replace(chooser, choice=choice, new=[stream], context=replace(chooser.context, base=base))
        own.chosen(stream if old else OLD)

    for old in (True, False):
        choose_again("How many are", old, chooser.context.base)
        choose_again("How many are", old, never)
        with pytest.raises(AssertionError, match="the base model was asked for"):
            choose_again("In which year,", old, never)


def of_another_model(file: Path) -> None:
    note: dict[str, Any] = {"scores": [0.0] * 8, "base": "another"}
    file.write_text(json.dumps(note | {"digest": json_digest(note | {"of": file.stem})}))


@pytest.mark.parametrize(
    "damage",
    [
        of_another_model,
        lambda file: file.write_text(file.read_text().replace("scores", "other")),
        lambda file: file.write_text(json.dumps(json.loads(file.read_text()) | {"scores": [0.0]})),
        lambda file: file.write_text(json.dumps({"scores": [0.0] * 8})),
        lambda file: shutil.copy(file.with_name("other.json"), file),
    ],
    ids=["of another model", "name", "cut", "no digest", "of another choice"],
)
def test_scores_that_were_changed_are_computed_anew(chooser: Chooser, damage: Callable[[Path], object]) -> None:
    found = choose(chooser, by="loss")
    (file,) = (chooser.context.cache / "chosen").glob("*.json")
    choose(replace(chooser, seed=1), by="loss")
    (other,) = (path for path in file.parent.glob("*.json") if path != file)
    other.rename(file.with_name("other.json"))
    damage(file)
    assert choose(chooser, by="loss") == found


def test_scores_that_are_no_numbers_are_refused(chooser: Chooser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.data.chosen.loss", lambda *_: torch.tensor(float("nan")))
    with pytest.raises(ConfigError, match=r"data\.choose: the base model's scores are not finite: set by to random"):
        choose(chooser, by="loss")


def test_what_does_not_fit_a_row_or_is_held_out_is_not_chosen(chooser: Chooser) -> None:
    short = replace(chooser, encoder=Encoder(chooser.context.tokenizer, "sft", 16))
    with pytest.raises(ConfigError, match="none of the first 8 examples of gcd fits a row of 16 tokens"):
        choose(short, by="random")
    (one, *_) = first(OLD, 1)
    assert isinstance(one, Item)
    assert one not in choose(replace(chooser, held_out_ids=frozenset([one.id])), by="random")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"choose": {"by": "loss"}}, "choose: needs examples of `old` to choose from"),
        (
            {
                "new": [{"name": "gcd"}, {"name": "lcm"}],
                "order": "sequential",
                "old": {"source": "earlier"},
                "choose": {},
            },
            "choose: needs examples of `old` to choose from, other than those of source earlier",
        ),
        ({"old": {"name": "gcd"}, "choose": {"of": 5, "keep": 6}}, "keep=6 of 5 examples: keep as many or fewer"),
        ({"old": {"name": "gcd"}, "choose": {"kep": 6}}, "data.choose.kep: unknown key; did you mean 'keep'"),
    ],
)
def test_a_choice_that_cannot_be_made_is_refused(base: str, data: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config(small_values(base, data=data))


def test_a_run_replays_the_chosen_examples(
    base: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    data = {"old": {"name": "gcd"}, "replay": 0.5, "choose": {"by": "loss", "of": 8, "keep": 2}}
    made = ExperimentData(small_config(base, data=data), tokenizer, lambda: model, tmp_path)
    (old,) = made.old
    assert old.size == 2
    rows = made.rows(made.config.arms[0])
    replayed = {tuple(row["input_ids"]) for row in (rows[i] for i in range(len(rows))) if row["replayed"]}
    assert len(replayed) == 2
    assert replayed == {tuple(made.encoder.pieces(example)[0].ids) for example in old.stored()}
