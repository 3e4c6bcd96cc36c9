"""What a training pass trains: copies that are frozen, references that would move, gradients that were dropped."""

from __future__ import annotations

import contextlib
import copy
import pickle
import types
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import CheckpointImpl, checkpoint_wrapper

import ctrl
from ctrl.passes import ForwardPass
from ctrl.training import warn_of_unmarked_padding
from tests.helpers.tiny_llama import IDS, expanded, sequences, tiny


def test_reentrant_checkpointing_is_refused_and_the_other_gives_the_same_gradients() -> None:
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    plain, checkpointed = expanded().train(), expanded().train()
    plain(**batch).loss.backward()
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    checkpointed(**batch).loss.backward()
    for (name, p), q in zip(plain.named_parameters(), checkpointed.parameters(), strict=True):
        if p.requires_grad:
            assert q.grad is not None, name
            torch.testing.assert_close(q.grad, p.grad, msg=name)
    checkpointed.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    checkpointed.enable_input_require_grads()
    with pytest.raises(RuntimeError, match="use_reentrant"):
        checkpointed(**batch)


def every_second(model: Any) -> None:
    model.activation_checkpointing_enable({"use_reentrant": True}, every_n_layers=2)


def one_by_hand(model: Any) -> None:
    """torch's wrapper around one of the expanded layers."""
    model.model.layers[3] = checkpoint_wrapper(model.model.layers[3], checkpoint_impl=CheckpointImpl.REENTRANT)


def collected_loss(model: Any) -> Any:
    with ctrl.collect_divergence(model) as collected:
        model(input_ids=IDS)
    return collected.weighted()


@pytest.mark.parametrize("checkpoint", [every_second, one_by_hand])
@pytest.mark.parametrize("loss", [lambda model: model(input_ids=IDS, labels=IDS).loss, collected_loss])
def test_a_divergence_that_is_dropped_in_one_layer_alone_is_refused(checkpoint: Any, loss: Any) -> None:
    model = expanded(layers=[0, 3]).train()
    model.config.use_cache = False
    model.enable_input_require_grads()
    checkpoint(model)
    with pytest.raises(RuntimeError, match=r"divergence of layer \d has no gradient: reentrant"):
        loss(model)


def test_a_loss_without_a_path_to_the_copies_is_no_fault_of_checkpointing() -> None:
    """Nothing trains but the head, or one gate: the divergence has no gradient, and needs none."""
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    for trains in ("lm_head", "3.interpolation"):
        model = expanded(interpolation="dlerpin", alpha="learned").train()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trains in name)
        for _ in range(2):
            model(**batch).loss.backward()
            assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
            model.zero_grad()
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def test_a_pass_that_trains_no_copy_is_said_once() -> None:
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    model = expanded().train().requires_grad_(False)
    model.lm_head.requires_grad_(True)
    with pytest.warns(UserWarning, match="no copy trains: all their parameters are frozen"):
        model(**batch)
    assert model.control.looked


def test_a_weight_that_a_reference_shares_and_that_trains_is_named() -> None:
    batch = {k: torch.stack([row[k] for row in sequences()]) for k in ("input_ids", "attention_mask", "labels")}
    model = expanded().train()
    plain = ctrl.reference(model)
    model(**batch)  # a first stage, which trains the copies alone
    model.lm_head.requires_grad_(True)
    with pytest.warns(UserWarning, match=r"lm_head.weight trains, and the model of ctrl.reference shares it"):
        model(**batch)
    assert plain.lm_head.weight is model.lm_head.weight


@pytest.mark.parametrize("structure", ["concat", "hybrid"])
def test_a_pretrained_layer_that_trains_next_to_its_copy_is_said_once(structure: str) -> None:
    """model.requires_grad_() unfreezes all; another part that was unfrozen by name is as meant."""
    model = expanded(structure=structure).train()
    model.lm_head.requires_grad_(True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(input_ids=IDS, labels=IDS)
    model = expanded(structure=structure).train().requires_grad_()  # type: ignore[assignment]
    with pytest.warns(UserWarning, match=r"18 weights of the pretrained layers .* \(first: layer 1, self_attn.q_proj"):
        model(input_ids=IDS, labels=IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(input_ids=IDS, labels=IDS)


def begins_again(model: Any) -> None:
    model.eval()
    model.train()


@pytest.mark.parametrize("change", ["bfloat16", "requires_grad_"])
@pytest.mark.parametrize("begin", [begins_again, lambda model: model.to("cpu"), lambda model: None])
def test_a_later_training_is_looked_at_too(change: str, begin: Any) -> None:
    """Only the first training pass of a model was: copies that were rounded after it lost their steps unsaid."""
    model = ctrl.expand(tiny().bfloat16(), ctrl.ControlConfig(layers=2)).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(input_ids=IDS, labels=IDS)
        begin(model)
        model(input_ids=IDS, labels=IDS)
    getattr(model, change)()
    begin(model)
    with pytest.warns(UserWarning, match=r"\d+ weights (train in torch.bfloat16|of the pretrained layers)"):
        model(input_ids=IDS, labels=IDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        begin(model)
        model(input_ids=IDS, labels=IDS)  # each is said once


def test_what_a_trainer_begins_is_a_training_of_its_own() -> None:
    """The words about a lost divergence and about padding were for the first training of a model alone."""
    padded = {name: torch.stack([row[name] for row in sequences()]) for name in ("input_ids", "labels")}
    model = expanded().train()
    for lose in (lambda: model(input_ids=IDS).logits.sum().backward(), lambda: model(**padded)):
        for _ in range(2):
            for _ in range(9):
                model(input_ids=IDS, labels=IDS)
            model.to("cpu")
            with pytest.warns(UserWarning, match="leaves out divergence='mse'|look like padding"):
                lose()


def own_forward(model: Any) -> Any:
    return model(input_ids=IDS, labels=IDS)


def decoder(model: Any) -> Any:
    """As TRL's trainers do."""
    return model.base_model(input_ids=IDS)


def collected_decoder(model: Any) -> Any:
    """As TRL's trainers do that are attached."""
    with ctrl.collect_divergence(model):
        return decoder(model)


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def copied_in_a_wrapper(model: Any) -> Any:
    return copy.deepcopy(torch.nn.Sequential(model))[0]


@pytest.mark.parametrize("moved", [lambda model: model, copy.deepcopy, pickled, copied_in_a_wrapper])
@pytest.mark.parametrize(("run", "divergence"), [(own_forward, "mse"), (collected_decoder, "mse"), (decoder, "none")])
def test_a_training_is_looked_at_however_it_runs_the_model(run: Any, divergence: str, moved: Any) -> None:
    model = expanded(divergence=divergence)
    model = moved(model).train().requires_grad_()
    assert model.control.owner() is model
    with pytest.warns(UserWarning, match="18 weights of the pretrained layers"):
        run(model)


def test_compiled_passes_are_not_searched_for_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at tokens breaks the graph, also in what `ctrl.collect_divergence` has collected."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    model, ids = expanded().train(), torch.zeros(1, 4, dtype=torch.long)
    current = ForwardPass(None, torch.full((1, 4), -100), ids=ids)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unmarked_padding(model, current)
    assert not model.control.unmasked


class Synced:
    """Stands for a trainer of TRL that was not attached."""

    model: Any = None
    ref_model: Any = None

    def __init__(self, asked: bool) -> None:
        self.args = types.SimpleNamespace(sync_ref_model=asked)

    def step(self, model: Any) -> None:
        model(input_ids=IDS, labels=IDS).loss.backward()


def test_a_trainer_that_writes_into_the_base_is_refused_before_it_does() -> None:
    """TRL's sync_ref_model walks over two lists of parameters that are not of equal length."""
    with pytest.raises(ctrl.ConfigError, match=r"frozen weights would be overwritten\. Set sync_ref_model=False"):
        Synced(True).step(expanded().train())
    Synced(False).step(expanded().train())
    for reference in (copy.deepcopy, ctrl.reference):  # of the expanded model, and of its base
        trainer, model = Synced(True), expanded().train()
        trainer.model, trainer.ref_model = model, reference(model)
        refused = pytest.raises(ctrl.ConfigError, match="sync_ref_model=True")
        with refused if reference is ctrl.reference else contextlib.nullcontext():
            trainer.step(model)


def half_trained(model: Any, part: str = "") -> list[str]:
    """What a training step warns of, with this part of the base unfrozen."""
    if part:
        model.get_submodule(part).requires_grad_(True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
    said = [str(one.message) for one in seen if "in which most steps are lost" in str(one.message)]
    return [one.partition(",")[0] for one in said]


def test_what_trains_in_a_half_type_is_said(tmp_path: Path) -> None:
    def made(**values: Any) -> Any:
        return ctrl.expand(tiny().bfloat16(), ctrl.ControlConfig(layers=[0], **values))

    assert half_trained(made()) == half_trained(made(copies_dtype="base")) == []
    head = "1 weights train in torch.bfloat16 (first: lm_head.weight)"
    assert half_trained(made(), "lm_head") == half_trained(made(copies_dtype="base"), "lm_head") == [head]
    copies = "9 weights train in torch.bfloat16 (first: model.layers.0.expanded.self_attn.q_proj.weight)"
    assert half_trained(made().bfloat16()) == [copies]
    rounded = {name: tensor.bfloat16() for name, tensor in made().state_dict().items()}  # as some trainers gather it
    folder = ctrl.save(made(), tmp_path, state_dict=rounded)
    assert half_trained(ctrl.load(tiny().bfloat16(), folder)) == [copies]


def test_a_head_that_starts_at_random_trains_in_the_base_s_type_and_is_said() -> None:
    torch.manual_seed(0)
    base = tf.LlamaForSequenceClassification(tiny().config).bfloat16()
    base.config.pad_token_id = 0
    model = ctrl.expand(base, ctrl.ControlConfig(layers=2)).train()
    with pytest.warns(UserWarning, match=r"1 weights train in torch.bfloat16 .first: score.weight"):
        model(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()


@pytest.mark.parametrize(("case", "said"), [("loaded", 1), ("frozen", 0), ("new", 0)])
def test_a_head_that_was_loaded_and_trains_is_said_once(case: str, said: int, tmp_path: Path) -> None:
    """A classifier that is trained on: its head is one of the base's, which ctrl.pretrained once was not then."""
    tiny().save_pretrained(tmp_path)
    kind = tf.LlamaForSequenceClassification
    if case != "new":
        kind.from_pretrained(tmp_path).save_pretrained(tmp_path)
    model = ctrl.expand(kind.from_pretrained(tmp_path), ctrl.ControlConfig(layers=1)).train()
    model.score.requires_grad_(case != "frozen")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            model(input_ids=IDS, labels=torch.tensor([0, 1])).loss.backward()
    assert sum("score.weight) was loaded with the base" in str(w.message) for w in seen) == said


def collected_pass(model: Any, labels: Any, **batch: Any) -> None:
    """A loss of one's own, as in `ctrl.attach`."""
    with ctrl.collect_divergence(model) as collected:
        model.base_model(**batch)
    collected.weighted(labels)


@pytest.mark.parametrize("run", [lambda model, **batch: model(**batch), collected_pass])
@pytest.mark.parametrize(
    "case", ["padded", "padded left", "mask", "labelled", "counted by labels", "weight 0", "packed", "full"]
)
def test_padding_that_nothing_marks_is_said_once(case: str, run: Any) -> None:
    """Rows of equal length with labels and without a mask: padding would count as real tokens without a word."""
    batch = {name: torch.stack([row[name] for row in sequences()]) for name in sequences()[0]}
    settings = {"counted by labels": {"divergence_tokens": "labels"}, "weight 0": {"divergence": "none"}}
    model = expanded(**settings.get(case, {})).train()
    if case != "mask":
        del batch["attention_mask"]
    if case == "padded left":
        batch = {name: tensor.flip(1) for name, tensor in batch.items()}
    if case == "labelled":
        batch["labels"] = batch["input_ids"]
    if case == "packed":
        batch["position_ids"] = torch.arange(17).expand(8, 17)
    if case == "full":
        batch = {name: tensor[:, :6] for name, tensor in batch.items()}
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            run(model, **batch)
    assert sum("look like padding" in str(w.message) for w in seen) == case.startswith("padded")


@pytest.mark.parametrize(("divergence", "said"), [("mse", True), ("none", False)])
@pytest.mark.parametrize("family", [tf.GPT2Config, tf.OPTConfig, tf.LlamaConfig])
def test_dropout_that_a_divergence_would_measure_is_said(family: Any, divergence: str, said: bool) -> None:
    """gpt2 and opt have it by default: two equal branches are then apart in training."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 8, "ffn_dim": 8}
    config = family(vocab_size=96, **sizes, word_embed_proj_dim=32, **({"attention_dropout": 0.1} if said else {}))
    base = tf.AutoModelForCausalLM.from_config(config)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model: Any = ctrl.expand(base, ctrl.ControlConfig(layers=1, divergence=divergence))
        model.eval()(input_ids=IDS, labels=IDS)
        assert not seen  # whoever uses a model, and does not train it, has no dropout
        noise = [model.train()(input_ids=IDS, labels=IDS).divergence for _ in range(2)]
    assert sum("each branch draws its own" in str(w.message) for w in seen) == said
    assert not said or min(noise) > 0


class Valued(tf.LlamaForCausalLM):
    """A language model with a head of one's own."""

    def __init__(self, config: tf.LlamaConfig) -> None:
        super().__init__(config)
        self.value = torch.nn.Linear(config.hidden_size, 1)
        self.post_init()


@pytest.mark.parametrize(("known", "trains"), [(False, False), (False, True), (True, False)])
def test_a_new_head_on_a_language_model_that_stays_frozen_is_said(known: bool, trains: bool, tmp_path: Path) -> None:
    """ctrl.expand freezes all but copies and the head of a classifier: this one would stay random."""
    made = Valued(tiny().config) if known else tiny()
    made.save_pretrained(tmp_path)
    model = ctrl.expand(Valued.from_pretrained(tmp_path), ctrl.ControlConfig(layers=2)).train()
    model.value.requires_grad_(trains)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            model(input_ids=IDS, labels=IDS).loss.backward()
    said = [str(w.message) for w in seen if "were in no file of the base" in str(w.message)]
    assert len(said) == (not known and not trains)
    assert all("model.value.requires_grad_(True)" in text for text in said)
