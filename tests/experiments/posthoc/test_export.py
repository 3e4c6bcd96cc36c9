"""Exported models: what plain transformers, ctrl and PEFT load is what was trained."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

import ctrl
from ctrl.control_model import ControlModel
from experiments.common.errors import ConfigError, MachineError, RunError
from experiments.config import run_config
from experiments.models.tokens import end_of_turn
from experiments.posthoc.export import _stops, card, export, exported_text
from experiments.records import ArmResult
from experiments.runs.trained import load_trained
from tests.helpers.gguf_file import to_gguf
from tests.helpers.small_run import small_config

pytestmark = pytest.mark.slow  # six arms are trained for it
IDS = torch.arange(5, 17)[None]
TEXT = "Hello, World! 12 is\n\nthe sum of 5 and 7."


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(IDS).logits
    return found


@pytest.mark.parametrize(("arm", "far"), [("full", 0.0), ("lora", 1e-5), ("stack", 0.0), ("control", 0.1)])
def test_the_plain_form_is_loaded_by_transformers(run: Path, arm: str, far: float, tmp_path: Path) -> None:
    """Merging mixed outputs is an approximation, which the card names; the others are exact, or rounded."""
    done = export(run, arm, 1e-2, tmp_path / "out", say=lambda text: None)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert not isinstance(plain, ControlModel)
    trained = load_trained(run, arm, 1e-2)
    assert (logits(plain) - logits(trained)).abs().max() <= far
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert end_of_turn(tokenizer) in ends_of(plain)
    assert tokenizer.chat_template == run_config(run).load_tokenizer().chat_template
    text = (tmp_path / "out" / "README.md").read_text()
    assert f"{arm} (method " in text
    assert "| gain |" in text
    assert (done.gap is not None) == (arm in ("stack", "control"))
    assert ("Merging changed its predictions" in text) == (done.gap is not None)
    assert any(line.startswith("serve it: vllm serve") for line in exported_text(done))
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("arm", ["control", "stack"])
def test_servers_find_what_they_need(run: Path, arm: str, tmp_path: Path) -> None:
    """vLLM picks its class by `architectures`, reads tensors by their names, sizes and dtype from config.json."""
    export(run, arm, 1e-2, tmp_path / "out", say=lambda text: None)
    settings = json.loads((tmp_path / "out" / "config.json").read_text())
    base = json.loads((Path(run_config(run).base_model) / "config.json").read_text())
    layers = base["num_hidden_layers"] + (arm == "stack")
    assert settings == base | {"num_hidden_layers": layers, "transformers_version": settings["transformers_version"]}
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert {str(file.get_tensor(name).dtype).removeprefix("torch.") for name in names} == {settings["dtype"]}
    assert names == {*LlamaForCausalLM(LlamaConfig(**settings)).state_dict()}
    there = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= there


def greedy(model: PreTrainedModel) -> list[int]:
    tokens: list[int] = model.generate(IDS, max_new_tokens=8, do_sample=False)[0, IDS.shape[1] :].tolist()  # type: ignore[operator]
    return tokens


def test_llama_cpp_s_format_holds_the_whole_model(run: Path, tmp_path: Path) -> None:
    """Converted by gguf's own tools; transformers reads the same weights, words and greedy tokens from the file."""
    out = export(run, "control", 1e-2, tmp_path / "out", say=lambda text: None).folder
    file = to_gguf(out, tmp_path / "model.gguf")
    plain = AutoModelForCausalLM.from_pretrained(out).eval()
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=file.name).eval()
    assert torch.equal(logits(read), logits(plain))
    assert greedy(read) == greedy(plain)
    words, own = AutoTokenizer.from_pretrained(tmp_path, gguf_file=file.name), AutoTokenizer.from_pretrained(out)
    assert words(TEXT)["input_ids"] == own(TEXT)["input_ids"]
    assert words.chat_template == own.chat_template


def test_llama_cpp_writes_the_same_text(run: Path, tmp_path: Path) -> None:
    llama = pytest.importorskip("llama_cpp", reason="pip install llama-cpp-python builds llama.cpp: minutes")
    out = export(run, "control", 1e-2, tmp_path / "out", say=lambda text: None).folder
    fp32 = {"type_k": 0, "type_v": 0, "flash_attn": False}  # its own cache is in fp16
    engine = llama.Llama(str(to_gguf(out, tmp_path / "model.gguf")), n_ctx=64, logits_all=True, verbose=False, **fp32)
    written, new = [], IDS[0].tolist()
    for _ in range(8):
        engine.eval(new)
        new = [int(engine.scores[engine.n_tokens - 1].argmax())]
        written += new
    assert written == greedy(AutoModelForCausalLM.from_pretrained(out).eval())
    assert engine.tokenize(TEXT.encode(), add_bos=False) == AutoTokenizer.from_pretrained(out)(TEXT)["input_ids"]


def ends_of(model: PreTrainedModel) -> list[int]:
    ends = model.generation_config.eos_token_id  # type: ignore[union-attr]
    return ends if isinstance(ends, list) else [ends]


@pytest.mark.parametrize(("own", "ends"), [(None, [2]), (0, [0, 2]), ([0, 2], [0, 2])])
def test_it_stops_where_trained_replies_end(own: object, ends: list[int], tokenizer: PreTrainedTokenizerBase) -> None:
    """A base model ends documents, but no turns: with a template given to it, it would write on for ever."""
    model = types.SimpleNamespace(generation_config=GenerationConfig(eos_token_id=own))
    _stops(model, tokenizer)  # type: ignore[arg-type]
    assert end_of_turn(tokenizer) == 2
    assert ends_of(model) == ends  # type: ignore[arg-type]


def test_settings_of_a_base_that_transformers_calls_invalid_are_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refuses to save changed ones; an end of turn is added to those of a file."""
    monkeypatch.setattr("experiments.posthoc.export.end_of_turn", lambda tokenizer: 7)
    file = Path(run_config(run).base_model) / "generation_config.json"
    before = file.read_text()
    file.write_text(json.dumps({**json.loads(before), "do_sample": False, "temperature": 0.6}))
    try:
        out = export(run, "full", 1e-2, tmp_path / "out", say=lambda text: None).folder
    finally:
        file.write_text(before)
    written = json.loads((out / file.name).read_text())
    assert (written["do_sample"], written["temperature"]) == (False, 0.6)
    assert 7 in written["eos_token_id"]


def test_an_expansion_stops_there_too(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.posthoc.export.end_of_turn", lambda tokenizer: 7)
    out = export(run, "control", 1e-2, tmp_path / "out", form="trained", say=lambda text: None).folder
    assert 7 in ends_of(ctrl.load(run_config(run).base_model, out))


def test_weights_that_were_trained_again_do_not_get_the_earlier_ones_card(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by `run --fresh` in another shell while the base was loaded."""
    monkeypatch.setattr("experiments.posthoc.export.trained_digest", lambda arm: "of the weights before")
    with pytest.raises(RunError, match=r"full-0\.01 was trained again, or removed"):
        export(run, "full", 1e-2, tmp_path / "out", say=lambda text: None)
    assert not (tmp_path / "out").exists()


def test_the_trained_form_is_loaded_onto_the_base(run: Path, tmp_path: Path) -> None:
    config = run_config(run)
    for arm in ("control", "lora"):
        export(run, arm, 1e-2, tmp_path / arm, form="trained", say=lambda text: None)
    expanded = ctrl.load(config.load_base()[0], tmp_path / "control")
    adapted = PeftModel.from_pretrained(config.load_base()[0], str(tmp_path / "lora"))
    assert torch.equal(logits(expanded), logits(load_trained(run, "control", 1e-2)))
    assert torch.equal(logits(adapted), logits(load_trained(run, "lora", 1e-2)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="arm 'full' trained weights of the model itself: use --form merged"):
        export(run, "full", 1e-2, tmp_path / "full", form="trained", say=lambda text: None)
    assert not (tmp_path / "full").exists()


def test_weights_have_the_dtype_that_was_asked_for(run: Path, tmp_path: Path) -> None:
    export(run, "full", 1e-2, tmp_path / "half", dtype="bf16", say=lambda text: None)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    assert "Its weights were rounded to bf16 afterwards." in (tmp_path / "half" / "README.md").read_text()
    with pytest.raises(ConfigError, match="half exists: name a new folder"):
        export(run, "full", 1e-2, tmp_path / "half")
    with pytest.raises(ConfigError, match="--dtype int4: choose one of fp32, bf16, fp16"):
        export(run, "full", 1e-2, tmp_path / "other", dtype="int4")


@pytest.mark.parametrize(
    ("kept", "dtype", "said"),
    [("fp32", "fp32", None), ("bf16", "fp32", "to bf16"), ("bf16", "bf16", "to bf16"),
     ("bf16", "fp16", "to bf16, then to fp16")],
)  # fmt: skip
def test_the_card_says_what_weights_were_rounded_to(kept: str, dtype: str, said: str | None) -> None:
    """Those that stay are rounded too (`training.keep_dtype`), and the figures are of the weights before."""
    config = small_config("base", training={"steps": 4, "batch_size": 4, "warmup_steps": 1, "keep_dtype": kept})
    text = card(config, ArmResult("full", "full", 1e-2, "finished", steps=4), "merged", None, dtype)
    assert ("were rounded" in text) == (said is not None)
    assert said is None or f" Its weights were rounded {said} afterwards." in text


def test_a_run_whose_config_was_edited_is_refused_before_it_writes(run: Path, tmp_path: Path) -> None:
    """An edited name of the base would export another model under this run's figures."""
    file = run / "config.yaml"
    own = file.read_text()
    try:
        file.write_text(own.replace("precision: fp32", "precision: bf16"))
        with pytest.raises(ConfigError, match=r"config\.yaml was edited: it has other settings than small-.* ran with"):
            export(run, "full", 1e-2, tmp_path / "out", say=lambda text: None)
    finally:
        file.write_text(own)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_nothing_and_is_the_machines(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors raises its own error, which is no OSError."""

    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", full)
    with pytest.raises(MachineError, match="no space left on the disk"):
        export(run, "full", 1e-2, tmp_path / "out", say=lambda text: None)
    assert not list(tmp_path.iterdir())
