"""A config is checked against its base model before anything is trained."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from experiments.common.errors import ConfigError, MachineError
from experiments.config import ExperimentConfig, parse_config
from experiments.data.items import NewText
from experiments.evaluation.evaluate import Suites
from experiments.models.positions import alike_up_to
from experiments.runs.checks import beyond_training, check_run, check_suites, check_tokens, passed_over, unread_loss
from experiments.runs.experiment import run_arms
from experiments.runs.run import run_experiment
from tests.helpers import families
from tests.helpers.byte_level import CHATML, byte_llama, byte_tokenizer
from tests.helpers.new_tasks import sums
from tests.helpers.one_arm import arm
from tests.helpers.readers import build_other
from tests.helpers.small_run import draw_suites, small_config
from tests.helpers.tiny_llama import tiny


@pytest.fixture
def lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that a CUDA error has cost its GPU: each call of the device raises it again."""

    def synchronize() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)


def test_an_arm_that_costs_the_process_its_gpu_fails_alone(request: pytest.FixtureRequest) -> None:
    """The arms after it, and in a study the trials, would fail for the same error."""
    ran: list[str] = []

    class Arm:
        def __init__(self, name: str) -> None:
            self.name = name

        def run(self, *_: Any) -> None:
            ran.append(self.name)
            if self.name == "second":
                request.getfixturevalue("lost")

    arms: Any = [Arm("first"), Arm("second"), Arm("third")]
    with pytest.raises(MachineError, match=r"lost its GPU .*device-side assert triggered\)\. .*same command goes on"):
        run_arms(arms, cast(Any, None), None)
    assert ran == ["first", "second"]


@pytest.mark.usefixtures("lost")
def test_no_run_begins_in_a_process_without_its_gpu(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="lost its GPU"):
        run_experiment(small_config("no-such-model"), tmp_path, force=True)
    assert not list(tmp_path.iterdir())


def test_an_arm_is_checked_against_its_base_model() -> None:
    wrong = arm(train={"partial": {"layers": 9}}, loss=[{"kl": {"tokens": "replayed"}}])
    model = tiny()
    model.loss_function = lambda *args, **kwargs: None  # type: ignore[method-assign]
    for made, message in (
        (wrong, "arm 'x': its options need replayed rows"),
        (wrong, "arm 'x': .*9"),
        (
            arm(loss=["dft"]),
            r"arm 'x': method full\+dft weighs or penalises tokens, but the loss of this model is not transformers'",
        ),
    ):
        with pytest.raises(ConfigError, match=message):
            check_run(parse_config({"name": "x", "arms": [made]}), model)


def test_attention_weights_are_asked_for_before_anything_is_measured() -> None:
    """The arm would fail at its expansion, after the base was measured."""
    made = arm(train={"control": {"layers": 2, "divergence": "attention"}})
    config, model = parse_config({"name": "x", "arms": [made]}), tiny()
    with pytest.raises(ConfigError, match=r"arm 'x': control\.divergence 'attention' reads .* set attention: eager"):
        check_run(config, model)
    model.set_attn_implementation("eager")
    check_run(config, model)
    model.config.attention_dropout = 0.1
    with pytest.raises(ConfigError, match=r"arm 'x': .* drops some of them at random in training"):
        check_run(config, model)


@pytest.mark.parametrize(
    ("training", "processes", "said"),
    [
        (
            {"micro_batch": 2},
            "1",
            r"arm 'x': method full\+talr weighs a token by the others .*training\.micro_batch=2 cuts a step of",
        ),
        ({}, "2", r"each of the 2 processes of this launch has a part of a batch"),
        ({"micro_batch": 99}, "1", None),
        ({"batch_size": 2, "gradient_accumulation": 2}, "1", None),
    ],
)
def test_passes_of_fewer_rows_would_change_the_weights_of_tokens(
    training: dict[str, Any], processes: str, said: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", processes)
    config = parse_config({"name": "x", "training": training, "arms": [arm(loss=["talr"])]})
    with pytest.raises(ConfigError, match=said) if said else nullcontext():
        check_run(config, tiny())
    check_run(parse_config({"name": "x", "training": training, "arms": [arm(loss=["dft"])]}), tiny())


LORA = {"method": "lora", "options": {"rank": 2}}
EXPERTS = {"type": "lora", "target_parameters": ["mlp.experts.gate_up_proj"]}


def of_arm(arm: dict[str, Any]) -> ExperimentConfig:
    return small_config("-", arms=[{"name": "x", "learning_rates": [1e-3], **arm}])


@pytest.mark.parametrize("arm", [LORA, {"method": "half"}, {"train": {"peft": {"type": "oft"}}}])
def test_arms_that_pass_over_stacked_experts_are_said(arm: dict[str, Any]) -> None:
    config, model = of_arm(arm), families.build("mixtral")
    inside = sum(p.numel() for layer in model.model.layers for p in layer.parameters())
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n or ".gate." in n)
    (line,) = passed_over(config, model)
    assert line.startswith(f"x: {experts / inside:.0%} of the weights")
    assert "mlp.experts.gate_up_proj" in line
    assert not list(passed_over(config, tiny()))


@pytest.mark.parametrize(
    ("arm", "said"), [(LORA, True), ({"method": "half"}, False), ({"train": {"peft": {"type": "oft"}}}, False)]
)
def test_layers_that_peft_refuses_are_said(arm: dict[str, Any], said: bool) -> None:
    lines = list(passed_over(of_arm(arm), build_other("mamba")))
    line = "x: PEFT puts no low-rank adapters on out_proj of this model, so it stays as it is"
    assert lines == [line] * said


@pytest.mark.parametrize("arm", [{"method": "full"}, {"method": "partial"}, {"train": {"peft": EXPERTS}}])
def test_arms_that_train_experts_pass_over_none(arm: dict[str, Any]) -> None:
    assert not list(passed_over(of_arm(arm), families.build("mixtral")))


def test_targets_that_the_model_does_not_have() -> None:
    config = of_arm(LORA | {"options": {"targets": "mlp"}})
    with pytest.raises(ConfigError, match="this model has none there: set targets to all"):
        check_run(config, families.build("mixtral"))


def test_ids_beyond_the_embedding() -> None:
    config = small_config("base")
    check_tokens(config, byte_llama(260), byte_tokenizer(CHATML))
    with pytest.raises(
        ConfigError, match=r"writes the ids 258 \(<\|im_start\|>\), 259 \(<\|im_end\|>\), but .* 258 rows"
    ):
        check_tokens(config, byte_llama(258), byte_tokenizer(CHATML))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"length": 256}, "data.length=256, but base has 128 positions: lower it to 128"),
        (
            {"length": 128, "old": {"source": "self", "max_tokens": 64}},
            r"max_tokens=64 needs up to 147 tokens, but base has 128 positions: lower it",
        ),
    ],
)
def test_rows_longer_than_the_positions(data: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_tokens(small_config("base", data=data), build_other("gpt2", n_positions=128), byte_tokenizer(CHATML))
    check_tokens(small_config("base", data=data), byte_llama(260), byte_tokenizer(CHATML))  # computes its positions


@pytest.mark.parametrize("suite", ["new", "kept", "drift", "instructions", "text", "alignment"])
def test_prompts_longer_than_the_positions(suite: str, tokenizer: PreTrainedTokenizerBase) -> None:
    config = small_config("base", evaluation={"suites": {suite: {}}})
    suites = draw_suites(config, tokenizer, [sums()])
    (longest,) = (one.longest for one in suites.suites.values())
    check_suites("base", build_other("gpt2", n_positions=longest), suites)
    with pytest.raises(
        ConfigError, match=rf"suites\.{suite}: .* have {longest} tokens, but base has {longest - 1} positions"
    ):
        check_suites("base", build_other("gpt2", n_positions=longest - 1), suites)


def test_texts_beyond_the_trained_positions_of_a_model_that_computes_them_are_said(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """RoPE reads any length, and what it was not trained on is read badly without an error."""
    config = small_config("base", evaluation={"suites": {"text": {}}})
    suites = draw_suites(config, tokenizer, [sums()])
    rows, texts = beyond_training("base", byte_llama(260, max_position_embeddings=64), suites, 100)
    assert rows.startswith("data.length: rows may have up to 100 tokens, and base was trained with 64 positions")
    assert texts.startswith(
        f"evaluation.suites.text: texts may have up to {suites.suites['text'].longest} tokens, and "
    )
    assert not list(beyond_training("base", byte_llama(260, max_position_embeddings=512), suites, 100))
    assert not list(beyond_training("base", build_other("bloom"), suites, 100))


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, 64),
        ({"rope_type": "longrope", "original_max_position_embeddings": 32}, 32),
        ({"rope_type": "linear", "factor": 2.0}, None),
    ],
)
def test_frequencies_that_depend_on_the_longest_text_of_a_pass_are_said(
    rope: dict[str, Any], limit: int | None
) -> None:
    """A text next to a longer one than the limit has other logits than alone; below the limit it has the same."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4} if rope["rope_type"] == "longrope" else {}
    given = {"rope_theta": 1e4, **rope, **factors}
    model = byte_llama(260, max_position_embeddings=64, rope_parameters=given).eval()

    @torch.no_grad()
    def read(longest: int) -> torch.Tensor:
        return model(input_ids=torch.arange(longest)[None]).logits[0, :20]

    assert alike_up_to(model) == limit
    assert torch.allclose(read(20), read(limit or 65), atol=1e-4)
    assert torch.allclose(read(20), read((limit or 65) + 1), atol=1e-4) is (limit is None)
    said = list(beyond_training("base", model, Suites({}), 64))
    assert len(said) == (limit == 32)
    assert all("tokens, and beyond 32 base reads all texts of a pass with other frequencies" in line for line in said)


def test_a_loss_of_chats_is_said_if_the_new_task_has_none() -> None:
    texts = NewText("words", ("a text",))
    given = small_config("base", data={"loss": "last_turn"})
    (said,) = unread_loss(given, [texts])
    assert said.startswith("data.loss: last_turn is of chats, and has no effect on the new task")
    assert not list(unread_loss(given, [texts, sums()]))
    assert not list(unread_loss(small_config("base"), [texts]))
